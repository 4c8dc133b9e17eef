"""Shards and their index: what is stored counts, and only a file that is needed may not be missing.

Also folders that other tools build of links, whose files lie elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import edgelm
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.safetensors_files import INDEX, SINGLE

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
IDS = torch.tensor([[1, 5, 77, 12, 9, 100, 41, 3]])
Change = Callable[[dict[str, str]], Any]


def shard(folder: Path, change: Change = lambda weight_map: None) -> Path:
    """The folder's weights in two files, with an index that `change` has edited."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names = sorted(weights)
    weight_map = {}
    for file, own in ((FIRST, names[: len(names) // 2]), (SECOND, names[len(names) // 2 :])):
        save_file({name: weights[name] for name in own}, folder / file)
        weight_map |= dict.fromkeys(own, file)
    change(weight_map)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder


def logits(folder: Path) -> torch.Tensor:
    with edgelm.load(folder, quant="none", dtype="float32", context=64) as lm:
        return lm.forward(IDS).logits.clone()


CHANGES: dict[str, tuple[Change, str]] = {
    "an absent tensor": (
        lambda own: own.update({"mtp.fc.weight": SECOND}),
        r"none of its files: 1 tensors \(mtp\.fc\.weight\)",
    ),
    "an absent tensor of no family's": (lambda own: own.update({"x": FIRST}), r"files: 1 .*\(x\)"),
    "a tensor left out": (
        lambda own: own.pop("model.norm.weight"),
        r"does not name.*\(model\.norm\.weight\)",
    ),
    "most tensors left out": (
        lambda own: [own.pop(name) for name in sorted(own)[3:-3]],
        r"does not name.*, \.\.\.\)",
    ),
    "a tensor under the other file": (
        lambda own: own.update({"model.norm.weight": FIRST}),
        r"another file.*\(model\.norm\.weight\)",
    ),
    "all tensors under the other file": (
        lambda own: own.update({n: SECOND if f == FIRST else FIRST for n, f in own.items()}),
        "another file",
    ),
    "a file that is missing": (
        lambda own: own.update({"vision.weight": "model-00003-of-00003.safetensors"}),
        r"00003-of-00003\.safetensors is missing.*\(vision\.weight\)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stored_counts(
    change: str, tiny_llama: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_llama()
    expected = logits(folder)
    edit, words = CHANGES[change]
    shard(folder, edit)
    assert torch.equal(logits(folder), expected)
    [warning] = {line for line in caplog.messages if INDEX in line}
    assert re.search(words, warning), warning


def test_an_index_that_is_right_is_not_spoken_of(
    tiny_llama: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    open_checkpoint(shard(tiny_llama()))
    assert not caplog.messages


@pytest.mark.parametrize("file", [FIRST, "model-00003-of-00003.safetensors"])
def test_a_tied_head_that_no_file_holds(tiny_llama: Callable[..., Path], file: str) -> None:
    folder = tiny_llama(tie_word_embeddings=True)
    expected = logits(folder)
    shard(folder, lambda own: own.update({"lm_head.weight": file}))
    assert torch.equal(logits(folder), expected)


def test_of_a_tensor_stored_twice_the_one_that_the_index_names(
    tiny_llama: Callable[..., Path],
) -> None:
    folder = shard(tiny_llama())
    weights = load_file(folder / FIRST)
    true = load_file(folder / SECOND)["model.norm.weight"]
    for file, kept in ((FIRST, torch.zeros_like(true)), (SECOND, true)):
        index = json.loads((folder / INDEX).read_text("utf-8"))
        save_file(weights | {"model.norm.weight": torch.zeros_like(true)}, folder / FIRST)
        index["weight_map"]["model.norm.weight"] = file
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
        assert torch.equal(open_checkpoint(folder).read("model.norm.weight"), kept)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("how", ["deleted", "link to nowhere"])
def test_a_missing_file_that_is_needed(
    tiny_llama: Callable[..., Path], how: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_llama()
    weights = load_file(folder / SINGLE)
    save_file({n.replace("model.", prefix): w for n, w in weights.items()}, folder / SINGLE)
    shard(folder)
    lost = next(f for f in (FIRST, SECOND) if f"{prefix}norm.weight" in load_file(folder / f))
    (folder / lost).unlink()
    if how == "link to nowhere":
        (folder / lost).symlink_to(folder / "blobs" / "0123")
    words = "blobs/0123, and no file is there" if how == "link to nowhere" else "is missing"
    for call in (edgelm.load, edgelm.plan):
        with pytest.raises(edgelm.ModelFileError, match=rf"{lost}.*{words}.*needs its tensor"):
            call(folder, quant="none", context=64)
    assert lost in caplog.text


def test_no_file_at_all(tiny_llama: Callable[..., Path]) -> None:
    folder = shard(tiny_llama())
    for file in (FIRST, SECOND):
        (folder / file).unlink()
    with pytest.raises(edgelm.ModelFileError, match=rf"{FIRST} is missing.*not complete"):
        open_checkpoint(folder)


def test_a_head_in_a_missing_file_is_not_made_anew(tiny_llama: Callable[..., Path]) -> None:
    folder = shard(tiny_llama(), lambda own: own.update({"score.weight": "score.safetensors"}))
    with pytest.raises(edgelm.ModelFileError, match=r"score\.safetensors is missing"):
        edgelm.load(folder, task="sequence-classification", num_labels=3, context=64)


def linked(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    return target


def as_in_the_hubs_cache(folder: Path, home: Path) -> Path:
    """snapshots/COMMIT/FILE -> ../../blobs/HASH."""
    snapshot, blobs = home / "snapshots" / "abc", home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    return snapshot


LINKS: dict[str, Callable[[Path, Path], Path]] = {
    "of each file": lambda folder, home: linked(folder, home / "a"),
    "of links": lambda folder, home: linked(linked(folder, home / "a"), home / "b"),
    "of the Hub's cache": as_in_the_hubs_cache,
    "of a linked folder": lambda folder, home: linked(linked(folder, home / "a"), home / "b"),
}


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "shards"])
@pytest.mark.parametrize("kind", LINKS)
def test_folders_of_links(
    tiny_llama: Callable[..., Path], tmp_path: Path, kind: str, sharded: bool
) -> None:
    folder = tiny_llama()
    expected = logits(folder)
    links = LINKS[kind](shard(folder) if sharded else folder, tmp_path / "links")
    if kind == "of a linked folder":
        (tmp_path / "itself").symlink_to(links, target_is_directory=True)
        links = tmp_path / "itself"
    assert torch.equal(logits(links), expected)
