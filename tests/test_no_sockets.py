"""With sockets blocked, everything works but Hub ids and the demo's first fetch."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import write_gguf_model

import edgelm
from edgelm.errors import HubError
from edgelm.hub import references
from edgelm.reports.inspection import inspect_files


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every way to a network raises; what tried is listed."""
    tried: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            tried.append(name)
            raise OSError(101, "Network is unreachable (blocked by the test)")

        return call

    class Socket(socket.socket):
        def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
            return refuse("socket")()

    monkeypatch.setattr(socket, "socket", Socket)
    for name in ("getaddrinfo", "create_connection", "gethostbyname", "socketpair"):
        monkeypatch.setattr(socket, name, refuse(name))
    return tried


@pytest.fixture
def folder(assets: Path, tmp_path: Path) -> Path:
    """nano Llama, with a chat template."""
    copy = tmp_path / "model"
    shutil.copytree(assets / "nano" / "llama", copy)
    for path in copy.iterdir():
        path.chmod(0o644)
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")
    return copy


def use(model: Path) -> None:
    """Everything that the Python API does with a model."""
    assert edgelm.plan(model, context=64).fits
    with edgelm.load(model, context=64) as lm:
        out = lm.generate("Once upon a time", max_new_tokens=4, temperature=0.0)
        assert len(out.token_ids) == 4
        assert [chunk.text for chunk in lm.stream("Once", max_new_tokens=2)]
        lm.score("Once upon", " a time")
        lm.forward(torch.tensor([[1, 5, 6]]))


def test_a_folder(blocked: list[str], folder: Path) -> None:
    use(folder)
    with edgelm.load(folder, context=64) as lm:
        lm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=2)
    assert not blocked


def test_a_gguf_file(blocked: list[str], folder: Path, tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    pieces += [f"w{i}" for i in range(2048 - len(pieces))]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * len(pieces),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    path = write_gguf_model(folder, tmp_path / "m.gguf", metadata=metadata)
    use(path)
    assert not blocked


def test_the_command_line(
    blocked: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from edgelm.cli.main import main

    for words in (["plan"], ["inspect"], ["generate", "Once", "--max-tokens", "2"]):
        verb, *rest = words
        monkeypatch.setattr("sys.argv", ["edgelm", verb, str(folder), *rest, "--json"])
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main())
        assert not ended.value.code
        json.loads(capsys.readouterr().out)
    assert not blocked


def test_inspection(blocked: list[str], folder: Path) -> None:
    from edgelm.models.model_files import ModelFiles

    assert inspect_files(ModelFiles.open(str(folder))).parameters > 1e6
    assert not blocked


def test_hub_ids_and_the_demo_say_so(
    blocked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both need the network, and both end in one sentence."""
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with pytest.raises(HubError, match=r"owner/name .*(reached|fetched)"):
        references.resolve("owner/name")
    with pytest.raises(HubError, match="not in the cache"):
        references.resolve("demo", offline=True)
