"""ggml's block types: each is held as gguf's own code reads it, or quantized anew with a word."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import SCALES_AT, random_rows
from test_gguf_files import LLAMA_KEYS, permute

import edgelm
from edgelm.checkpoint import gguf_blocks, gguf_low_bits
from edgelm.checkpoint.gguf_blocks import NEAREST, to_blocks
from edgelm.checkpoint.gguf_files import SCHEMES
from edgelm.checkpoint.gguf_header import TYPES, read_header
from edgelm.checkpoint.opening import open_checkpoint
from quant.groupwise import dequantize
from quant.packing import PackedWeight, unpack_codes

HIDDEN, INNER, VOCAB, HEADS = 256, 512, 40, 4
FLOOR_DB = {8: 42, 4: 22}
"""Blocks quantized anew to 8 and to 4 bits, against what the file holds."""

BLOCK_TYPES = [kind for kind in Type if kind.name in SCHEMES | NEAREST]


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


def test_the_tables_are_those_of_gguf() -> None:
    """Sizes as gguf has them, and a decision for everything that it can read."""
    known = {Type(number): (kind.block, kind.block_bytes) for number, kind in TYPES.items()}
    assert known == {kind: gguf.GGML_QUANT_SIZES[kind] for kind in known}
    readable = {kind.name for kind in gguf.quants._type_traits} - {"BF16"}
    assert readable == set(SCHEMES) | set(NEAREST)
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
        assert info.dtype == kind.name and info.scheme == SCHEMES.get(kind.name)
        if kind.name in SCHEMES:
            assert torch.equal(dequantize(checkpoint.read_packed(name)), values)
            assert torch.equal(dequantize(checkpoint.read_packed(name, 3, 17)), values[3:17])


EXTREME = (6e-8, -6e-8, 65504, -65504, 0, -1.5, 1e-5)
"""Scales and super-scales: float16's smallest and largest numbers, zero, a common one, a small."""
SCALE_CODES = {"Q6_K": (-128, 127), "IQ4_XS": (-32, 31), "Q2_K": (0, 15), "Q3_K": (-32, 31)}
HELD = [kind for kind in BLOCK_TYPES if kind.name in SCHEMES]


def extreme_blocks(kind: Type) -> np.ndarray:
    """uint8 [301, bytes]: each of EXTREME in every field under random codes and the same one.

    The last rows have all bits of their codes, and codes of scales, set or unset.
    """
    generator, size = np.random.default_rng(int(kind)), gguf.GGML_QUANT_SIZES[kind][1]
    blocks = generator.integers(0, 256, (301, len(EXTREME), size), dtype=np.uint8)
    blocks[-4:-2], blocks[-2:] = 0, 255
    for turn, place in enumerate(SCALES_AT.get(kind.name, (0,))):
        scales = np.array(EXTREME, np.float16)[None].repeat(301, 0)
        scales[1::2] = np.roll(scales[1::2], turn, axis=1)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(301, -1)


@pytest.mark.parametrize("kind", HELD, ids=lambda kind: kind.name)
def test_extreme_blocks_are_held_value_for_value(kind: Type) -> None:
    """And go back into the file's bytes, where that type is written."""
    raw, scheme = extreme_blocks(kind), SCHEMES[kind.name]
    packed = PackedWeight.empty((301, gguf.GGML_QUANT_SIZES[kind][0] * len(EXTREME)), scheme)
    low = kind.name in gguf_low_bits.SCHEMES
    part = gguf_low_bits if low else gguf_blocks
    part.take_apart(torch.from_numpy(raw.copy()), kind.name, packed)
    values = dequantize(packed)
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    print(f"{kind.name} as {scheme}: largest difference {float((values - expected).abs().max())}")
    assert torch.equal(values, expected)
    codes = unpack_codes(packed.qweight, scheme, torch.empty(packed.shape, dtype=torch.int16))
    least, most = {"Q2_K": (0, 3), "Q3_K": (4, 11)}.get(kind.name, scheme.code_range)
    assert codes.unique().tolist() == list(range(least, most + 1))
    if scheme.coded:
        assert packed.scales is not None
        least, most = SCALE_CODES.get(kind.name, (0, 63))
        assert packed.scales.unique().tolist() == list(range(least, most + 1))
    assert low or np.array_equal(to_blocks(packed, kind.name).numpy(), raw)


@pytest.mark.parametrize("kind", HELD, ids=lambda kind: kind.name)
def test_one_row_of_one_block(kind: Type) -> None:
    raw = torch.from_numpy(random_rows(kind, 3, gguf.GGML_QUANT_SIZES[kind][0]))[1:2]
    packed = PackedWeight.empty((1, gguf.GGML_QUANT_SIZES[kind][0]), SCHEMES[kind.name])
    low = kind.name in gguf_low_bits.SCHEMES
    (gguf_low_bits if low else gguf_blocks).take_apart(raw, kind.name, packed)
    assert np.array_equal(dequantize(packed).numpy(), gguf.quants.dequantize(raw.numpy(), kind))
    assert low or torch.equal(to_blocks(packed, kind.name), raw)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("kind", HELD, ids=lambda kind: kind.name)
def test_scales_that_are_no_numbers(tmp_path: Path, kind: Type, value: float) -> None:
    for place in SCALES_AT.get(kind.name, (0,)):
        path = tmp_path / f"{place}.gguf"
        write(path, kind)
        stored = read_header(path).tensors["blk.0.ffn_down.weight"]
        content = bytearray(path.read_bytes())
        at = stored.offset + stored.nbytes - stored.type.block_bytes + place  # in the last block
        content[at : at + 2] = np.float16(value).tobytes()
        path.write_bytes(content)
        name = "model.layers.0.mlp.down_proj.weight"
        checkpoint = open_checkpoint(path)
        checkpoint.read(name, 0, HIDDEN - 1)
        told = rf"{place}\.gguf: tensor blk\.0\.ffn_down\.weight \({kind.name}\).*NaN or infinite"
        for read in (checkpoint.read, checkpoint.read_packed):
            with pytest.raises(edgelm.ModelFileError, match=told):
                read(name)
        with pytest.raises(edgelm.ModelFileError, match=told):
            edgelm.load(path, context=16)


@pytest.mark.parametrize("kind", HELD, ids=lambda kind: kind.name)
def test_blocks_cut_short(tmp_path: Path, kind: Type) -> None:
    write(tmp_path / "m.gguf", kind)
    stored = max(read_header(tmp_path / "m.gguf").tensors.values(), key=lambda t: t.offset)
    content = (tmp_path / "m.gguf").read_bytes()[: stored.offset + stored.nbytes - 1]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(edgelm.ModelFileError, match=r"damaged or was cut off"):
        open_checkpoint(tmp_path / "m.gguf")


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
    scheme = SCHEMES.get(kind.name) or NEAREST[kind.name]
    assert {module.scheme for module in modules} == {scheme}
    warnings = [r.getMessage() for r in caplog.records if "requantized" in r.getMessage()]
    if kind.name in SCHEMES:
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
