"""Oddities of GGUF files that llama.cpp reads: the model is that of the sound file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import write_gguf_model

import edgelm
from edgelm.checkpoint.gguf_header import read_header
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.models.model_files import ModelFiles
from edgelm.text.tokenizer import load_tokenizer

ROPE = {"rope_type": "default", "rope_theta": 1e4}
LAYERS = 2
UINT8, INT32, UINT64, FLOAT64 = (
    gguf.GGUFValueType.UINT8, gguf.GGUFValueType.INT32, gguf.GGUFValueType.UINT64,
    gguf.GGUFValueType.FLOAT64,
)  # fmt: skip


@pytest.fixture
def model(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama(rope_parameters=ROPE)


@pytest.fixture
def sound(model: Path, tmp_path: Path) -> Path:
    return write_gguf_model(model, tmp_path / "sound.gguf")


def rewritten(
    path: Path, changes: dict[str, tuple[Any, Any]], more: dict[str, np.ndarray] | None = None
) -> Path:
    """The file with some keys as (value, type), None to leave out, and some tensors exchanged."""
    reader = gguf.GGUFReader(path)
    target = path.with_name("odd.gguf")
    writer = gguf.GGUFWriter(target, "llama")
    writer.data_alignment = changes.get("general.alignment", (writer.data_alignment,))[0]
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (*changes, "general.architecture"):
            continue
        writer.add_key_value(field.name, field.contents(), *field.types)
    for key, (value, kind) in changes.items():
        if kind is not None:
            array = isinstance(value, list)
            types = (gguf.GGUFValueType.ARRAY, kind) if array else (kind,)
            writer.add_key_value(key, value, *types)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors} | (more or {})
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def told(path: Path) -> tuple[Any, ...]:
    """What a model is: config, ids of a text, special ids, logits."""
    files = ModelFiles.open(path)
    tokenizer = files.tokenizer
    special = (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.add_bos)
    with edgelm.load(path, quant="none", dtype="float32", context=64) as lm:
        logits = lm.forward(torch.tensor([[1, 5, 77, 12, 9]])).logits
    assert logits is not None
    return files.config, tokenizer.encode("<5><6>"), special, logits.tolist()


PREFIX = "tokenizer.ggml."
ODD: dict[str, dict[str, tuple[Any, Any]]] = {
    **{
        f"{name} id {value}": {f"{PREFIX}{name}_token_id": (value, kind)}
        for name in ("padding", "eot", "eom", "seperator", "unknown")
        for value, kind in ((2**32 - 1, gguf.GGUFValueType.UINT32), (-1, INT32), (199, INT32))
    },
    "ids as int32": {
        f"{PREFIX}bos_token_id": (1, INT32),
        f"{PREFIX}eos_token_id": (2, INT32),
    },
    "ids as uint64 and uint8": {
        f"{PREFIX}bos_token_id": (1, UINT64),
        f"{PREFIX}eos_token_id": (2, UINT8),
    },
    "counts of other types": {
        "llama.block_count": (LAYERS, UINT64),
        "llama.context_length": (128, INT32),
        "llama.attention.head_count": (4, UINT8),
    },
    "numbers as float64": {
        "llama.rope.freq_base": (1e4, FLOAT64),
        "llama.attention.layer_norm_rms_epsilon": (float(np.float32(1e-5)), FLOAT64),
    },
    "a number for every layer": {
        "llama.attention.head_count": ([4] * LAYERS, INT32),
        "llama.attention.head_count_kv": ([2] * LAYERS, INT32),
        "llama.feed_forward_length": ([160] * LAYERS, INT32),
    },
    "flags as uint8": {
        f"{PREFIX}add_bos_token": (1, UINT8),
        f"{PREFIX}add_eos_token": (0, UINT8),
        f"{PREFIX}add_space_prefix": (1, UINT8),
    },
    "unknown keys": {
        "general.quantized_by": ("me", gguf.GGUFValueType.STRING),
        "quantize.imatrix.entries_count": (12, INT32),
        "llama.unheard_of": ([1, 2, 3], INT32),
        "general.tags": (["a", "b"], gguf.GGUFValueType.STRING),
    },
}


@pytest.mark.parametrize("odd", ODD)
def test_keys_of_odd_types_and_values(odd: str, sound: Path) -> None:
    assert told(rewritten(sound, ODD[odd])) == told(sound)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_any_alignment(sound: Path, alignment: int) -> None:
    path = rewritten(sound, {"general.alignment": (alignment, gguf.GGUFValueType.UINT32)})
    assert read_header(path).metadata["general.alignment"] == alignment
    assert told(path) == told(sound)


@pytest.mark.parametrize("value", ["false", 2, [1], 0.0])
@pytest.mark.parametrize(
    "name", ["add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"]
)
def test_flags_that_are_no_truth_values(name: str, value: Any, sound: Path) -> None:
    metadata = read_header(sound).metadata | {f"tokenizer.ggml.{name}": value}
    with pytest.raises(edgelm.ModelFileError, match=rf"{name} is .*expected true or false"):
        load_tokenizer(sound, metadata)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_frequencies_that_change_nothing(sound: Path, kind: type) -> None:
    """Files of Llama 3.1's converter carry rope_freqs.weight; ones are no scaling."""
    path = rewritten(sound, {}, {"rope_freqs.weight": np.ones(8, kind)})
    assert told(path) == told(sound)


def test_frequencies_in_blocks_are_refused(sound: Path) -> None:
    blocks = gguf.quants.quantize(np.ones((1, 32), np.float32), Type.Q8_0)
    writer = gguf.GGUFWriter(sound.with_name("x.gguf"), "llama")
    for key in ("embedding_length", "block_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_tensor("rope_freqs.weight", blocks[0], raw_dtype=Type.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(edgelm.UnsupportedModelError, match=r"rope_freqs\.weight.*only matrices"):
        open_checkpoint(sound.with_name("x.gguf"))


def test_vectors_as_matrices_of_one_row(sound: Path) -> None:
    norms = {
        tensor.name: np.array(tensor.data)[None]
        for tensor in gguf.GGUFReader(sound).tensors
        if "norm" in tensor.name
    }
    assert len(norms) == 2 * LAYERS + 1
    assert told(rewritten(sound, {}, norms)) == told(sound)


def test_empty_merges() -> None:
    from test_tokenizer import BPE

    odd = BPE | {"tokenizer.ggml.merges": ["", *BPE["tokenizer.ggml.merges"], ""]}
    ours, plain = (load_tokenizer(Path("m.gguf"), keys) for keys in (odd, BPE))
    assert ours.encode("ab33 3") == plain.encode("ab33 3")
    without = load_tokenizer(Path("m.gguf"), BPE | {"tokenizer.ggml.merges": []})
    assert without.encode("a") == plain.encode("a") and len(without.encode("ab")) > 1


def test_special_ids_in_a_list_without_types() -> None:
    """None of them is hashable, and no writer is known that does so: still no traceback."""
    from test_tokenizer import SPM

    keys = {k: v for k, v in SPM.items() if not k.endswith("token_type")}
    load_tokenizer(Path("m.gguf"), keys | {"tokenizer.ggml.eos_token_id": [2]})
