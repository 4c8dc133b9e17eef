"""GGUF files that `quantize` writes, read back by our reader, by `gguf` and by llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from oracle import share_of_range

import edgelm
from edgelm.checkpoint.gguf_writer import KINDS, to_blocks
from edgelm.checkpoint.opening import open_checkpoint
from quant import Scheme, dequantize
from quant.methods.rtn import rtn

TEXT = "Once upon a time, there was a little girl. She said: it's 12 o'clock!"
EXACT_SHARE = 1e-6
"""Gemma's norms lose a bit of float32 when 1 is added and taken off again."""
GAP = 0.02
"""Greedy texts are compared until the two best logits are nearer than this share of the range."""


@pytest.mark.parametrize("scheme", KINDS, ids=str)
def test_blocks_are_ggml_s(scheme: Scheme) -> None:
    """gguf's own dequantizer gives the numbers that ours gives."""
    packed = rtn(torch.randn(5, 96), scheme)
    kind = gguf.GGMLQuantizationType[KINDS[scheme]]
    theirs = gguf.quants.dequantize(to_blocks(packed).numpy(), kind)
    assert np.array_equal(theirs, dequantize(packed).numpy())


def logits(model: Path, quant: Any) -> torch.Tensor:
    tokens = torch.randint(3, 150, (2, 21), generator=torch.Generator().manual_seed(3))
    with edgelm.load(model, quant=quant, context=64) as lm:
        return lm.forward(tokens).logits


@pytest.mark.parametrize("quant", ["int8-g32", "int4-g32"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_same_logits_and_tokens(assets: Path, tmp_path: Path, family: str, quant: str) -> None:
    source, out = assets / "nano" / family, tmp_path / "model.gguf"
    done = edgelm.quantize(source, out, quant=quant)
    share = share_of_range(logits(out, "auto"), logits(source, quant))
    print(f"{family} {quant}: {done.manifest.bits_per_weight:.2f} bits, {share:.1e} of the range")
    assert share <= (EXACT_SHARE if family == "gemma2" else 0)
    with edgelm.load(out) as ours, edgelm.load(source, quant="none") as theirs:
        assert ours.encode(TEXT) == theirs.encode(TEXT)
        assert ours.end_ids == theirs.end_ids


def test_folder_to_gguf_keeps_the_integers(assets: Path, tmp_path: Path) -> None:
    edgelm.quantize(assets / "nano" / "llama", tmp_path / "folder", quant="int4-g32")
    done = edgelm.quantize(tmp_path / "folder", tmp_path / "model.gguf", quant="int4-g32")
    assert {module.note for module in done.manifest.modules.values()} == {"kept as stored"}
    assert torch.equal(logits(tmp_path / "model.gguf", "auto"), logits(tmp_path / "folder", "auto"))


def test_llama3_scaling_survives(tiny_llama: Any, tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    source = tiny_llama(rope_theta=500000.0, rope_scaling=scaling)
    edgelm.quantize(source, tmp_path / "model.gguf", quant="none")
    assert open_checkpoint(tmp_path / "model.gguf").config["rope_scaling"] == scaling
    assert torch.equal(logits(tmp_path / "model.gguf", "none"), logits(source, "none"))


def test_what_gguf_cannot_hold_is_refused(assets: Path, tiny_llama: Any, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    with pytest.raises(edgelm.UsageError, match="no GGUF block type"):
        edgelm.quantize(tiny_llama(), out, quant="int4-g32-zint")
    with pytest.raises(edgelm.UnsupportedModelError, match="bloom"):
        edgelm.quantize(assets / "nano" / "helium", out)
    out.touch()
    with pytest.raises(edgelm.UsageError, match="exists"):
        edgelm.quantize(tiny_llama(), out)


@pytest.mark.peer
@pytest.mark.parametrize("quant", ["int8-g32", "int4-g32"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_llama_cpp_says_the_same(assets: Path, tmp_path: Path, family: str, quant: str) -> None:
    """64 greedy tokens, as far as the gap between the two best logits allows."""
    llama_cpp = pytest.importorskip("llama_cpp")
    out = tmp_path / "model.gguf"
    edgelm.quantize(assets / "nano" / family, out, quant=quant)
    peer = llama_cpp.Llama(str(out), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    with edgelm.load(out, context=128, backend="reference") as lm:
        ids = lm.encode(TEXT)
        assert peer.tokenize(TEXT.encode(), add_bos=lm.tokenizer.add_bos) == ids
        ours = list(lm.generate(ids, max_new_tokens=64, temperature=0.0).token_ids)
        every = torch.tensor([[*ids, *ours]])
        scores = lm.forward(every).logits[0, len(ids) - 1 : -1]
    theirs = []
    for token in peer.generate(ids, temp=0.0, top_k=1):
        theirs.append(token)
        if len(theirs) == len(ours):
            break
    best = scores.topk(2, dim=-1).values
    clear = (best[:, 0] - best[:, 1]) / (scores.max() - scores.min()) > GAP
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
    print(f"{family} {quant}: equal for {len(ours) if first is None else first} of {len(ours)}")
    assert first is None or not clear[first]
