"""What fuzzing found, held: each of these once ended in a traceback; see fuzz.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgelm.checkpoint.manifest import FORMAT_VERSION, Manifest
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.text.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    "shard", [{}, [], ["model.safetensors"], 3, "", "a\x00b", "a\nb", "x" * 5000, "ü" * 200]
)
def test_shards_that_are_no_file_names(tiny_llama: Callable[..., Path], shard: Any) -> None:
    folder = tiny_llama()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelFileError, match="in place of a file name"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bos_token", 5),
        ("eos_token", {"content": ["</s>"]}),
        ("pad_token", "\udc80"),
        ("added_tokens_decoder", 3),
        ("added_tokens_decoder", {"x": {"content": "a"}}),
        ("added_tokens_decoder", {"9" * 30: {"content": "a"}}),
        ("added_tokens_decoder", {"2048": "a"}),
        ("added_tokens_decoder", {"2048": {"content": {}}}),
        ("chat_template", {"default": "x"}),
        ("chat_template", [{"name": "default", "template": 7}]),
    ],
)
def test_tokenizer_settings_of_a_wrong_type(
    assets: Path, tmp_path: Path, key: str, value: Any
) -> None:
    model = (assets / "nano" / "llama" / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}), "utf-8")
    with pytest.raises(ModelFileError, match=key):
        load_tokenizer(tmp_path)


def test_a_pickled_tensor_without_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    torch.save({"a": torch.zeros(0, 8)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"tensor a holds no numbers, \[0, 8\]"):
        open_checkpoint(tmp_path, allow_pickle=True)


@pytest.mark.parametrize("scheme", ["int8", "q5_k"])
@pytest.mark.parametrize(
    ("rows", "message"), [(float("inf"), "OverflowError"), (1 << 70, "got shape")]
)
def test_a_size_in_a_manifest_beyond_any_memory(
    scheme: str, rows: float, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "edgelm.json"
    module = {"scheme": scheme, "shape": [rows, 64], "error_db": 1, "parts": [], "note": ""}
    manifest = {
        "format_version": FORMAT_VERSION, "writer": "", "recipe": {}, "method": "rtn",
        "licence": None, "bits_per_weight": 8, "modules": {"a": module}, "floats": [], "files": {},
    }  # fmt: skip
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ModelFileError, match=message):
        Manifest.read(path)


def test_settings_of_quantization_that_are_a_word(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(quantization_config="gptq")
    with pytest.raises(UnsupportedModelError, match="quantized by 'gptq'"):
        open_checkpoint(folder)
