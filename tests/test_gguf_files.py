"""GGUF files: every number as gguf's own code reads it, rows in order, lies found out at once."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.checkpoint import TensorInfo, open_checkpoint
from edgelm.checkpoint.gguf_header import MAX_ARRAY_ENTRIES, read_header
from edgelm.errors import ModelFileError, UnsupportedModelError
from quant.groupwise import dequantize
from quant.scheme import Scheme

HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCAB, LAYERS = 64, 4, 2, 16, 96, 37, 2
FLOAT_TYPES = {
    Type.F32: torch.float32,
    Type.F16: torch.float16,
    Type.BF16: torch.bfloat16,
}
PACKED_TYPES = {
    Type.Q4_0: Scheme(4, 32),
    Type.Q4_1: Scheme(4, 32, "float"),
    Type.Q8_0: Scheme(8, 32),
}
LLAMA_KEYS: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 128,
    "llama.rope.freq_base": 5e5,
    "llama.rope.dimension_count": HEAD,
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def permute(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The converter's order of q and k rows: row i of a head's first half, then of its second."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).transpose(1, 2).reshape(rows.shape)


def llama_tensors(tied: bool = False, biases: bool = False) -> dict[str, tuple[torch.Tensor, str]]:
    """Random float32 weights by GGUF name, with Hugging Face's name; q and k not yet permuted."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape)

    query, keys = HEADS * HEAD, KV_HEADS * HEAD
    tensors = {"token_embd.weight": (normal(VOCAB, HIDDEN), "model.embed_tokens.weight")}
    for layer in range(LAYERS):
        here, there = f"blk.{layer}", f"model.layers.{layer}"
        for name, hf_name, shape in (
            ("attn_q", "self_attn.q_proj", (query, HIDDEN)),
            ("attn_k", "self_attn.k_proj", (keys, HIDDEN)),
            ("attn_v", "self_attn.v_proj", (keys, HIDDEN)),
            ("attn_output", "self_attn.o_proj", (HIDDEN, query)),
            ("ffn_gate", "mlp.gate_proj", (INNER, HIDDEN)),
            ("ffn_up", "mlp.up_proj", (INNER, HIDDEN)),
            ("ffn_down", "mlp.down_proj", (HIDDEN, INNER)),
        ):
            tensors[f"{here}.{name}.weight"] = (normal(*shape), f"{there}.{hf_name}.weight")
            if biases:
                tensors[f"{here}.{name}.bias"] = (normal(shape[0]), f"{there}.{hf_name}.bias")
        tensors[f"{here}.attn_norm.weight"] = (
            normal(HIDDEN),
            f"{there}.input_layernorm.weight",
        )
        tensors[f"{here}.ffn_norm.weight"] = (
            normal(HIDDEN),
            f"{there}.post_attention_layernorm.weight",
        )
    tensors["output_norm.weight"] = (normal(HIDDEN), "model.norm.weight")
    if not tied:
        tensors["output.weight"] = (normal(VOCAB, HIDDEN), "lm_head.weight")
    return tensors


def write_gguf(
    path: Path,
    tensors: dict[str, torch.Tensor],
    kind: Type = Type.F32,
    architecture: str = "llama",
    **changes: Any,
) -> Path:
    """A GGUF file by the reference writer: matrices as `kind`, vectors as float32.

    Keywords replace LLAMA_KEYS with "__" for "."; None leaves a key out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    keys = LLAMA_KEYS | {name.replace("__", "."): value for name, value in changes.items()}
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        stored = kind if tensor.ndim == 2 else Type.F32
        data = gguf.quants.quantize(tensor.numpy(), stored)
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_values(tensor: torch.Tensor, kind: Type) -> torch.Tensor:
    """What gguf's own code reads back after storing a float32 matrix as `kind`."""
    return torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind).copy()
    )


def write_llama(path: Path, kind: Type, **shape: bool) -> dict[str, torch.Tensor]:
    """Writes a Llama as the converter does; returns the expected float32 weights by HF name."""
    tensors = llama_tensors(**shape)
    expected, stored = {}, {}
    for name, (tensor, hf_name) in tensors.items():
        heads = HEADS if ".attn_q." in name else KV_HEADS if ".attn_k." in name else 0
        stored[name] = permute(tensor, heads) if heads else tensor
        expected[hf_name] = stored_values(tensor, kind) if tensor.ndim == 2 else tensor
    write_gguf(path, stored, kind)
    return expected


@pytest.mark.parametrize("kind", [*FLOAT_TYPES, *PACKED_TYPES], ids=lambda kind: kind.name)
def test_every_weight_of_every_type(tmp_path: Path, kind: Type) -> None:
    expected = write_llama(tmp_path / "m.gguf", kind, biases=True)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.format == "gguf"
    assert sorted(checkpoint.names()) == sorted(expected)
    for name, tensor in expected.items():
        read = checkpoint.read(name)
        dtype = FLOAT_TYPES.get(kind, torch.float32) if tensor.ndim == 2 else torch.float32
        assert read.dtype == dtype and torch.equal(read.float(), tensor), name


@pytest.mark.parametrize("kind", PACKED_TYPES, ids=lambda kind: kind.name)
def test_packed_rows_are_exact(tmp_path: Path, kind: Type) -> None:
    expected = write_llama(tmp_path / "m.gguf", kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    for name, tensor in expected.items():
        if tensor.ndim != 2:
            continue
        for start, stop in ((0, None), (3, 21), (17, 18)):
            packed = checkpoint.read_packed(name, start, stop)
            rows = tensor[start:stop]
            assert packed.scheme == PACKED_TYPES[kind] and packed.shape == tuple(rows.shape)
            assert torch.equal(dequantize(packed), rows), (name, start, stop)


def test_extreme_blocks_of_q4_and_q8() -> None:
    """All byte values in the codes, negative and tiny scales: no bit may be lost or moved."""
    from edgelm.checkpoint.gguf_files import _take_apart
    from quant.packing import PackedWeight

    generator = np.random.default_rng(1)
    for kind, scheme in PACKED_TYPES.items():
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = generator.integers(0, 256, (50, 6, size), dtype=np.uint8)
        scales = generator.standard_normal((50, 6, 2)).astype(np.float16)
        scales[0, 0] = [6e-8, -65504]
        floats = 2 if kind == Type.Q4_1 else 1
        blocks[..., : 2 * floats] = scales[..., :floats].copy().view(np.uint8)
        raw = blocks.reshape(50, -1)
        packed = PackedWeight.empty((50, 192), scheme)
        _take_apart(torch.from_numpy(raw.copy()), packed)
        expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
        assert torch.equal(dequantize(packed), expected), kind.name


@pytest.mark.parametrize("kind", [Type.F16, Type.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_any_slice_of_permuted_rows(tmp_path: Path, kind: Type, name: str) -> None:
    expected = write_llama(tmp_path / "m.gguf", kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    name = f"model.layers.1.self_attn.{name}.weight"
    rows = expected[name]
    for start in range(0, len(rows), 3):
        for stop in range(start + 1, len(rows) + 1, 5):
            read = checkpoint.read(name, start, stop).float()
            assert torch.equal(read, rows[start:stop]), (start, stop)


def test_permutation_turns_interleaved_rotation_into_halves() -> None:
    """Why q and k are permuted: rotating neighbours in ggml's order is rotating halves in HF's."""
    size = 8
    vector, angles = torch.randn(size), torch.rand(size // 2)
    first, second = vector[: size // 2], vector[size // 2 :]
    halves = torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ]
    )
    pairs = permute(vector, heads=1).view(-1, 2)
    even, odd = pairs[:, 0], pairs[:, 1]
    rotated = torch.stack(
        [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()], dim=1
    )
    assert torch.equal(permute(halves, heads=1), rotated.flatten())


def test_info_comes_from_the_header(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", Type.Q4_1)
    info = open_checkpoint(tmp_path / "m.gguf").info
    assert info("model.norm.weight") == TensorInfo((HIDDEN,), "float32", None, 4 * HIDDEN)
    scheme = Scheme(4, 32, "float")
    shape = (INNER, HIDDEN)
    expected = TensorInfo(shape, "Q4_1", scheme, INNER * HIDDEN // 32 * 20)
    assert info("model.layers.1.mlp.up_proj.weight") == expected
    assert expected.nbytes == scheme.nbytes(shape)
    with pytest.raises(KeyError):
        info("blk.0.attn_q.weight")


def test_floats_are_not_packed_and_rows_have_an_end(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", Type.F16)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(TypeError):
        checkpoint.read_packed("lm_head.weight")
    with pytest.raises(IndexError):
        checkpoint.read("lm_head.weight", 0, VOCAB + 1)


def config_of(path: Path, tied: bool = False, **changes: Any) -> dict[str, Any]:
    tensors = {name: tensor for name, (tensor, _) in llama_tensors(tied).items()}
    return open_checkpoint(write_gguf(path / "m.gguf", tensors, **changes)).config


def test_config_in_hugging_face_words(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config.pop("rms_norm_eps") == pytest.approx(1e-5, rel=1e-6)
    assert config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": 128,
        "rope_theta": 5e5,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_optional_keys(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        tied=True,
        llama__attention__head_count_kv=None,
        llama__rope__freq_base=None,
        llama__rope__dimension_count=None,
        llama__rope__scaling__type="linear",
        llama__rope__scaling__factor=4.0,
        tokenizer__ggml__eot_token_id=5,
        tokenizer__ggml__padding_token_id=0,
    )
    expected = {
        "num_key_value_heads": HEADS,
        "rope_theta": 10000.0,
        "head_dim": HEAD,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "tie_word_embeddings": True,
        "eos_token_id": [2, 5],
        "pad_token_id": 0,
    }
    assert {key: config[key] for key in expected} == expected


def test_yarn(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=4.0,
        llama__rope__scaling__original_context_length=32,
    )
    assert config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }


def rope_factors(theta: float, size: int, factor: float) -> torch.Tensor:
    """Llama 3.1's frequency divisors as transformers computes its frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=size, num_attention_heads=1, max_position_embeddings=131072)
    config.rope_parameters = scaling
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled


def test_llama3_scaling_from_its_table(tmp_path: Path) -> None:
    factors = rope_factors(5e5, HEAD, 32.0)
    print("divisors", factors.tolist())
    path = write_gguf(tmp_path / "m.gguf", {"rope_freqs.weight": factors})
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == []
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@pytest.mark.parametrize("change", [lambda f: f * 1.01, lambda f: f[:-1], lambda f: f.flip(0)])
def test_other_rope_tables_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    factors = change(rope_factors(5e5, HEAD, 32.0)).contiguous()
    path = write_gguf(tmp_path / "m.gguf", {"rope_freqs.weight": factors})
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        _ = open_checkpoint(path).config


def test_padded_vocabulary_counts_the_embedding(tmp_path: Path) -> None:
    config = config_of(tmp_path, tokenizer__ggml__tokens=["a", "b", "c"])
    assert config["vocab_size"] == VOCAB


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("llama.rope.scaling.type", "longrope", UnsupportedModelError),
        ("llama.rope.dimension_count", HEAD // 2, UnsupportedModelError),
        ("llama.expert_count", 8, UnsupportedModelError),
        ("llama.attention.causal", False, UnsupportedModelError),
        ("llama.attention.value_length", 8, UnsupportedModelError),
        ("llama.block_count", None, ModelFileError),
        ("llama.embedding_length", 0, ModelFileError),
        ("llama.context_length", "long", ModelFileError),
        ("llama.context_length", True, ModelFileError),
        ("llama.feed_forward_length", [96, 96], ModelFileError),
        ("llama.attention.layer_norm_rms_epsilon", "small", ModelFileError),
        ("tokenizer.ggml.eos_token_id", "end", ModelFileError),
    ],
)
def test_keys_that_stop_the_load(
    tmp_path: Path, key: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=key.replace(".", r"\.") if value != 0 else "m.gguf"):
        config_of(tmp_path, **{key.replace(".", "__"): value})


@pytest.mark.parametrize("heads", [0, 3, 5])
def test_heads_that_do_not_divide_the_rows(tmp_path: Path, heads: int) -> None:
    with pytest.raises(ModelFileError, match=rf"{heads} heads"):
        config_of(tmp_path, llama__attention__head_count=heads)


def test_unknown_architecture_and_tensor(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": torch.zeros(VOCAB, HIDDEN)}
    path = write_gguf(tmp_path / "m.gguf", tensors, architecture="mamba")
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama"):
        open_checkpoint(path)
    for name in ("blk.0.ffn_gate_exps.weight", "blk.00.attn_q.weight", "output.scale", "blk.0"):
        path = write_gguf(tmp_path / "m.gguf", tensors | {name: torch.zeros(2, 64)})
        with pytest.raises(UnsupportedModelError, match=name):
            open_checkpoint(path)


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    tensors = {"output.weight": torch.zeros(4, 256)}
    path = write_gguf(tmp_path / "m.gguf", tensors, Type.Q5_0)
    with pytest.raises(UnsupportedModelError, match=r"'output\.weight' is of type Q5_0.*Q4_0"):
        open_checkpoint(path)


def test_quantized_vector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = {"general.architecture": "llama"}
    path.write_bytes(header(keys, [("output_norm.weight", (32,), 8, 0)]) + bytes(34))
    with pytest.raises(UnsupportedModelError, match=r"only matrices"):
        open_checkpoint(path)


def test_vocabularies_open_without_weights(assets: Path) -> None:
    for name, tokens in (("llama-spm", 32000), ("gpt-2", 50257)):
        checkpoint = open_checkpoint(assets / "vocab" / f"ggml-vocab-{name}.gguf")
        assert checkpoint.names() == []
        assert len(checkpoint.metadata["tokenizer.ggml.tokens"]) == tokens
        reader = gguf.GGUFReader(assets / "vocab" / f"ggml-vocab-{name}.gguf")
        for key, value in checkpoint.metadata.items():
            assert value == reader.fields[key].contents(), key
    with pytest.raises(UnsupportedModelError, match=r"'gpt2'"):
        _ = checkpoint.config


# From here on: headers that lie. They are written by hand, since the reference writer cannot lie.

SIZES = {4: "I", 6: "f", 7: "B", 10: "Q"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key_value(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def tensor_info(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    layout = f"<I{len(dims)}QIQ"
    return text(name) + struct.pack(layout, len(dims), *dims, kind, offset)


def header(
    keys: dict[str, str] | None = None,
    tensors: list[tuple[str, tuple[int, ...], int, int]] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    extra_keys: list[bytes] | None = None,
) -> bytes:
    """A header padded to 32 bytes; `counts` overrides the numbers of tensors and keys."""
    pairs = [key_value(key, 8, text(value)) for key, value in (keys or {}).items()]
    pairs += extra_keys or []
    infos = [tensor_info(*tensor) for tensor in tensors or []]
    tensor_count = len(infos) if counts[0] is None else counts[0]
    key_count = len(pairs) if counts[1] is None else counts[1]
    raw = magic + struct.pack("<IQQ", version, tensor_count, key_count)
    raw += b"".join(pairs) + b"".join(infos)
    return raw + bytes(-len(raw) % 32)


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return key_value("a", 9, struct.pack("<IQ", kind, count) + raw)


HUGE = 1 << 60
W = ("w", (4, 4), 0, 0)
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "short": b"GGUF\3\0\0\0",
    "magic": header(magic=b"GGML"),
    "zeros": bytes(4096),
    "tensor-count": header(counts=(HUGE, None)),
    "tensor-count-max": header(counts=(2**64 - 1, None)),
    "key-count": header(counts=(None, HUGE)),
    "one-key-too-many": header({"a": "b"}, counts=(None, 2)),
    "key-length": header(extra_keys=[struct.pack("<Q", HUGE)]),
    "key-length-max": header(extra_keys=[struct.pack("<Q", 2**64 - 1)]),
    "key-encoding": header(extra_keys=[key_value("a", 8, text("x")).replace(b"a", b"\xff", 1)]),
    "key-twice": header(extra_keys=[key_value("a", 8, text("x"))] * 2),
    "value-type": header(extra_keys=[key_value("a", 13, bytes(8))]),
    "value-length": header(extra_keys=[key_value("a", 8, struct.pack("<Q", HUGE))]),
    "value-encoding": header(extra_keys=[key_value("a", 8, text(b"\xc3"))]),
    "value-bool": header(extra_keys=[key_value("a", 7, b"\2")]),
    "array-of-arrays": header(extra_keys=[array(9, 1, struct.pack("<IQ", 4, 0))]),
    "array-type": header(extra_keys=[array(99, 1, bytes(8))]),
    "array-count": header(extra_keys=[array(4, HUGE)]),
    "array-count-max": header(extra_keys=[array(0, 2**64 - 1)]),
    "array-of-strings-count": header(extra_keys=[array(8, HUGE)]),
    "array-of-strings-length": header(extra_keys=[array(8, 2, text("x") + b"\xff" * 8)]),
    "array-of-strings-encoding": header(extra_keys=[array(8, 1, text(b"\xff"))]),
    "array-of-strings-cut": header(extra_keys=[array(8, 4, text("x" * 40))]),
    "array-of-bools": header(extra_keys=[array(7, 2, b"\1\7")]),
    "array-entries": header(extra_keys=[array(0, MAX_ARRAY_ENTRIES + 1)])
    + bytes(MAX_ARRAY_ENTRIES + 1),
    "alignment-zero": header(extra_keys=[key_value("general.alignment", 4, bytes(4))]),
    "alignment-odd": header(extra_keys=[key_value("general.alignment", 4, struct.pack("<I", 48))]),
    "alignment-text": header({"general.alignment": "32"}),
    "alignment-huge": header(
        None, [W], extra_keys=[key_value("general.alignment", 10, struct.pack("<Q", 1 << 63))]
    )
    + bytes(64),
    "tensor-twice": header(None, [W, W]) + bytes(64),
    "tensor-name-length": header(counts=(1, None)) + struct.pack("<Q", HUGE) + bytes(64),
    "dimensions-none": header(None, [("w", (), 0, 0)]) + bytes(64),
    "dimensions-five": header(None, [("w", (1,) * 5, 0, 0)]) + bytes(64),
    "dimensions-huge": header(counts=(1, None))[:24]
    + text("w")
    + struct.pack("<I", 2**32 - 1)
    + bytes(64),
    "size-zero": header(None, [("w", (4, 0), 0, 0)]) + bytes(64),
    "size-huge": header(None, [("w", (HUGE, HUGE), 0, 0)]) + bytes(64),
    "size-wraps": header(None, [("w", (1 << 32, 1 << 32), 0, 0)]) + bytes(64),
    "half-block": header(None, [("w", (48, 2), 2, 0)]) + bytes(64),
    "offset-huge": header(None, [("w", (4, 4), 0, HUGE)]) + bytes(64),
    "offset-max": header(None, [("w", (4, 4), 0, 2**64 - 32)]) + bytes(64),
    "offset-unaligned": header(None, [("w", (4, 4), 0, 4)]) + bytes(128),
    "overlap": header(None, [W, ("v", (4, 4), 0, 32)]) + bytes(128),
    "same-place": header(None, [W, ("v", (4, 4), 0, 0)]) + bytes(128),
    "weights-cut": header(None, [W]) + bytes(63),
}
FOREIGN: dict[str, bytes] = {
    "version-1": header(version=1),
    "version-4": header(version=4),
    "big-endian": header(version=3 << 24),
    "tensor-type": header(None, [("w", (4, 4), 4_000_000_000, 0)]) + bytes(64),
    "type-q4_k": header(None, [("w", (256, 4), 12, 0)]) + bytes(4096),
}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        *(pytest.param(raw, ModelFileError, id=name) for name, raw in DAMAGED.items()),
        *(pytest.param(raw, UnsupportedModelError, id=name) for name, raw in FOREIGN.items()),
    ],
)
def test_lying_headers_cost_nothing(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    """Each lie ends in one error of its class, at once and without memory in the lie's size."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=r"m\.gguf") as caught:
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak} bytes: {caught.value}")
    assert peak < 1 << 20


def test_honest_headers_are_read(tmp_path: Path) -> None:
    """What the lies above were made from opens: the tests fail for the lie, not for the frame."""
    path = tmp_path / "m.gguf"
    for version in (2, 3):
        path.write_bytes(header({"a": "b"}, [W, ("v", (8,), 0, 64)], version=version) + bytes(96))
        read = read_header(path)
        assert read.metadata == {"a": "b"}
        assert [read.tensors[name].shape for name in ("w", "v")] == [(4, 4), (8,)]
        assert read.tensors["v"].offset == path.stat().st_size - 32
    values = [array(kind, 2, struct.pack(f"<2{code}", 1, 0)) for kind, code in SIZES.items()]
    for value, expected in zip(values, ([1, 0], [1.0, 0.0], [True, False], [1, 0]), strict=True):
        path.write_bytes(header(extra_keys=[value]))
        found = read_header(path).metadata["a"]
        assert found == expected and type(found[0]) is type(expected[0])


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = {"llama.block_count": None, "tokenizer.ggml.tokens": ["a", "bc", "def"]}
    changes = {key.replace(".", "__"): value for key, value in keys.items()}
    write_gguf(path, {"output_norm.weight": torch.ones(8)}, **changes)
    content = path.read_bytes()
    end = content.rindex(np.ones(8, dtype="<f4").tobytes()) + 32
    for kept in range(end):
        path.write_bytes(content[:kept])
        with pytest.raises(ModelFileError):
            open_checkpoint(path)
    path.write_bytes(content[:end])
    assert open_checkpoint(path).names() == ["model.norm.weight"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash(data: st.DataObject) -> None:
    """Any three bytes of a header replaced: a sound read or an error of ours, nothing else."""
    import tempfile

    good = header(
        {"general.architecture": "llama"},
        [("output_norm.weight", (8,), 0, 0), ("output.weight", (32, 2), 2, 32)],
        extra_keys=[array(8, 2, text("ab") + text("c")), array(4, 2, bytes(8))][:1],
    ) + bytes(96)
    content = bytearray(good)
    for _ in range(3):
        content[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.names():
                checkpoint.read(name)
            _ = checkpoint.config
        except (ModelFileError, UnsupportedModelError):
            pass


def test_a_large_vocabulary_opens_fast(tmp_path: Path) -> None:
    """50,000 tokens with scores, types and merges: under 0.3 s, the bound of the interface."""
    tokens = [f"token{i}" for i in range(50_000)]
    path = write_gguf(
        tmp_path / "m.gguf",
        {},
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__scores=[0.5] * 50_000,
        tokenizer__ggml__token_type=[1] * 50_000,
        tokenizer__ggml__merges=[f"{token} x" for token in tokens],
    )
    start = time.perf_counter()
    metadata = open_checkpoint(path).metadata
    seconds = time.perf_counter() - start
    print(f"opened in {seconds:.3f} s")
    assert metadata["tokenizer.ggml.tokens"] == tokens
    assert seconds < 0.3


def test_reading_leaves_no_file_page_resident(tmp_path: Path) -> None:
    """Packed rows of a 72 MB matrix, block by block: the peak may grow by 16 MiB, no more."""
    rows, inputs = 32768, 4096
    info = header({"general.architecture": "llama"}, [("output.weight", (inputs, rows), 2, 0)])
    with (tmp_path / "m.gguf").open("wb") as file:
        file.write(info)
        file.truncate(len(info) + rows * inputs // 32 * 18)
    code = f"""
import resource
from pathlib import Path
from edgelm.checkpoint import open_checkpoint
checkpoint = open_checkpoint(Path({str(tmp_path / "m.gguf")!r}))
checkpoint.read_packed("lm_head.weight", 0, 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, {rows}, 512):
    checkpoint.read_packed("lm_head.weight", start, start + 512)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    growth_mib = int(done.stdout) / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(f"peak grew by {growth_mib:.1f} MiB over 72 MB of blocks")
    assert growth_mib < 16
