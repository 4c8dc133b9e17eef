"""`edgelm doctor --verify` and `edgelm inspect --verify`: which files are not as written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import Run, run  # noqa: F401
from test_offload import SETTINGS, layer_files

import edgelm
from edgelm.layerstore import layer_folder
from edgelm.reports.verification import verify_folder


@pytest.fixture
def kept(run: Run, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:  # noqa: F811
    """The layer files of two models."""
    monkeypatch.setattr(layer_folder, "PAYS_BYTES", 0)
    monkeypatch.setattr(layer_folder, "_FREE_SHARE", 10**6)
    for family in ("llama", "helium"):
        with edgelm.load(assets / "nano" / family, **SETTINGS):
            pass
    return layer_files(tmp_path / "cache")


def zero(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def moved(path: Path) -> None:
    other = next(own for own in path.parent.parent.iterdir() if own != path.parent)
    (other / path.name).replace(path)


@pytest.mark.parametrize("damage", [zero, cut, moved])
def test_doctor_tells_which_layouts_are_broken(
    run: Run, kept: list[Path], damage: Callable[[Path], None]  # noqa: F811
) -> None:  # fmt: skip
    told = run("doctor", "--verify", "--json")
    assert told.code == 0 and told.document["broken"] == []
    assert told.document["files"] == len(kept)
    assert told.document["bytes"] == sum(path.stat().st_size for path in kept)
    assert f"{len(kept)} files" in run("doctor", "--verify").out
    damage(kept[2])
    told = run("doctor", "--verify", "--json")
    (broken,) = told.document["broken"]
    assert told.code == 4 and broken["path"] == str(kept[2]) and broken["problem"]
    assert broken["deleted"] and not kept[2].exists()
    assert run("doctor", "--verify").code == 0


def test_doctor_shows_what_is_broken(run: Run, kept: list[Path]) -> None:  # noqa: F811
    zero(kept[0])
    shown = run("doctor", "--verify")
    assert shown.code == 4 and f"broken: {kept[0]}: its weights were changed; deleted" in shown.out


def test_doctor_without_layouts(run: Run) -> None:  # noqa: F811
    told = run("doctor", "--verify", "--json")
    assert told.code == 0 and told.document == {"files": 0, "bytes": 0, "broken": []}
    assert run("doctor", "--verify", "--clear-cache").code == 2


@pytest.fixture
def folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    edgelm.quantize(tiny_llama(), tmp_path / "int8", quant="int8")
    return tmp_path / "int8"


def told_of(run: Run, folder: Path) -> tuple[int, dict[str, Any]]:  # noqa: F811
    found = run("inspect", folder, "--verify", "--json")
    return found.code, found.document


def test_a_folder_is_as_it_was_written(run: Run, folder: Path) -> None:  # noqa: F811
    names = {path.name for path in folder.iterdir()} - {"edgelm.json"}
    code, told = told_of(run, folder)
    assert code == 0 and not told["damaged"] and {*told["same"]} == names
    assert told["differ"] == told["missing"] == told["extra"] == []
    (folder / "notes.txt").write_text("mine")
    code, told = told_of(run, folder)
    assert code == 0 and told["extra"] == ["notes.txt"]
    assert "notes.txt" in run("inspect", folder, "--verify").out


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_changed_and_missing_files_are_named(run: Run, folder: Path, name: str) -> None:  # noqa: F811
    """Also those without which the folder could not be opened at all."""
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    code, told = told_of(run, folder)
    assert code == 4 and told["damaged"] and told["differ"] == [name]
    path.unlink()
    path.mkdir()
    code, told = told_of(run, folder)
    assert code == 4 and told["missing"] == [name]
    shown = run("inspect", folder, "--verify")
    assert shown.code == 4 and "is missing" in shown.out and "damaged" in shown.out


@pytest.mark.parametrize(
    ("name", "digest", "words"),
    [
        ("../config.json", "0" * 64, "plain name"),
        ("/etc/passwd", "0" * 64, "plain name"),
        ("..", "0" * 64, "plain name"),
        ("", "0" * 64, "plain name"),
        ("a\\b", "0" * 64, "plain name"),
        ("config.json", "", "hexadecimal"),
        ("config.json", "0" * 63, "hexadecimal"),
    ],
)
def test_hostile_manifests(folder: Path, name: str, digest: str, words: str) -> None:
    manifest = json.loads((folder / "edgelm.json").read_text("utf-8"))
    manifest["files"] |= {name: digest}
    (folder / "edgelm.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(edgelm.ModelFileError, match=words):
        verify_folder(folder)


def test_what_has_no_hashes_is_said(run: Run, assets: Path) -> None:  # noqa: F811
    shown = run("inspect", assets / "nano" / "llama", "--verify", "--json")
    assert shown.code == 2 and "edgelm quantize" in shown.err
    assert run("inspect", "no/such/folder/here", "--verify").code == 4
    for model in ("demo", "owner/name"):
        shown = run("inspect", model, "--verify")
        assert shown.code == 2 and "folder on this machine" in shown.err


def test_bytes_are_counted(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    verify_folder(folder, lambda *now: told.append(now))
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "edgelm.json")
    assert told[-1][1:] == (size, size) and [n for _, n, _ in told] == sorted(n for _, n, _ in told)
