"""Pickled and Flax weights: refused or read, and then the same logits as from safetensors."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import FAMILIES, family
from safetensors.torch import load_file

import edgelm
from edgelm.checkpoint import torch_files
from edgelm.checkpoint.flax_files import CHUNKED
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.cli.main import main

PROMPT = torch.arange(5, 22).view(1, -1)


def logits(folder: Path, **settings: Any) -> torch.Tensor:
    with edgelm.load(folder, quant="none", dtype="float32", **settings) as lm:
        return lm.forward(PROMPT).logits


def emptied(folder: Path, target: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder, and a folder with its config alone."""
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    return load_file(folder / "model.safetensors")


def pickled(folder: Path, target: Path, shards: int = 1) -> Path:
    """The folder with its weights as transformers saved them before safetensors."""
    weights = emptied(folder, target)
    if shards == 1:
        torch.save(weights, target / "pytorch_model.bin")
        return target
    names = {n: f"pytorch_model-{i % shards + 1}-of-{shards}.bin" for i, n in enumerate(weights)}
    for file in set(names.values()):
        torch.save({n: t for n, t in weights.items() if names[n] == file}, target / file)
    index = {"metadata": {}, "weight_map": names}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return target


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_weights_give_the_same_logits(name: str, shards: int, tmp_path: Path) -> None:
    _, folder = family(name, tmp_path / "safe")
    target = pickled(folder, tmp_path / "bin", shards)
    assert torch.equal(logits(target, allow_pickle=True), logits(folder))
    assert edgelm.plan(target, allow_pickle=True, quant="none").fits


def test_rows_are_read_apart(tmp_path: Path) -> None:
    _, folder = family("llama", tmp_path / "safe")
    found = open_checkpoint(pickled(folder, tmp_path / "bin"), allow_pickle=True)
    expected = open_checkpoint(folder)
    assert sorted(found.names()) == sorted(expected.names())
    for name in expected.names():
        assert found.info(name) == expected.info(name)
        assert torch.equal(found.read(name, 3, 11), expected.read(name, 3, 11))


def test_without_the_flag_pickles_stay_closed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = family("llama", tmp_path / "safe")
    target = pickled(folder, tmp_path / "bin")
    with pytest.raises(edgelm.ModelFileError, match="--allow-pickle"):
        edgelm.plan(target)
    for words, code in ((["--allow-pickle"], 0), ([], 4)):
        monkeypatch.setattr("sys.argv", ["edgelm", "plan", str(target), "--json", *words])
        assert main() == code
    capsys.readouterr()


def test_safetensors_come_first(tmp_path: Path) -> None:
    _, folder = family("llama", tmp_path / "safe")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert open_checkpoint(folder, allow_pickle=True).format == "safetensors"


class Command:
    """What a hostile pickle holds: a call made while it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


WRITERS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.write_bytes(b"not a pickle"), "cannot be opened as weights alone"),
    (
        lambda path: path.write_bytes(pickle.dumps(Command(path.parent / "ran"), protocol=2)),
        "alone",
    ),
    (lambda path: torch.save({"a": Command(path.parent / "ran")}, path), "alone"),
    (lambda path: torch.save([torch.ones(2)], path), "holds a list"),
    (lambda path: torch.save({"a": 1}, path), "'a': int"),
    (lambda path: torch.save({7: torch.ones(2)}, path), "holds 7"),
    (lambda path: torch.save({"a": torch.ones(4, 6).t()}, path), "does not lie row after row"),
]


@pytest.mark.parametrize(("write", "message"), WRITERS)
def test_files_that_are_more_or_less_than_weights(
    write: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    write(tmp_path / "pytorch_model.bin")
    with pytest.raises(edgelm.EdgeLMError, match=message) as caught:
        open_checkpoint(tmp_path, allow_pickle=True)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "ran").exists()


def test_cut_off_and_missing_shards(tmp_path: Path) -> None:
    _, folder = family("llama", tmp_path / "safe")
    target = pickled(folder, tmp_path / "bin", shards=2)
    first = target / "pytorch_model-1-of-2.bin"
    first.write_bytes(first.read_bytes()[:-4000])
    with pytest.raises(edgelm.ModelFileError, match="cannot be opened"):
        open_checkpoint(target, allow_pickle=True)
    first.unlink()
    with pytest.raises(edgelm.ModelFileError, match=r"1-of-2\.bin is missing"):
        open_checkpoint(target, allow_pickle=True).info("model.norm.weight")


def test_a_tensor_that_ends_beyond_its_file(tmp_path: Path) -> None:
    """The pickle's own sizes are not believed: 9 rows where the archive has 3."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(3, 200)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if name.endswith("data.pkl"):  # 600 numbers, of 3 rows, become 6000 of 30
                data = data.replace(b"MX\x02", b"Mp\x17").replace(b"K\x03K\xc8", b"K\x1eK\xc8")
            archive.writestr(name, data)
    assert path.stat().st_size < len(content) < 6000 * 4
    with pytest.raises(edgelm.ModelFileError, match="tensor a ends beyond the file"):
        open_checkpoint(tmp_path, allow_pickle=True)


def test_an_unsafe_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = family("llama", tmp_path / "safe")
    target = pickled(folder, tmp_path / "bin")
    monkeypatch.setattr(torch_files.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(edgelm.UnsupportedModelError, match=r"torch 2\.9\.1.*2\.10"):
        open_checkpoint(target, allow_pickle=True)


def test_original_releases_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "8b_base_model_release.pt").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "8b_base_model_release.pt"):
        with pytest.raises(edgelm.UnsupportedModelError, match="adept/persimmon-8b-base"):
            edgelm.plan(path)


# What flax.serialization.to_bytes writes, by the library that it writes with.
msgpack = pytest.importorskip("msgpack")


def array(tensor: torch.Tensor) -> Any:
    dtype = str(tensor.dtype).removeprefix("torch.")
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return lying(tuple(tensor.shape), dtype, data)


def lying(shape: tuple[Any, ...], dtype: str, data: bytes) -> Any:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data), use_bin_type=True))


def in_pieces(tensor: torch.Tensor) -> Any:
    """An array as flax cuts those above a gigabyte."""
    shape = {str(i): size for i, size in enumerate(tensor.shape)}
    chunks = {str(i): array(part) for i, part in enumerate(tensor.reshape(-1).split(1001))}
    return {CHUNKED: True, "shape": shape, "chunks": chunks}


def flax_folder(folder: Path, target: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A BLOOM folder as Flax has it: kernels transposed, norms' weights called scale."""
    tree: dict[str, Any] = {}
    for name, stored in emptied(folder, target).items():
        *modules, kind = name.split(".")
        branch, weight = tree, stored.to(dtype)
        for module in modules:
            branch = branch.setdefault(module, {})
        if modules[-1] == "word_embeddings":
            branch["embedding"] = in_pieces(weight)
        elif weight.dim() == 1:
            branch["scale" if kind == "weight" else kind] = array(weight)
        else:
            branch["kernel"] = array(weight.t())
    (target / "flax_model.msgpack").write_bytes(msgpack.packb(tree))
    return target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flax_bloom_gives_the_same_logits(dtype: torch.dtype, tmp_path: Path) -> None:
    _, folder = family("bloom", tmp_path / "safe")
    target = flax_folder(folder, tmp_path / "flax", dtype)
    found, expected = open_checkpoint(target), open_checkpoint(folder)
    assert found.format == "flax" and sorted(found.names()) == sorted(expected.names())
    for name in expected.names():
        whole = expected.read(name).to(dtype)
        assert found.info(name).shape == expected.info(name).shape
        assert torch.equal(found.read(name), whole)
        assert torch.equal(found.read(name, 5, 41), whole[5:41])
    if dtype == torch.float32:
        assert torch.equal(logits(target), logits(folder))


def test_flax_of_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    with pytest.raises(edgelm.UnsupportedModelError, match=r"'llama'.*'bloom'"):
        open_checkpoint(tmp_path)


LONG = b"\xc9\xff\xff\xff\xff\x01\x93\x91\x04\xa7float32\xc6\xff\xff\xff\xf0"
DAMAGED: list[tuple[bytes, str]] = [
    (b"", "cut off"),
    (b"\xdf\xff\xff\xff\xff", "cut off"),
    (b"\x81\xa1a" + LONG, "bytes for an array"),
    (b"\x81\xa1a" * 40 + b"\x80", "too deeply"),
    (b"\xd4\x01\x93\x9f" + b"\xd4\x01\x93\x9f" * 5000, "not a map|kind"),
    (b"\x81\xdb\xff\xff\xff\xff", "a name of 4294967295 bytes"),
    (b"\x82\xa1a\x01\xa1a\x01", "twice"),
    (b"\x81\xa1a\x01", "a in flax_model.msgpack is 1"),
    (b"\x80\x80", "not a map of arrays"),
    (b"\x81\xa1a\xc0", "a value of kind 0xc0"),
    (msgpack.packb({"scale": lying((3,), "float32", b"1234")}), "4 bytes for an array"),
    (msgpack.packb({"scale": lying((1,), "int64", b"12345678")}), "'int64'"),
    (msgpack.packb({"scale": lying(("a",), "float32", b"1234")}), "array 'float32'"),
    (msgpack.packb({"scale": msgpack.ExtType(3, b"1234")}), "extension of kind 3"),
    (msgpack.packb({"wide": lying((1,), "float32", b"1234")}), "which no BLOOM has"),
    (msgpack.packb({CHUNKED: True, "shape": {"0": 2}, "chunks": {}}), "pieces"),
    (msgpack.packb({"a": {CHUNKED: True, "shape": 1, "chunks": {"1": 2}}}), "order"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_damaged_flax_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}), encoding="utf-8")
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(edgelm.ModelFileError, match=message):
        open_checkpoint(tmp_path)
