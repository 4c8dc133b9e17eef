"""The Hub's HTTP, spoken by a local stand-in: what is fetched, resumed, refused and explained.

The library runs in a process of its own, since it reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from terminal import edgelm_on_terminal

from edgelm.errors import HubError
from edgelm.hub import references

OLD, NEW = "a" * 40, "b" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "generation_config.json": b'{"eos_token_id": 2}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 100_000,  # the library keeps pieces of 10 MiB
    "pytorch_model.bin": b"never fetched",
    "README.md": b"licence: apache-2.0\n",
    "onnx/model.json": b"never fetched",
    "consolidated.safetensors": b"never fetched",
}
NEEDED = {name for name in FILES if FILES[name] != b"never fetched"}


@dataclass
class Hub:
    """The stand-in: one public repository, one gated, and what was asked of it."""

    address: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    cut_after: int = 0  # bytes of the weights after which an answer breaks off
    stalls: bool = False  # ... or hangs
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    claimed: dict[str, int] = field(default_factory=dict)  # sizes in the listing, where it lies
    ignores_ranges: bool = False
    sent: int = 0  # bytes of all answers

    def downloads(self) -> list[str]:
        return [path.split("/resolve/")[1] for method, path, _ in self.asked if method == "GET"
                and "/resolve/" in path]  # fmt: skip


def _handler(state: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            state.asked.append((self.command, self.path, self.headers.get("Range", "")))
            parts = self.path.split("?")[0].strip("/").split("/")
            repository = parts[2:4] if parts[0] == "api" else parts[:2]
            if repository == ["owner", "gated"]:
                self.refuse(403, "GatedRepo", "Access to model owner/gated is restricted")
            elif repository != ["owner", "model"]:
                self.refuse(401, "RepoNotFound", "Repository not found")
            elif parts[0] == "api" and parts[4:5] == ["tree"]:
                self.list_files()
            elif parts[0] == "api":
                self.describe(parts[5] if len(parts) > 5 else "main")
            else:
                self.send_file(parts[3], "/".join(parts[4:]), body)

        def describe(self, revision: str) -> None:
            commit = {"main": NEW, "v1": OLD, NEW: NEW, OLD: OLD}.get(revision)
            if commit is None:
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            siblings = [{"rfilename": name} for name in state.files]
            content = {"id": "owner/model", "modelId": "owner/model", "sha": commit,
                       "private": False, "tags": [], "downloads": 0,
                       "siblings": siblings}  # fmt: skip
            self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, True)

        def list_files(self) -> None:
            tree = [
                {"type": "file", "path": name, "oid": "0" * 40,
                 "size": state.claimed.get(name, len(content))}
                for name, content in state.files.items()
            ]  # fmt: skip
            self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, True)

        def send_file(self, revision: str, name: str, body: bool) -> None:
            content = state.files[name]
            commit = {"main": NEW, "v1": OLD}.get(revision, revision)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                       "Accept-Ranges": "bytes", "X-Linked-Size": str(len(content))}  # fmt: skip
            status, start, stop = 200, 0, len(content)
            asked = self.headers.get("Range")
            if body and asked and not state.ignores_ranges:
                first, last = asked.removeprefix("bytes=").split("-")
                status, start, stop = 206, int(first), int(last or len(content) - 1) + 1
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self.send(status, content[start:stop], headers, body)

        def send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return
            if state.cut_after and len(content) > state.cut_after:
                self.wfile.write(content[: state.cut_after])
                self.wfile.flush()
                while state.stalls:
                    time.sleep(0.05)
                self.close_connection = True
                self.connection.close()
                return
            for start in range(0, len(content), 1 << 16):
                try:
                    self.wfile.write(content[start : start + (1 << 16)])
                except ConnectionError:  # who asked has hung up
                    self.close_connection = True
                    return
                state.sent += len(content[start : start + (1 << 16)])

        def refuse(self, status: int, code: str, message: str) -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            self.send(status, b"{}", headers, self.command == "GET")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Hub]:
    state = Hub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


PROGRAM = """
import sys
from edgelm.hub import references
from edgelm.errors import EdgeLMError
try:
    print(references.resolve(sys.argv[1], offline=sys.argv[2] == "offline"))
except EdgeLMError as error:
    print(f"{type(error).__name__}: {error}")
"""


def library_settings(server: Hub, home: Path) -> dict[str, str]:
    """Environment of a library that knows only the stand-in."""
    return {
        "HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(references.__file__).parent.parent),
    }  # fmt: skip


def start(server: Hub, home: Path, reference: str, mode: str = "online") -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= library_settings(server, home)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, reference, mode], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def resolve(server: Hub, home: Path, reference: str, mode: str = "online") -> str:
    done = start(server, home, reference, mode)
    out, errors = done.communicate(timeout=60)
    assert done.returncode == 0, errors
    return out.strip()


def found(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_only_needed_files_then_offline(server: Hub, tmp_path: Path) -> None:
    folder = Path(resolve(server, tmp_path, "owner/model"))
    assert folder.name == NEW and found(folder) == NEEDED
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert {name.split("/", 1)[1] for name in server.downloads()} == NEEDED
    server.asked.clear()
    assert resolve(server, tmp_path, "owner/model", "offline") == str(folder)
    assert not server.asked
    assert resolve(server, tmp_path, "owner/model") == str(folder)
    assert not server.downloads(), "what is there is not fetched again"


def test_a_revision_is_pinned(server: Hub, tmp_path: Path) -> None:
    assert Path(resolve(server, tmp_path, "owner/model@v1")).name == OLD
    assert {name.split("/", 1)[0] for name in server.downloads()} == {OLD}
    assert "HubError" in resolve(server, tmp_path, f"owner/model@{NEW}", "offline")
    said = resolve(server, tmp_path, "owner/model@v9")
    assert said.startswith("HubError: owner/model has no revision 'v9'")


def ranges(server: Hub) -> list[str]:
    return [r for method, path, r in server.asked if method == "GET" and "safetensors" in path]


def test_a_broken_download_goes_on(server: Hub, tmp_path: Path) -> None:
    """Each connection breaks: the next one asks for what comes after the last whole piece."""
    server.cut_after = 11 << 20
    folder = Path(resolve(server, tmp_path, "owner/model"))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert ranges(server)[1:] == [f"bytes={10 << 20}-", f"bytes={20 << 20}-"]


def killed_in_mid_file(server: Hub, home: Path) -> int:
    """SIGKILL to a process that fetches the weights; how many bytes it left."""
    server.cut_after, server.stalls = 11 << 20, True
    process = start(server, home, "owner/model")
    size = 0
    for _ in range(600):
        size = sum(part.stat().st_size for part in home.rglob("*.incomplete"))
        if size >= 10 << 20:
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    server.cut_after, server.stalls = 0, False
    server.asked.clear()
    return size


def test_a_killed_download_goes_on(server: Hub, tmp_path: Path) -> None:
    """The next process asks for the rest of the file that the killed one was in."""
    left = killed_in_mid_file(server, tmp_path)
    assert 0 < left < len(FILES["model.safetensors"])
    folder = Path(resolve(server, tmp_path, "owner/model"))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert found(folder) == NEEDED and ranges(server) == [f"bytes={left}-"]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_parts_that_do_not_fit_are_not_kept(server: Hub, tmp_path: Path) -> None:
    """The sha256 that the Hub announced is checked where a file came in two parts."""
    killed_in_mid_file(server, tmp_path)
    (part,) = tmp_path.rglob("*.incomplete")
    part.write_bytes(b"?" + part.read_bytes()[1:])
    said = resolve(server, tmp_path, "owner/model")
    assert said.startswith("HubError") and "sha256" in said
    folder = Path(resolve(server, tmp_path, "owner/model"))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("owner/gated", "is gated: accept its terms"),
        ("owner/absent", "is not on the Hub, or is private"),
    ],
)
def test_refusals_are_explained(server: Hub, tmp_path: Path, reference: str, words: str) -> None:
    said = resolve(server, tmp_path, reference)
    assert said.startswith(f"HubError: {reference} {words}") and "HF_TOKEN" in said


def test_nothing_listens(server: Hub, tmp_path: Path) -> None:
    server.address = "http://127.0.0.1:9"
    assert "the Hub cannot be reached" in resolve(server, tmp_path, "owner/model")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals here")
def test_bars_while_fetching(server: Hub, tmp_path: Path) -> None:
    """On a terminal the weights' bar and what is looked up; with -q nothing; nothing in a pipe."""
    command = ["inspect", "owner/model"]  # whose weights are none: the one error at the end
    shown = edgelm_on_terminal(command, library_settings(server, tmp_path / "a"))
    assert shown.code == 4 and "looking up owner/model" in shown.terminal
    assert "%|" in shown.terminal and "25.6M" in shown.terminal
    quiet = edgelm_on_terminal([*command, "-q"], library_settings(server, tmp_path / "b"))
    assert quiet.code == 4 and quiet.terminal.count("\n") == 1
    assert server.downloads().count(f"{NEW}/model.safetensors") == 2
    piped = subprocess.run(
        [sys.executable, "-m", "edgelm", *command], text=True, capture_output=True,
        env=os.environ | library_settings(server, tmp_path / "c"),
    )  # fmt: skip
    assert piped.returncode == 4 and "header too large" in piped.stderr
    assert piped.stderr.count("\n") == 1


def test_two_processes_fetch_once(server: Hub, tmp_path: Path) -> None:
    both = [start(server, tmp_path, "owner/model") for _ in range(2)]
    folders = {done.communicate(timeout=60)[0].strip() for done in both}
    assert len(folders) == 1 and found(Path(folders.pop())) == NEEDED
    fetched = [name for name in server.downloads() if name.endswith("model.safetensors")]
    assert len(fetched) == 1, "the second waits for the first's lock"


def test_the_stand_in_is_not_the_real_hub() -> None:
    with pytest.raises(HubError):
        references.resolve("owner/model", offline=True)
