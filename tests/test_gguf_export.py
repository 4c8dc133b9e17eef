"""GGUF files that `quantize` writes, read back by our reader, by `gguf` and by llama.cpp."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from oracle import share_of_range

import edgelm
from edgelm.checkpoint.gguf_blocks import to_blocks
from edgelm.checkpoint.gguf_kinds import KINDS, in_scheme_of, kind_for
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.quantization import converted_rows
from edgelm.quantization.gguf_export import FILE_TYPES
from quant import PackedWeight, QuantError, Scheme, dequantize, pack
from quant.methods.rtn import rtn

TEXT = "Once upon a time, there was a little girl. She said: it's 12 o'clock!"
EXACT_SHARE = 1e-6
"""Gemma's norms lose a bit of float32 when 1 is added and taken off again."""
GAP = 0.02
"""Greedy texts are compared until the two best logits are nearer than this share of the range."""


@pytest.mark.parametrize("scheme", KINDS, ids=str)
def test_blocks_are_ggml_s(scheme: Scheme) -> None:
    """gguf's own dequantizer gives the numbers that ours gives."""
    packed = rtn(torch.randn(5, 768) * torch.logspace(-6, 3, 768), scheme)
    kind = kind_for(scheme, packed.shape)
    blocks = to_blocks(in_scheme_of(kind, packed), kind)
    theirs = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
    difference = float(np.abs(theirs - dequantize(packed).numpy()).max())
    print(f"{scheme} as {kind}: largest difference {difference}")
    assert difference == 0 and float(np.abs(theirs).max()) > 0


@pytest.mark.parametrize("middle", [8, 16])
def test_a_minimum_of_extreme_super_scales(middle: int) -> None:
    """float16's smallest numbers, and the largest whose multiple it holds; not the next one."""
    scheme = Scheme.parse(f"int{middle.bit_length()}-g32-coded")
    packed = rtn(torch.randn(6, 256), scheme)
    assert packed.scales is not None and packed.supers is not None
    packed.scales[0] = torch.tensor([0, 63, 1, 62, 31, 32, 7, 40], dtype=torch.int8)
    values = [2.0**-24, -(2.0**-24), 65504 / middle, -65504 / middle, 1e-5, 0]
    packed.supers[:, 0, 0] = torch.tensor(values)
    kind = kind_for(scheme, packed.shape)
    blocks = to_blocks(in_scheme_of(kind, packed), kind).numpy()
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(theirs, dequantize(packed).numpy())
    packed.supers[3] = 65536 / middle
    with pytest.raises(QuantError, match=f"super-scale times {middle} is beyond float16.*{kind}"):
        in_scheme_of(kind, packed)


@pytest.mark.parametrize(
    ("text", "code"),
    [("int4-g32-coded", -1), ("int5-g32-coded", 64), ("iq4-g32-coded", 32), ("q5_k", -64)],
)
def test_codes_of_scales_that_a_type_lacks(text: str, code: int) -> None:
    """Ours of the same scheme may have any byte; what GGUF lacks is not written as another."""
    packed = rtn(torch.randn(2, 512), Scheme.parse(text))
    assert packed.scales is not None
    packed.scales[1, 3] = code
    kind = kind_for(packed.scheme, packed.shape)
    with pytest.raises(QuantError, match=rf"codes of scales .*{code}.*, of which {kind}"):
        to_blocks(in_scheme_of(kind, packed), kind)


@pytest.fixture
def wide(tiny_llama: Any) -> Path:
    """Rows of 256, and of 768."""
    return tiny_llama(hidden_size=256, intermediate_size=768, head_dim=64)


@pytest.mark.parametrize("scheme", KINDS, ids=str)
def test_a_file_of_every_scheme(wide: Path, tmp_path: Path, scheme: Scheme) -> None:
    """What we read back, what `gguf` reads, and what quantizing while loading gives are one."""
    done = edgelm.quantize(wide, tmp_path / "m.gguf", quant=str(scheme))
    kind, plain = KINDS[scheme], open_checkpoint(wide)
    reader, checkpoint = gguf.GGUFReader(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "m.gguf")
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    names = {
        "model.embed_tokens": "token_embd.weight", "lm_head": "output.weight",
        "model.layers.1.mlp.down_proj": "blk.1.ffn_down.weight",
    }  # fmt: skip
    for name, own in names.items():
        expected = packed(plain.read(f"{name}.weight"), scheme)
        assert torch.equal(checkpoint.read(f"{name}.weight"), expected)
        assert theirs[own].tensor_type.name == kind
        values = gguf.quants.dequantize(theirs[own].data, theirs[own].tensor_type)
        assert np.array_equal(values, expected.numpy())
    for name in ("q_proj", "k_proj"):  # in another order of rows
        full = f"model.layers.0.self_attn.{name}.weight"
        expected = packed(plain.read(full), scheme)
        assert torch.equal(checkpoint.read(full), expected)
    found = checkpoint.metadata["general.file_type"]
    assert gguf.LlamaFileType(found).name.removeprefix("MOSTLY_") in (kind, f"{kind}_M")
    stored = sum(tensor.n_bytes for tensor in reader.tensors)
    assert done.nbytes == stored
    assert done.manifest.bits_per_weight == stored * 8 / sum(t.n_elements for t in reader.tensors)
    path = tmp_path / "m.gguf"
    ours, loaded = (logits(m, q, "reference") for m, q in ((path, "auto"), (wide, str(scheme))))
    assert torch.equal(ours, loaded)


def packed(rows: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return dequantize(pack([(0, rows.float())], (rows.shape[0], rows.shape[1]), scheme)[0])


def test_the_type_of_a_file_is_the_commonest(wide: Path, tmp_path: Path) -> None:
    assert {k: gguf.LlamaFileType(v).name.split("_", 1)[1] for k, v in FILE_TYPES.items()} == {
        kind: f"{kind}_M" if kind in ("Q4_K", "Q5_K") else kind for kind in FILE_TYPES
    }
    recipe = {"default": "q4_k", "overrides": {"embed": "q6_k", "head": "q6_k", "*.v": "q5_k"}}
    edgelm.quantize(wide, tmp_path / "m.gguf", quant=recipe)
    metadata = open_checkpoint(tmp_path / "m.gguf").metadata
    assert metadata["general.file_type"] == FILE_TYPES["Q4_K"]
    assert metadata["general.type"] == "model"
    edgelm.quantize(wide, tmp_path / "floats.gguf", quant="none")
    metadata = open_checkpoint(tmp_path / "floats.gguf").metadata
    assert gguf.LlamaFileType(metadata["general.file_type"]) == gguf.LlamaFileType.ALL_F32


def test_what_is_quantized_stays_by_default(wide: Path, tmp_path: Path) -> None:
    """A mix as in Q4_K_M files becomes the same tensors again."""
    recipe = {"default": "q4_k", "overrides": {"embed": "q6_k", "head": "q6_k", "*.v": "q5_k"}}
    edgelm.quantize(wide, tmp_path / "first.gguf", quant=recipe)
    again = edgelm.quantize(tmp_path / "first.gguf", tmp_path / "again.gguf")
    assert {module.note for module in again.manifest.modules.values()} == {"kept as stored"}
    first, second = (gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in ("first", "again"))
    assert [(t.name, t.tensor_type) for t in first] == [(t.name, t.tensor_type) for t in second]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first, second, strict=True))


def logits(model: Path, quant: Any, backend: str = "auto") -> torch.Tensor:
    tokens = torch.randint(3, 150, (2, 21), generator=torch.Generator().manual_seed(3))
    with edgelm.load(model, quant=quant, method="mse", context=64, backend=backend) as lm:
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
    for text, kind, instead in (
        ("q4_k", "Q4_K", "int4-g32-zfloat or int5-g32"), ("int4-g32-coded", "Q4_K", "int5-g32"),
        ("int5-g32-coded", "Q5_K", "int5-g32-zfloat"), ("q6_k", "Q6_K", "int8-g32"),
        ("int6-g32-coded", "Q6_K", "int8-g32"), ("iq4_xs", "IQ4_XS", "iq4-g32"),
    ):  # fmt: skip
        with pytest.raises(edgelm.UsageError) as caught:
            edgelm.quantize(tiny_llama(), out, quant=text)
        print(caught.value)
        told = rf"quant: lm_head\.weight: .* in GGUF \({kind}\) .*256.*{instead}"
        assert re.search(told, str(caught.value))
    assert list(tmp_path.glob("model.gguf*")) == []
    with pytest.raises(edgelm.UnsupportedModelError, match="bloom"):
        edgelm.quantize(assets / "nano" / "helium", out)
    out.touch()
    with pytest.raises(edgelm.UsageError, match="exists"):
        edgelm.quantize(tiny_llama(), out)


def test_a_rule_goes_on_to_what_gguf_has(tiny_llama: Any, tmp_path: Path) -> None:
    """Rows of 160 have no super-scale for every 256; a scheme that GGUF lacks is passed over."""
    source = tiny_llama(hidden_size=256, intermediate_size=160)
    rules = {"default": ["q4_k", "int5-g32"], "overrides": {"*.v": ["int4-g32-zint", "q6_k"]}}
    done = edgelm.quantize(source, tmp_path / "m.gguf", quant=rules)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.1.ffn_down.weight"] == "Q5_0" and types["blk.1.attn_v.weight"] == "Q6_K"
    assert types["blk.1.ffn_up.weight"] == types["token_embd.weight"] == "Q4_K"
    modules = done.manifest.modules
    assert "rows of 160" in modules["model.layers.1.mlp.down_proj.weight"].note
    assert modules["model.layers.1.mlp.up_proj.weight"].note == ""


def test_codes_that_only_the_weights_tell(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, and OUT is not there."""

    def odd(*given: Any, **named: Any) -> PackedWeight:
        packed = converted_rows.converted_rows(*given, **named)
        if isinstance(packed, PackedWeight):
            assert packed.scales is not None
            packed.scales[0, 0] = -5
        return packed

    monkeypatch.setattr("edgelm.quantization.gguf_export.converted_rows", odd)
    with pytest.raises(edgelm.ModelFileError, match=r"tensor \w+.*weight in a GGUF.* -5 to .*Q4_K"):
        edgelm.quantize(wide, tmp_path / "m.gguf", quant="q4_k")
    assert not (tmp_path / "m.gguf").exists()


def test_a_gguf_file_keeps_its_blocks(wide: Path, tmp_path: Path) -> None:
    """From a file to a file: the same bytes of every tensor."""
    edgelm.quantize(wide, tmp_path / "a.gguf", quant="q4_k")
    edgelm.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", quant="q4_k")
    first, second = (gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors for name in "ab")
    assert [t.name for t in first] == [t.name for t in second]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first, second, strict=True))


@pytest.mark.peer
@pytest.mark.parametrize("quant", ["int8-g32", "int4-g32", "q4_k", "iq4_xs", "int6-g32-coded"])
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
