"""Every file of a model as a FIFO, a socket, a device, a folder, a link to nowhere, or a huge file.

Those that are needed are refused at once, with their name; others change nothing.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from gguf_models import write_gguf_model
from test_shards import FIRST, INDEX, SINGLE, logits, shard

import edgelm
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.stamps import file_stamps
from edgelm.checkpoint.torch_files import SINGLE as PICKLED
from edgelm.hub.references import resolve
from edgelm.models.model_files import ModelFiles

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no FIFOs, and links need a right")
WAIT_S = 30


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(path.name)
    finally:
        os.chdir(here)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


def links_to_nowhere(path: Path) -> None:
    (path.parent / "between").symlink_to("/nowhere/blob")
    path.symlink_to("between")


# What takes the file's place, and the words of the error.
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, "is a FIFO"),
    "link to a fifo": (link_to_fifo, r"is a FIFO \(by its link to .*pipe\)"),
    "socket": (make_socket, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), r"is a device \(by its link to /dev/"),
    "folder": (Path.mkdir, "is a folder"),
    "link to nowhere": (lambda path: path.symlink_to("/nowhere/x"), "is a link to /nowhere/x"),
    "links to nowhere": (links_to_nowhere, "is a link to /nowhere/blob, and no file is there"),
    "link to itself": (lambda path: path.symlink_to(path.name), "is a link to"),
}
SMALL = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "edgelm.json", "quantize_config.json", INDEX),
)
ROLES = (*SMALL, "tokenizer.json", "tokenizer.model", SINGLE, PICKLED, FIRST, "m.gguf")


def at_once(call: Callable[[], object]) -> Exception | None:
    """What a call raises; fails if it has not ended after a while, as opening a FIFO would."""
    raised: list[Exception | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert raised, "it waits"
    return raised[0]


def open_all(path: Path) -> None:
    """All that is read of a model before its weights are."""
    files = ModelFiles.open(path, allow_pickle=True)
    files.assemble("causal-lm")
    _ = files.generation_config, files.tokenizer


@pytest.fixture
def model(tiny_llama: Callable[..., Path], assets: Path) -> Path:
    folder = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    (folder / "tokenizer.model").symlink_to(assets / "tokenizers" / "llama2" / "tokenizer.model")
    return folder


def without(role: str, model: Path) -> Path:
    """The path to open, and in the model's folder no file where `role` is read from."""
    if role in (INDEX, FIRST):
        shard(model)
    if role == PICKLED:
        (model / SINGLE).unlink()
    if role == "m.gguf":
        return write_gguf_model(model, model.parent / role)
    return model


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("odd", ODD)
def test_needed_files_that_are_no_plain_files(role: str, odd: str, model: Path) -> None:
    opened = without(role, model)
    path = opened if role == "m.gguf" else model / role
    path.unlink(missing_ok=True)
    make, words = ODD[odd]
    make(path)
    if (role, odd) == ("m.gguf", "folder"):
        words = "has no config.json"
    error = at_once(lambda: open_all(opened))
    assert isinstance(error, edgelm.ModelFileError), error
    assert re.search(rf"{re.escape(path.name)} {words}", str(error)), error


@pytest.mark.parametrize("role", [*SMALL, "tokenizer.json", "tokenizer.model"])
def test_small_files_that_are_huge(role: str, model: Path) -> None:
    """Of a hole in a file nothing is read beyond the limit."""
    opened = without(role, model)
    (model / role).unlink(missing_ok=True)
    with (model / role).open("wb") as file:
        file.truncate(1 << 30)
    error = at_once(lambda: open_all(opened))
    assert isinstance(error, edgelm.ModelFileError), error
    assert re.search(rf"{re.escape(role)} has more than \d+ MiB", str(error)), error


@pytest.mark.parametrize("odd", ODD)
def test_files_that_nobody_needs(odd: str, model: Path, tmp_path: Path) -> None:
    """Nor do they slow a load, a hash, or the identity of what is kept of a model."""
    expected, stamps = logits(model), file_stamps(open_checkpoint(model).files)
    sha256 = ModelFiles.open(model).sha256
    make = ODD[odd][0]
    names = ("README.md.bak", ".#config.json", "old.safetensors", PICKLED, "m.gguf", "LICENSE")
    for number, name in enumerate(names):
        make(model / name)
        for other in ("pipe", "between"):
            if (model / other).is_symlink() or (model / other).exists():
                (model / other).rename(model / f"{other}{number}")
    assert file_stamps(open_checkpoint(model).files) == stamps
    files = ModelFiles.open(model)
    assert at_once(lambda: files.sha256) is None and files.sha256 == sha256
    assert torch.equal(logits(model), expected)
    edgelm.quantize(model, tmp_path / "out", quant="int8")


@pytest.mark.parametrize("odd", ODD)
def test_references_that_are_no_plain_files(odd: str, tmp_path: Path) -> None:
    """They are paths of this machine, though they look like names on the Hub."""
    make, words = ODD[odd]
    (tmp_path / "owner").mkdir()
    make(tmp_path / "owner" / "model.gguf")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        error = at_once(lambda: ModelFiles.open(resolve("owner/model.gguf")))
    finally:
        os.chdir(here)
    if odd == "folder":
        words = "has no config.json"
    assert isinstance(error, edgelm.ModelFileError), error
    assert re.search(f"model.gguf {words}", str(error)), error


def test_lines_of_a_text_end_alike(tmp_path: Path) -> None:
    from edgelm.plain_file import read_text

    (tmp_path / "chat_template.jinja").write_bytes("{{ 'ü' }}\r\nend\r".encode())
    assert read_text(tmp_path / "chat_template.jinja") == "{{ 'ü' }}\nend\n"
