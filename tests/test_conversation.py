"""A conversation kept in a file: what comes back, and files that say what is not so."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_turns import turn

import edgelm
from edgelm.models.model_files import ModelFiles

CHUNK = 16
PROMPT = torch.randint(5, 2000, (100,), generator=torch.Generator().manual_seed(1)).tolist()
MESSAGES = [{"role": "user", "content": "Why? é"}, {"role": "assistant", "content": "Because."}]


KINDS = [("gemma2", "float32"), ("gemma2", "int8"), ("llama", "bfloat16")]


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def settings(assets: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    name, kv = request.param
    return {"model": assets / "nano" / name, "quant": "none", "kv": kv, "context": 200}


@pytest.fixture(scope="module")
def saved(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[int], list[int]]]:
    """A file, the ids it was saved after, and the answer that follows them and one more id."""
    path = tmp_path_factory.mktemp("saved") / "talk.safetensors"
    with edgelm.load(**settings, chunk=CHUNK) as lm:
        answer, _ = turn(lm, PROMPT, 30, keep_prefix=True)
        lm.save_conversation(path, MESSAGES)
        held = [*PROMPT, *answer[:-1]]
        yield path, held, turn(lm, [*held, 70], 20, keep_prefix=True)[0]


def test_a_conversation_goes_on_in_another_process(
    settings: dict[str, Any], saved: tuple[Path, list[int], list[int]]
) -> None:
    """Nothing but the new id is run, in rings that have gone round too, and the answer is equal."""
    path, held, expected = saved
    with edgelm.load(**settings, chunk=CHUNK) as lm:
        turn(lm, PROMPT[::-1], 40, keep_prefix=True)
        assert lm.restore_conversation(path) == MESSAGES
        assert lm._session.cache.lengths == [len(held)]
        answer, prefilled = turn(lm, [*held, 70], 20, keep_prefix=True)
        assert (answer, prefilled) == (expected, 1)
        print(
            f"{path.stat().st_size} bytes for {len(held)} tokens, cache {lm._session.cache.nbytes}"
        )
        assert path.stat().st_size < lm._session.cache.nbytes
        again = path.with_name("again")
        lm.restore_conversation(path)
        lm.save_conversation(again, MESSAGES)
    assert load_file(again).keys() == load_file(path).keys()
    assert again.read_bytes() == path.read_bytes()
    assert os.name != "posix" or path.stat().st_mode & 0o77 == 0, "others may read it"


def test_an_empty_conversation_is_refused_before_the_weights_are_read(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelFiles, "sha256", property(lambda _: pytest.fail("read all weights")))
    with edgelm.load(**settings) as lm, pytest.raises(edgelm.UsageError, match="empty"):
        lm.save_conversation(tmp_path / "talk.safetensors")


def test_another_model_is_refused(assets: Path, saved: Any, settings: dict[str, Any]) -> None:
    """Other weights, another scheme, another kv; rings of another size only once gone round."""
    path, held, _ = saved
    gemma = settings["model"].name == "gemma2"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": assets / "nano" / "helium"}, "other weights"),
        ({"quant": "int8"}, "other scheme"),
        ({"kv": "float16"}, "other kv"),
        ({"context": 120}, "context or chunk"),
    ]
    wrong += [({"chunk": CHUNK + 1}, "context or chunk")] * gemma
    for change, words in wrong:
        with edgelm.load(**({"chunk": CHUNK} | settings | change)) as lm:
            mine, _ = turn(lm, PROMPT[:20], 5, keep_prefix=True)
            with pytest.raises(edgelm.UsageError, match=words):
                lm.restore_conversation(path)
            follow = [*PROMPT[:20], *mine, 70]
            assert turn(lm, follow, 5, keep_prefix=True)[1] == 2, "what it held is gone"
    if not gemma:
        with edgelm.load(**(settings | {"context": 150}), chunk=CHUNK + 1) as lm:
            lm.restore_conversation(path)
            assert turn(lm, [*held, 70], 5, keep_prefix=True)[1] == 1


def rewritten(path: Path, target: Path, **changes: Any) -> Path:
    """A copy whose metadata says something else."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    told = json.loads(header["__metadata__"]["conversation"]) | changes
    save_file(load_file(path), target, {"conversation": json.dumps(told)})
    return target


def test_lying_files(saved: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    path, held, _ = saved
    data = path.read_bytes()
    (tmp_path / "cut").write_bytes(data[:-1])
    (tmp_path / "long").write_bytes(data + b"\0")
    (tmp_path / "huge").write_bytes((1 << 62).to_bytes(8, "little") + data[8:])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    save_file(load_file(path), tmp_path / "bare")
    tensors = load_file(path)
    told = {"conversation": _metadata(path)}
    save_file({**tensors, "9.0": torch.zeros(1)}, tmp_path / "more", told)
    save_file({n: t[:, :-1].clone() for n, t in tensors.items()}, tmp_path / "fewer", told)
    save_file({n: t.to(torch.float64) for n, t in tensors.items()}, tmp_path / "wide", told)
    lies: dict[str, Any] = {
        "written": [10**9, -1, 3, 1.5, "x", None, True],
        "messages": [3, [3], [{"role": 1}], [{"role": "user"}], {}, None, ""],
        "ids": [[], [*held[:-1], 10**6], [-1] * len(held), ["a"], 5, None, {}],
        "format_version": [0, "1", None],
    }  # fmt: skip
    files = [own for own in tmp_path.iterdir()] + [tmp_path / "missing", tmp_path]
    for key, values in lies.items():
        for number, value in enumerate(values):
            files.append(rewritten(path, tmp_path / f"{key}{number}", **{key: value}))
    newer = rewritten(path, tmp_path / "newer", format_version=2)
    refused = (edgelm.ModelFileError, edgelm.UsageError)
    with edgelm.load(**settings, chunk=CHUNK) as lm:
        for own in files:
            with pytest.raises(refused, match=re.escape(str(own))):
                lm.restore_conversation(own)
        with pytest.raises(edgelm.UnsupportedModelError, match="version 2"):
            lm.restore_conversation(newer)
        with pytest.raises(edgelm.UsageError, match="send a message before"):
            lm.save_conversation(tmp_path / "none")
        assert lm.restore_conversation(path) == MESSAGES


def _metadata(path: Path) -> str:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return str(header["__metadata__"]["conversation"])


def test_a_write_that_fails_leaves_the_old_file(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with edgelm.load(assets / "nano" / "llama", quant="none", context=64) as lm:
        turn(lm, PROMPT[:10], 5)
        lm.save_conversation(path, MESSAGES)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(edgelm.EdgeLMError, match="No space left"):
                lm.save_conversation(path)
        assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]
        with pytest.raises(edgelm.EdgeLMError, match="could not be written"):
            lm.save_conversation(tmp_path / "no" / "folder")
        lm.save_conversation(path)
        assert lm.restore_conversation(path) == []


def test_what_is_no_conversation_is_not_overwritten(assets: Path, tmp_path: Path) -> None:
    """Whatever lies there stays as it was, and is refused before the weights are read."""
    weights = assets / "nano" / "llama" / "model.safetensors"
    contents = [b"", b"three years", b"GGUF" + bytes(99), weights.read_bytes()[:5000]]
    save_file({"a": torch.zeros(1)}, tmp_path / "tensors", {"format": "pt"})
    paths = [tmp_path / f"file{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    (tmp_path / "folder").mkdir()
    paths += [tmp_path / "folder", tmp_path / "tensors", Path(os.devnull)]
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("nowhere")
        paths += [tmp_path / "pipe", tmp_path / "link"]
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    with edgelm.load(assets / "nano" / "llama", quant="none", context=64) as lm:
        turn(lm, PROMPT[:10], 5)
        for path in paths:
            with pytest.raises(edgelm.UsageError, match="is not a saved conversation"):
                lm.save_conversation(path)
    assert before == {path: path.read_bytes() for path in before}
    assert len([*tmp_path.iterdir()]) == len(paths) - 1
