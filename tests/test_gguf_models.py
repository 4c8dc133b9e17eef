"""Whole models in GGUF: their logits are those of the same weights as safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import ARCHITECTURES, as_stored, write_gguf_model
from oracle import family, load_exact, share_of_range

import edgelm
from edgelm.checkpoint.opening import open_checkpoint

KEPT_BOUND = 1e-5
"""The file's own integers through the reference kernel, against the float32 they stand for."""

SIZES = {"hidden_size": 96, "intermediate_size": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"attention_bias": False, "mlp_bias": False},
    # The file has no query scale: llama.cpp takes the head size for all but the 27B model.
    "gemma2": SIZES | {"query_pre_attn_scalar": 16},
    "bloom": {},
}


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random model of each family, its rows multiples of 32 so that blocks fit."""
    name = str(request.param)
    return family(name, tmp_path / "hf", **SHAPES[name])[1]


def logits(load: Callable[..., edgelm.LanguageModel], path: Path, **settings: Any) -> torch.Tensor:
    """Two rows of 20 tokens, longer than Gemma's window, in chunks that do not divide them."""
    ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(1))
    with load(path, context=32, rows=2, chunk=8, **settings) as lm:
        return lm.forward(ids).logits


FLOATS = [Type.F32, Type.F16, Type.BF16]
EXACT = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]


@pytest.mark.parametrize("kind", FLOATS + EXACT, ids=lambda kind: kind.name)
def test_same_logits_as_safetensors(model: Path, tmp_path: Path, kind: Type) -> None:
    """Read as floats, every number is the same; as integers, they differ by adding up alone."""
    path = write_gguf_model(model, tmp_path / "m.gguf", kind)
    same = as_stored(model, kind, tmp_path / "same")
    expected = logits(load_exact, same)
    assert torch.equal(logits(load_exact, path), expected)
    if kind in EXACT:
        kept = logits(edgelm.load, path, backend="reference")
        share = share_of_range(kept, expected)
        print(f"{kind.name} as integers: {share:.2e} of the range (bound {KEPT_BOUND:.0e})")
        assert share < KEPT_BOUND


def test_config_says_the_same(model: Path, tmp_path: Path) -> None:
    """Everything that acts: sizes, windows, caps, scale, rope; BLOOM's length is llama.cpp's."""
    from dataclasses import replace

    from edgelm.models import family_of

    path = write_gguf_model(model, tmp_path / "m.gguf")
    ours, theirs = (open_checkpoint(p).config for p in (path, model))
    read = family_of(ours).read_config
    if ours["model_type"] == "bloom":
        theirs = theirs | {"seq_length": theirs["hidden_size"]}
    found, expected = read(ours), read(theirs)
    assert found.norm_eps == pytest.approx(expected.norm_eps)
    assert replace(found, norm_eps=expected.norm_eps, pad_id=expected.pad_id) == expected


def test_rows_of_q_k_v_in_any_slice(tmp_path: Path) -> None:
    """BLOOM's fused rows come back head by head wherever a read begins and ends."""
    _, folder = family("bloom", tmp_path / "hf")
    path = write_gguf_model(folder, tmp_path / "m.gguf", Type.F32)
    ours, theirs = open_checkpoint(path), open_checkpoint(folder)
    for kind in ("weight", "bias"):
        name = f"transformer.h.1.self_attention.query_key_value.{kind}"
        for start in range(0, 288, 31):
            for stop in range(start, 289, 37):
                assert torch.equal(ours.read(name, start, stop), theirs.read(name, start, stop))


def test_gemma_norms_lose_the_added_one(tmp_path: Path) -> None:
    """The loader adds 1 again: the sum is the stored number, bit for bit."""
    _, folder = family("gemma2", tmp_path / "hf")
    path = write_gguf_model(folder, tmp_path / "m.gguf", Type.F32)
    ours, theirs = open_checkpoint(path), open_checkpoint(folder)
    norms = [name for name in theirs.names() if name.endswith("norm.weight")]
    assert len(norms) == 4 * 4 + 1
    for name in norms:
        assert torch.equal(ours.read(name) + 1, theirs.read(name) + 1)
