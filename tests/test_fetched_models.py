"""``edgelm list``, ``rm`` and ``pull``: what was fetched to this machine, and deleting it."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from test_cli import Run, nano, run  # noqa: F401  (fixtures)

from edgelm.hub.demo import DEMO_MEMBER
from edgelm.hub.inventory import fetched_models

FILES = {"a" * 40: {"config.json": b"{}", "model.safetensors": bytes(3000)}}
GGUFS = {"b" * 40: {"x-Q4_0.gguf": bytes(500), "x-Q8_0.gguf": bytes(900), "README.md": b"x"}}


def put(cache: Path, name: str, revisions: dict[str, dict[str, bytes]]) -> Path:
    """A model in the Hub's cache, as its library lays it out."""
    repo = cache / f"models--{name.replace('/', '--')}"
    for commit, files in revisions.items():
        for folder in ("blobs", "refs", f"snapshots/{commit}"):
            (repo / folder).mkdir(parents=True, exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        for file, content in files.items():
            blob = repo / "blobs" / f"{commit[:4]}{file}"
            blob.write_bytes(content)
            (repo / "snapshots" / commit / file).symlink_to(blob)
    return repo


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's library."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "demo" / Path(DEMO_MEMBER).name
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(700))
    return path


class Typed(io.StringIO):
    """stdin that somebody types on."""

    def isatty(self) -> bool:
        return True


def listed(run: Run) -> dict[str, int]:  # noqa: F811
    return {own["model"]: own["bytes"] for own in run("list", "--json").document["models"]}


def test_nothing_was_fetched(run: Run, hub: Path) -> None:  # noqa: F811
    assert "edgelm pull" in run("list").out and listed(run) == {}
    shutil.rmtree(hub)
    assert listed(run) == {}


def test_models_are_listed_as_they_can_be_named(
    run: Run, hub: Path, demo: Path  # noqa: F811
) -> None:  # fmt: skip
    put(hub, "some/model", FILES)
    put(hub, "some/files", GGUFS)
    put(hub, "some/plan", {"c" * 40: {"config.json": b"{}"}})
    (demo.parent.parent / "machine.json").write_bytes(bytes(100))
    os.utime(demo, (2e9, 2e9))
    found = listed(run)
    assert next(iter(found)) == "demo"
    assert found == {
        "demo": 700, "some/model": 3002, "some/plan": 2,
        "some/files/x-Q4_0.gguf": 500, "some/files/x-Q8_0.gguf": 900,
    }  # fmt: skip
    assert not next(own for own in fetched_models() if own.model == "some/plan").complete
    assert run("list", "--json").document["other_bytes"] == 100
    shown = run("list", "-v").out
    assert "2033-05-18" in shown and str(demo.parent)[:20] in shown and "no weights" in shown


def test_rm_deletes_what_it_is_told(run: Run, hub: Path, demo: Path) -> None:  # noqa: F811
    put(hub, "some/model", FILES)
    repo = put(hub, "some/files", GGUFS)
    assert run("rm", "demo", "--yes", "--json").document == {"freed_bytes": {"demo": 700}}
    assert not demo.exists()
    freed = run("rm", "some/files/x-Q4_0.gguf", "-y", "--json").document["freed_bytes"]
    assert freed == {"some/files/x-Q4_0.gguf": 500}
    assert set(listed(run)) == {"some/model", "some/files/x-Q8_0.gguf"}
    assert "deleted some/files/x-Q8_0.gguf" in run("rm", "some/files/x-Q8_0.gguf", "--yes").out
    assert not repo.exists()
    assert run("rm", "some/model", "--yes").code == 0 and listed(run) == {}


def test_rm_asks(run: Run, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    put(hub, "some/model", FILES)
    assert run("rm", "some/model").code == 2 and "--yes" in run("rm", "some/model").err
    monkeypatch.setattr("test_cli.io.StringIO", Typed)
    for answer, code in (("", 1), ("no\n", 1), ("y\n", 0)):
        assert set(listed(run)) == {"some/model"}
        ran = run("rm", "some/model", piped=answer)
        assert ran.code == code and "Delete some/model? [y/N]" in ran.err
    assert listed(run) == {}


@pytest.mark.parametrize("model", ["some/other", "some/files/y.gguf", "some/model@old", "demo"])
def test_rm_of_what_is_not_there(run: Run, hub: Path, model: str) -> None:  # noqa: F811
    put(hub, "some/model", FILES)
    put(hub, "some/files", GGUFS)
    ran = run("rm", model, "--yes")
    assert ran.code == 2 and repr(model) in ran.err and "There are: some/" in ran.err
    assert len(listed(run)) == 3


def test_rm_leaves_files_of_the_user(run: Run, hub: Path, tmp_path: Path) -> None:  # noqa: F811
    own = tmp_path / "own"
    own.mkdir()
    ran = run("rm", own, "--yes")
    assert ran.code == 2 and "delete it yourself" in ran.err and own.exists()


def test_pull(run: Run, hub: Path, demo: Path, nano: Path) -> None:  # noqa: F811
    assert run("pull", nano).code == 2
    files = {path.name: path.read_bytes() for path in nano.iterdir()}
    put(hub, "some/nano", {"d" * 40: files})
    ran = run("pull", "some/nano", "--offline")
    assert ran.code == 0 and ran.out.strip().endswith("d" * 40), ran.err
    assert run("pull", "some/absent", "--offline").code == 1


def test_rm_of_a_file_keeps_what_others_share(run: Run, hub: Path) -> None:  # noqa: F811
    repo = put(hub, "some/files", GGUFS)
    snapshot = repo / "snapshots" / ("b" * 40)
    (snapshot / "x.gguf").symlink_to(os.readlink(snapshot / "x-Q4_0.gguf"))
    assert run("rm", "some/files/x.gguf", "--yes", "--json").document["freed_bytes"] == {
        "some/files/x.gguf": 0
    }
    assert (snapshot / "x-Q4_0.gguf").read_bytes() == bytes(500)
