"""The recipe int4: which matrix takes which scheme, in memory, in folders and in .gguf files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.models.model_files import ModelFiles
from edgelm.planning import settings
from edgelm.quantization.conversion import Conversion, plan_conversion
from edgelm.quantization.gguf_export import plan_gguf
from edgelm.reports.benchmark import random_model
from quant import KernelUnavailableError, Recipe, Scheme, choose, native

# Bits per weight of llama.cpp's Q4_K_M at real shapes, by its rules for each tensor.
Q4_K_M = {
    "llama-3.2-1b": 5.18,
    "llama-3-8b": 4.89,
    "gemma-2-2b": 5.21,
    "gemma-2-9b": 4.98,
    "bloom-560m": 5.77,
    "bloom-7b1": 5.29,
    "helium-1-preview-2b": 4.90,
    "persimmon-8b": 5.19,
}
IN_GGUF = ("llama-3.2-1b", "llama-3-8b", "gemma-2-2b", "gemma-2-9b", "bloom-560m", "bloom-7b1")


@pytest.mark.parametrize(
    ("planned", "shape"),
    [*((plan_conversion, shape) for shape in Q4_K_M), *((plan_gguf, shape) for shape in IN_GGUF)],
)
def test_no_more_bits_than_q4_k_m(planned: Callable[..., Conversion], shape: str) -> None:
    plan = planned(random_model(shape, "none"), "int4", "mse")
    bits = plan.nbytes * 8 / plan.parameters
    print(f"{shape}: {bits:.3f} of {Q4_K_M[shape]}")
    assert bits < Q4_K_M[shape]


BY_KIND = {
    "q": "iq4-g32-coded", "k": "int5-g32-coded", "v": "int6-g32-coded", "o": "int5-g32-coded",
    "gate": "iq4-g32-coded", "up": "iq4-g32-coded", "down": "iq4-g32-coded",
    "embed": "int6-g32-coded", "head": "int6-g32-coded",
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "helium", "persimmon", "bloom"])
def test_a_plan_and_a_folder_agree(family: str, assets: Path) -> None:
    """A matrix of q, k and v takes one scheme, since it stays one in the file."""
    files = ModelFiles.open(assets / "nano" / family)
    by_kind = BY_KIND
    if family in ("persimmon", "bloom"):
        by_kind = BY_KIND | dict.fromkeys("qkv", "int5-g32-coded")
    for target in plan_conversion(files, "int4", "mse").targets:
        for name in target.parts:
            assert str(target.scheme) == by_kind[name.rpartition(".")[2]], name
    if native.missing():
        pytest.skip(f"torch's kernels take other schemes of the recipe: {native.missing()}")
    plan = edgelm.plan(files, quant="int4")
    for product in plan.products:
        for name in product.names:
            assert product.scheme == by_kind[name.rpartition(".")[2]], name
    assert edgelm.plan(files, quant="int4", method="rtn").weight_bytes == plan.weight_bytes


def test_the_usual_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search takes minutes per billion weights where it runs in torch."""
    for missing, method in ((None, "mse"), ("no compiler", "rtn")):
        monkeypatch.setattr("quant.native.missing", lambda found=missing: found)
        assert settings.Settings().method == method
    assert settings.Settings(method="mse").method == "mse"


def test_a_gguf_file_of_int4(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """The table that is only looked up takes less than the head; K that 256 does not divide."""
    source = tiny_llama(hidden_size=256, intermediate_size=96, head_dim=64)
    done = edgelm.quantize(source, tmp_path / "m.gguf", quant="int4")
    assert done.manifest.recipe["name"] == "int4"
    kinds = {
        name: open_checkpoint(tmp_path / "m.gguf").info(f"{name}.weight").dtype
        for name in (
            "model.embed_tokens", "lm_head", "model.layers.0.mlp.down_proj",
            *(f"model.layers.0.self_attn.{own}_proj" for own in "qkvo"),
        )
    }  # fmt: skip
    assert list(kinds.values()) == ["Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q5_K", "Q6_K", "Q5_K"]
    tied = tiny_llama(hidden_size=256, intermediate_size=512, head_dim=64, tie_word_embeddings=True)
    edgelm.quantize(tied, tmp_path / "tied.gguf", quant="int4")
    table = open_checkpoint(tmp_path / "tied.gguf").info("model.embed_tokens.weight")
    assert table.dtype == "Q6_K"


def test_a_backend_without_a_kernel_takes_the_next_scheme(
    tiny_llama: Callable[..., Path],
) -> None:
    """Never one of twice the bits, which the rule has for rows that no group divides."""
    source = tiny_llama(hidden_size=128, intermediate_size=256)
    plan = edgelm.plan(source, quant="int4", backend="torch")
    schemes = {
        kind: {product.scheme for product in plan.products if product.kind == kind}
        for kind in ("attn", "mlp")
    }
    assert schemes == {"attn": {"int4-g32", "int8"}, "mlp": {"int4-g32"}}
    assert "int4-g32, because no fast kernel for iq4-g32-coded runs here" in str(plan)
    with pytest.raises(edgelm.KernelUnavailableError, match="no kernel for iq4-g32-coded"):
        edgelm.plan(source, quant="int4", backend="torchao")
    looked_up = next(p for p in plan.products if p.names == ("embed",))
    assert looked_up.scheme == "int6-g32-coded"


def test_a_pattern_that_a_file_fuses_is_named(assets: Path, tmp_path: Path) -> None:
    recipe: Any = {"default": "int8", "overrides": {"*.v": "int6-g32-coded"}}
    bloom = assets / "nano" / "bloom"
    for call in (
        lambda: edgelm.plan(bloom, quant=recipe),
        lambda: edgelm.quantize(bloom, tmp_path / "out", quant=recipe),
    ):
        with pytest.raises(edgelm.UsageError, match=r"\*\.v name nothing.*layers\.0\.attn\.qkv"):
            call()


def test_rankings_do_not_choose_among_exact_products() -> None:
    """They are measured of products that round activations; the reference is among them."""
    try:
        exact = choose(Scheme.parse("int4-g32"), (64, 64), "cpu", exact=True).name
    except KernelUnavailableError as error:
        pytest.skip(str(error))
    ranking = ["native.int4", "torch.int4pack", "reference"]
    found = choose(Scheme.parse("int4-g32"), (64, 64), "cpu", ranking=ranking, exact=True)
    assert found.name == exact


def test_int4_accepts_what_has_four_bits() -> None:
    int4 = Recipe.parse("int4")
    assert int4.accepts("layers.0.attn.qkv", Scheme.parse("q5_k"))
    assert not int4.accepts("layers.0.attn.qkv", Scheme.parse("q6_k"))
