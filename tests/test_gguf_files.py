"""GGUF files: every number as gguf's own code reads it, rows and config in our order and words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
import torch
from calls import count_calls
from gguf import GGMLQuantizationType as Type

from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.protocol import TensorInfo
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
    Type.Q5_0: Scheme(5, 32),
    Type.Q5_1: Scheme(5, 32, "float"),
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
        ("llama.feed_forward_length", [96, 64], ModelFileError),
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
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("output.weight", np.zeros((4, 256), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=r"'output\.weight' is of type I32.*Q4_0"):
        open_checkpoint(tmp_path / "m.gguf")


def test_file_that_vanishes_or_shrinks_after_opening(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf", Type.Q4_0)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: -VOCAB * HIDDEN // 32 * 18])
    with pytest.raises(ModelFileError, match=r"m\.gguf ended .* bytes early"):
        checkpoint.read("lm_head.weight")
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"m\.gguf cannot be read: No such file"):
        checkpoint.read_packed("lm_head.weight")


def test_vocabularies_open_without_weights(assets: Path) -> None:
    path = assets / "vocab" / "ggml-vocab-llama-spm.gguf"
    checkpoint, reader = open_checkpoint(path), gguf.GGUFReader(path)
    assert checkpoint.names() == [] and checkpoint.config["vocab_size"] == 32000
    for key, value in checkpoint.metadata.items():
        assert value == reader.fields[key].contents(), key

    checkpoint = open_checkpoint(assets / "vocab" / "ggml-vocab-gpt-2.gguf")
    assert checkpoint.names() == [] and len(checkpoint.metadata["tokenizer.ggml.merges"]) == 50000
    with pytest.raises(UnsupportedModelError, match=r"'gpt2'"):
        _ = checkpoint.config


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


def test_a_large_vocabulary_opens_fast(tmp_path: Path) -> None:
    """50,000 tokens with scores, types and merges: at most three functions for each."""
    tokens = [f"token{i}" for i in range(50_000)]
    path = write_gguf(
        tmp_path / "m.gguf",
        {},
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__scores=[0.5] * 50_000,
        tokenizer__ggml__token_type=[1] * 50_000,
        tokenizer__ggml__merges=[f"{token} x" for token in tokens],
    )
    opened = []
    calls = count_calls(lambda: opened.append(open_checkpoint(path)))
    print(f"opened in {calls} calls")
    assert opened[0].metadata["tokenizer.ggml.tokens"] == tokens
    assert calls < 3 * len(tokens)


def test_reading_leaves_no_file_page_resident(tmp_path: Path) -> None:
    """Packed rows of a 72 MB matrix, block by block: resident memory may grow by 16 MiB."""
    rows, inputs = 32768, 4096
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    blocks = np.zeros((rows, inputs // 32 * 18), dtype=np.uint8)
    writer.add_tensor("output.weight", blocks, raw_dtype=Type.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint, process = open_checkpoint(tmp_path / "m.gguf"), psutil.Process()
    checkpoint.read_packed("lm_head.weight", 0, 512)
    before, peak = process.memory_info().rss, 0
    for start in range(0, rows, 512):
        checkpoint.read_packed("lm_head.weight", start, start + 512)
        peak = max(peak, process.memory_info().rss)
    growth_mib = (peak - before) / (1 << 20)
    print(f"resident memory grew by {growth_mib:.1f} MiB over 72 MB of blocks")
    assert growth_mib < 16
