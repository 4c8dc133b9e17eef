"""ggml's block types: each reads as gguf's own code does, and none is quantized anew unseen."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import random_rows
from test_gguf_files import LLAMA_KEYS, permute

import edgelm
from edgelm.checkpoint.gguf_blocks import EXACT, NEAREST, PACKED
from edgelm.checkpoint.gguf_header import TYPES
from edgelm.checkpoint.opening import open_checkpoint
from quant.groupwise import dequantize

HIDDEN, INNER, VOCAB, HEADS = 256, 512, 40, 4
Q4_K_FLOOR_DB = 60
"""Q4_K against its packing with scales rounded to float16."""
FLOOR_DB = {8: 42, 4: 22}
"""Blocks quantized anew to 8 and to 4 bits, against what the file holds."""

BLOCK_TYPES = [kind for kind in Type if kind.name in EXACT | PACKED | NEAREST]


def write(path: Path, kind: Type) -> dict[str, torch.Tensor]:
    """A Llama of one layer with every matrix of `kind`; returns float32 matrices by HF name."""
    query = HIDDEN
    matrices = {
        "token_embd": ("model.embed_tokens", VOCAB, HIDDEN),
        "blk.0.attn_q": ("model.layers.0.self_attn.q_proj", query, HIDDEN),
        "blk.0.attn_k": ("model.layers.0.self_attn.k_proj", query // 2, HIDDEN),
        "blk.0.attn_v": ("model.layers.0.self_attn.v_proj", query // 2, HIDDEN),
        "blk.0.attn_output": ("model.layers.0.self_attn.o_proj", HIDDEN, query),
        "blk.0.ffn_gate": ("model.layers.0.mlp.gate_proj", INNER, HIDDEN),
        "blk.0.ffn_up": ("model.layers.0.mlp.up_proj", INNER, HIDDEN),
        "blk.0.ffn_down": ("model.layers.0.mlp.down_proj", HIDDEN, INNER),
    }
    sizes = {"block_count": 1, "embedding_length": HIDDEN, "feed_forward_length": INNER}
    keys = LLAMA_KEYS | {f"llama.{key}": value for key, value in sizes.items()}
    keys |= {"llama.rope.dimension_count": HIDDEN // HEADS}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    expected = {}
    for name, (hf_name, rows, inputs) in matrices.items():
        raw = random_rows(kind, rows, inputs)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=kind)
        values = torch.from_numpy(gguf.quants.dequantize(raw, kind).copy())
        heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": HEADS // 2}.get(name)
        if heads:  # undone: the file's rows are pairs, ours are halves
            place = permute(torch.arange(rows)[:, None], heads)[:, 0]
            values = values[torch.argsort(place)]
        expected[f"{hf_name}.weight"] = values
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def decibels(ours: torch.Tensor, reference: torch.Tensor) -> float:
    noise = (ours.double() - reference.double()).square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise))


def test_the_tables_are_those_of_gguf() -> None:
    """Sizes as gguf has them, and a decision for everything that it can read."""
    known = {Type(number): (kind.block, kind.block_bytes) for number, kind in TYPES.items()}
    assert known == {kind: gguf.GGML_QUANT_SIZES[kind] for kind in known}
    readable = {kind.name for kind in gguf.quants._type_traits} - {"BF16"}
    assert readable == set(PACKED) | set(NEAREST)
    assert {Type(number).name for number in TYPES} == readable | {"F32", "F16", "BF16"}


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_reads_as_gguf_does(tmp_path: Path, kind: Type) -> None:
    expected = write(tmp_path / "m.gguf", kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    for name, values in expected.items():
        assert bool(torch.isfinite(values).all()) and float(values.std()) > 0
        assert torch.equal(checkpoint.read(name), values)
        assert torch.equal(checkpoint.read(name, 3, 17), values[3:17])
        info = checkpoint.info(name)
        assert info.dtype == kind.name and (info.scheme is None) == (kind.name in NEAREST)
        if kind.name in EXACT:
            assert torch.equal(dequantize(checkpoint.read_packed(name)), values)
        elif kind.name in PACKED:
            ratio = decibels(dequantize(checkpoint.read_packed(name)), values)
            print(f"{kind.name} with float16 scales: {ratio:.1f} dB (floor {Q4_K_FLOOR_DB})")
            assert ratio > Q4_K_FLOOR_DB


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_auto_says_what_it_made(
    tmp_path: Path, kind: Type, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "m.gguf", kind)
    with (
        caplog.at_level(logging.WARNING, "edgelm"),
        edgelm.load(tmp_path / "m.gguf", context=16) as lm,
    ):
        modules = lm.report.modules
        assert bool(torch.isfinite(lm.forward(torch.tensor([[1, 2, 3]])).logits).all())
    scheme = PACKED.get(kind.name) or NEAREST[kind.name]
    assert {module.scheme for module in modules} == {scheme}
    warnings = [r.getMessage() for r in caplog.records if "requantized" in r.getMessage()]
    if kind.name in PACKED:
        assert {module.note for module in modules} == {f"kept as stored ({kind.name})"}
        assert not warnings
        return
    assert {module.note for module in modules} == {f"requantized from {kind.name}"}
    [warning] = warnings
    assert f"({kind.name})" in warning and str(scheme) in warning
    worst = min(module.error_db for module in modules)
    print(f"{kind.name} as {scheme}: {worst:.1f} dB (floor {FLOOR_DB[scheme.bits]})")
    assert worst > FLOOR_DB[scheme.bits]


def test_other_bits_are_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recipe wins over what the file's type would become."""
    write(tmp_path / "m.gguf", Type.Q6_K)
    with edgelm.load(tmp_path / "m.gguf", context=16, quant="int8-g64") as lm:
        assert {str(module.scheme) for module in lm.report.modules} == {"int8-g64"}
        assert lm.plan.scheme == "int8-g64"
    assert "quantized already and are quantized again" in caplog.text
