"""llama.cpp and we read the same GGUF files: their logits agree.

llama.cpp multiplies float32 matrices in float32 (its GELU is a table in float16), but rounds
activations to 8 bits for its block types: those bounds are wide, as the wide weights of
tests' tiny models amplify every rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import write_gguf_model
from oracle import load_exact, share_of_range

import edgelm
from edgelm.hub import references

llama_cpp = pytest.importorskip("llama_cpp", reason="extra 'peers': llama-cpp-python")

pytestmark = pytest.mark.peer

BOUNDS = {Type.F32: 1e-3, Type.Q8_0: 0.1, Type.Q4_0: 0.1}
"""Largest difference as a share of the range, tiny random models of assets/tiny-random."""
K_QUANT_BOUND = 0.05
"""Files that llama.cpp wrote in mixed K types, held here value for value."""
DEMO_BOUND = 0.05
"""SmolLM2-135M in Q4_1 and Q8_0."""


def theirs(path: Path, ids: list[int]) -> torch.Tensor:
    """llama.cpp's logits after every token, [T, V] float32, with a float32 cache."""
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False, n_threads=1,
        type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    try:
        model.eval(ids)
        return torch.from_numpy(model.scores[: len(ids)].copy())
    finally:
        model.close()


def ours(load: Callable[..., edgelm.LanguageModel], path: Path, ids: list[int]) -> torch.Tensor:
    with load(path, context=64) as lm:
        return lm.forward(torch.tensor([ids])).logits[0]


def compare(
    path: Path, ids: list[int], bound: float, load: Callable[..., edgelm.LanguageModel]
) -> None:
    reference, found = theirs(path, ids), ours(load, path, ids)
    share = share_of_range(found, reference)
    same = float((found.argmax(-1) == reference.argmax(-1)).float().mean())
    print(f"{path.name}: {share:.2e} of the range (bound {bound:.0e}), same top token {same:.2f}")
    assert share < bound


def ids_below(vocab: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, vocab, (count,), generator=generator).tolist()


@pytest.mark.parametrize("kind", BOUNDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "bloom-nonpow2"])
def test_tiny_models(assets: Path, tmp_path: Path, name: str, kind: Type) -> None:
    path = write_gguf_model(
        assets / "tiny-random" / name, tmp_path / f"{name}-{kind.name}.gguf", kind
    )
    compare(path, ids_below(200, 24), BOUNDS[kind], load_exact)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_files_that_llama_cpp_quantized(assets: Path, tmp_path: Path, name: str) -> None:
    """Its mix of Q4_K, Q6_K (and others where rows do not divide by 256) on trained weights."""
    source = write_gguf_model(assets / "nano" / name, tmp_path / "f16.gguf", Type.F16)
    path = tmp_path / f"{name}-Q4_K_M.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), parameters) == 0
    ids = ids_below(2000, 48)
    compare(path, ids, K_QUANT_BOUND, load_exact)
    compare(path, ids, K_QUANT_BOUND, edgelm.load)


def test_the_demo() -> None:
    path = references.resolve("demo")
    with edgelm.load(path, context=64) as lm:
        ids = lm.encode("The capital of France is Paris, and the capital of Italy is Rome.")
    compare(path, ids, DEMO_BOUND, load_exact)
    compare(path, ids, DEMO_BOUND, edgelm.load)
