"""Folders in Hugging Face layout: what is read is what was saved, and damage is explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.safetensors_files import INDEX, SINGLE
from edgelm.errors import ModelFileError, UnsupportedModelError

TENSORS = {
    "matrix": torch.arange(35, dtype=torch.float32).view(7, 5),
    "half": torch.linspace(-1, 1, 12).half().view(3, 4),
    "bias": torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "counts": torch.arange(4),
}


def write_folder(folder: Path, shards: dict[str, dict[str, torch.Tensor]], **config: Any) -> Path:
    """A model folder of the given shards with their index; one called SINGLE needs none."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    if list(shards) != [SINGLE]:
        write_index(folder, {key: name for name, tensors in shards.items() for key in tensors})
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def two_shards(folder: Path) -> Path:
    parts = {"a.safetensors": ["matrix", "bias"], "b.safetensors": ["half", "scalar", "counts"]}
    return write_folder(
        folder, {shard: {name: TENSORS[name] for name in names} for shard, names in parts.items()}
    )


@pytest.fixture(params=["single", "sharded"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return (
        write_folder(tmp_path, {SINGLE: TENSORS})
        if request.param == "single"
        else two_shards(tmp_path)
    )


def test_every_tensor_comes_back_bit_for_bit(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "safetensors" and checkpoint.metadata == {}
    assert checkpoint.config["model_type"] == "llama"
    assert sorted(checkpoint.names()) == sorted(TENSORS)
    for name in ("matrix", "half", "bias", "scalar"):
        read = checkpoint.read(name)
        assert read.dtype == TENSORS[name].dtype and torch.equal(read, TENSORS[name]), name


def test_info_comes_from_the_header(folder: Path) -> None:
    info = open_checkpoint(folder).info
    assert info("matrix") == TensorInfo((7, 5), "float32", None, 140)
    assert info("bias") == TensorInfo((3,), "bfloat16", None, 6)
    assert info("counts") == TensorInfo((4,), "I64", None, 32)
    with pytest.raises(KeyError):
        info("absent")


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (2, 5), (6, 7), (3, 3), (0, None), (4, None)])
def test_row_slices(folder: Path, start: int, stop: int | None) -> None:
    read = open_checkpoint(folder).read("matrix", start, stop)
    assert torch.equal(read, TENSORS["matrix"][start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (5, 4), (0, 8)])
def test_rows_outside_are_an_error(folder: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match=r"matrix has 7"):
        open_checkpoint(folder).read("matrix", start, stop)


def test_a_copy_is_private(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    checkpoint.read("matrix").zero_()
    assert torch.equal(checkpoint.read("matrix"), TENSORS["matrix"])


def test_integers_are_no_weights(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UnsupportedModelError, match=r"counts is stored as I64.*BF16"):
        checkpoint.read("counts")
    with pytest.raises(TypeError):
        checkpoint.read_packed("matrix")


def test_assets_agree_with_the_library(assets: Path) -> None:
    from safetensors.torch import load_file

    folder = assets / "tiny-random" / "llama"
    checkpoint = open_checkpoint(folder)
    expected = load_file(folder / SINGLE)
    assert sorted(checkpoint.names()) == sorted(expected)
    assert all(torch.equal(checkpoint.read(name), expected[name]) for name in expected)


def test_reading_leaves_no_file_page_resident(tmp_path: Path) -> None:
    """While 64 MiB are read in blocks of 1 MiB, resident memory may grow by 16 MiB, no more."""
    checkpoint = open_checkpoint(write_folder(tmp_path, {SINGLE: {"big": torch.zeros(4096, 4096)}}))
    process = psutil.Process()
    checkpoint.read("big", 0, 64)
    before, peak = process.memory_info().rss, 0
    for start in range(0, 4096, 64):
        checkpoint.read("big", start, start + 64)
        peak = max(peak, process.memory_info().rss)
    growth_mib = (peak - before) / (1 << 20)
    print(f"resident memory grew by {growth_mib:.1f} MiB over 64 MiB of rows")
    assert growth_mib < 16


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1], ids=lambda kept: f"{kept}-bytes")
def test_truncated_shard_is_named(folder: Path, kept: int) -> None:
    shard = next(iter(sorted(folder.glob("*.safetensors"))))
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=rf"{shard.name} is damaged or was cut off"):
        open_checkpoint(folder)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, {SINGLE: TENSORS}))
    path = tmp_path / SINGLE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"changed after it was opened"):
        for name in ("matrix", "half", "bias"):
            checkpoint.read(name)


@pytest.mark.parametrize(
    "header",
    [
        (1 << 60).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": 1}}',
        b"\xff" * 8,
    ],
    ids=["length-2**60", "list", "no-json", "length-2**64"],
)
def test_lying_headers(tmp_path: Path, header: bytes) -> None:
    write_folder(tmp_path, {SINGLE: TENSORS})
    (tmp_path / SINGLE).write_bytes(header + b" " * 200)
    with pytest.raises(ModelFileError, match=r"damaged or was cut off"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("offsets", [[0, 1 << 60], [4, 20], [-1, 15], [16, 0]])
def test_lying_offsets(tmp_path: Path, offsets: list[int]) -> None:
    write_folder(tmp_path, {SINGLE: TENSORS})
    entry = {"x": {"dtype": "F32", "shape": [4], "data_offsets": offsets}}
    header = json.dumps(entry).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    with pytest.raises(ModelFileError, match=r"damaged or was cut off"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../../x", "../a.safetensors", "/etc/hostname", r"..\a", r"C:\a", "a/../../b"]
)
def test_index_may_not_leave_the_folder(tmp_path: Path, shard: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write_folder(inner, {"a.safetensors": TENSORS})
    write_index(inner, {"matrix": shard})
    with pytest.raises(ModelFileError, match=r"outside the model's folder"):
        open_checkpoint(inner)


@pytest.mark.parametrize("weight_map", [None, {}, [], "a", {"matrix": 3}, {"matrix": ""}])
def test_damaged_index(tmp_path: Path, weight_map: Any) -> None:
    write_folder(tmp_path, {"a.safetensors": TENSORS})
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFileError, match=INDEX):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_damaged_json(tmp_path: Path, name: str, content: bytes) -> None:
    write_folder(tmp_path, {"a.safetensors": TENSORS})
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=name) as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) < 500


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"weights are missing"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelFileError, match=r"pickled weights.*--allow-pickle.*convert"):
        open_checkpoint(tmp_path)


def test_lfs_pointer(tmp_path: Path) -> None:
    write_folder(tmp_path, {SINGLE: TENSORS})
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelFileError, match=r"git lfs pull"):
        open_checkpoint(tmp_path)


def test_quantized_folder_is_refused_by_method(tmp_path: Path) -> None:
    write_folder(tmp_path, {SINGLE: TENSORS}, quantization_config={"quant_method": "exl2"})
    with pytest.raises(UnsupportedModelError, match=r"'exl2'"):
        open_checkpoint(tmp_path)


def test_path_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"does not exist"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ModelFileError, match=r"neither a folder nor a \.gguf"):
        open_checkpoint(tmp_path / "file.txt")
