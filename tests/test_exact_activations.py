"""The setting ``activations``: products that round nothing, named by the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import edgelm
from edgelm.errors import KernelUnavailableError, UsageError
from quant import native

needs_library = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)
# What float32 sums in another order leave of logits, relative to the largest.
SUMS_BOUND = 1e-4


def multiplied(plan: edgelm.Plan) -> set[str]:
    """Kernels of all matrices but the table, which is only read."""
    return {product.kernel for product in plan.products if product.names != ("embed",)}


@needs_library
@pytest.mark.parametrize("quant", ["int4", "int8", "nf4", "none"])
def test_exact_activations_give_the_reference_logits(
    tiny_llama: Callable[..., Path], quant: str
) -> None:
    folder, ids = tiny_llama(), torch.arange(3, 40).unsqueeze(0)
    logits = {}
    for backend in ("native", "reference"):
        with edgelm.load(folder, quant=quant, backend=backend, activations="float") as lm:
            kernels = multiplied(lm.plan)
            assert all(name.startswith(backend) for name in kernels), kernels
            assert all(name.endswith((".exact", ".float", "reference")) for name in kernels)
            logits[backend] = lm.forward(ids).logits
    difference = float((logits["native"] - logits["reference"]).abs().max())
    difference /= float(logits["reference"].abs().max())
    print(f"{quant}: {difference:.1e} of the largest logit, bound {SUMS_BOUND}")
    assert difference < SUMS_BOUND


@needs_library
def test_by_default_codes_round_their_activations(tiny_llama: Callable[..., Path]) -> None:
    kernels = multiplied(edgelm.plan(tiny_llama(), quant="int4"))
    assert kernels == {"native.iq4", "native.int5", "native.int6"}


def test_wrong_activations_are_refused(tiny_llama: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="activations is 'int8'; allowed: auto, float"):
        edgelm.plan(tiny_llama(), activations="int8")
    with pytest.raises(KernelUnavailableError, match="it rounds activations"):
        edgelm.plan(tiny_llama(), quant="int4", activations="float", backend="torch")


@needs_library
def test_a_wrong_instruction_set_is_one_sentence(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_ISA", "avx9")
    native.library.cache_clear()
    try:
        with pytest.raises(KernelUnavailableError, match="EDGELM_ISA='avx9': this CPU"):
            edgelm.plan(tiny_llama(), quant="int4")
    finally:
        monkeypatch.delenv("EDGELM_ISA")
        native.library.cache_clear()
