"""Clients that are slow, break off, or send and ask too much: refused, the others not disturbed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn")
import httpx
from running_server import NEEDED_S, running, wait_until_ready

import edgelm
from edgelm.server import connection
from edgelm.server.app import Server

SOON_S = 0.6
ASKED = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
HEAD = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    folder = assets / "nano" / "llama"
    with edgelm.load(folder, quant="int8", context=256, chunk=32, rows=2, threads=1) as model:
        yield model


@pytest.fixture
def url(lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose patience is short."""
    monkeypatch.setattr(connection, "REQUEST_S", SOON_S)
    monkeypatch.setattr(connection, "READ_S", SOON_S)
    monkeypatch.setattr(lm, "close", lambda: None)  # the other tests go on with it
    with running(Server(lambda: lm)) as address:
        wait_until_ready(address)
        yield address


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10 * SOON_S)


def drip(client: socket.socket, sent: bytes) -> bytes:
    """Send a byte at a time until the server hangs up; what it said."""
    client.settimeout(0.01)
    said = b""
    until = time.monotonic() + 10 * SOON_S
    for byte in sent:
        assert time.monotonic() < until, "the server went on waiting"
        with suppress(TimeoutError):
            client.sendall(bytes([byte]))
            if not (piece := client.recv(4096)):
                return said
            said += piece
    raise AssertionError("the server took all of it")


def answered(url: str) -> Any:
    """What the server says to an ordinary question; how long it took is not to grow."""
    start = time.monotonic()
    answer = httpx.post(f"{url}/v1/completions", json=ASKED, timeout=NEEDED_S)
    assert answer.status_code == 200 and time.monotonic() - start < 10 * SOON_S
    return answer.json()["choices"]


@pytest.mark.parametrize(
    ("at_once", "slowly"),
    [
        (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 5000),
        (HEAD + b"Content-Length: 5000\r\n\r\n", b'{"text": "' + b"x" * 4000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
    ],
    ids=["headers", "body", "chunks"],
)
def test_a_request_that_comes_a_byte_at_a_time(url: str, at_once: bytes, slowly: bytes) -> None:
    before = answered(url)
    start = time.monotonic()
    with closing(connected(url)) as client:
        client.sendall(at_once)
        with suppress(ConnectionError):  # bytes crossed the server's last word
            assert b" 408 " in drip(client, slowly)
    assert SOON_S / 2 < time.monotonic() - start < 5 * SOON_S
    assert answered(url) == before


def test_a_refused_request_cannot_go_on_for_ever(url: str) -> None:
    """The answer comes before the body, which then has no more time than any other."""
    with closing(connected(url)) as client:
        client.sendall(
            HEAD.replace(b"localhost", b"evil.example") + b"Content-Length: 9999\r\n\r\n"
        )
        assert b" 403 " in client.recv(4096)
        with suppress(ConnectionError):
            drip(client, b"x" * 9000)


def test_who_connects_and_asks_nothing_keeps_nobody_out(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_S", NEEDED_S)
    before = answered(url)
    with ExitStack() as stack, httpx.Client(base_url=url, timeout=NEEDED_S) as kept:
        assert kept.get("/health").status_code == 200
        for index in range(3 * connection.MOST_CONNECTIONS):
            client = stack.enter_context(closing(connected(url)))
            client.sendall(HEAD if index % 2 else b"")
            if index % 50 == 0:
                assert answered(url) == before
        assert answered(url) == before


def test_half_a_request(url: str) -> None:
    before = answered(url)
    whole = HEAD + b'Content-Length: 12\r\n\r\n{"text": "x"}'
    for cut in range(1, len(whole), 7):
        with closing(connected(url)) as client:
            client.sendall(whole[:cut])
            client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                assert b" 200 " not in client.recv(4096)
    assert answered(url) == before


@pytest.mark.parametrize("size", [1 << 17, 1 << 20])
def test_headers_without_end(url: str, size: int) -> None:
    before, line = answered(url), b"X: " + b"x" * 1000 + b"\r\n"
    with closing(connected(url)) as client, suppress(ConnectionError):
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + line * (size // len(line)))
        client.sendall(b"\r\n")
        assert b" 200 " not in client.recv(4096)
    assert answered(url) == before


@pytest.mark.parametrize(
    "said",
    [
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_other_hosts_and_what_is_not_http(url: str, said: bytes) -> None:
    with closing(connected(url)) as client:
        client.sendall(said)
        status = client.recv(4096).split(b" ")[1]
    assert status in (b"400", b"403")
    assert httpx.get(f"{url}/health").status_code == 200


def test_an_answer_that_nobody_reads_leaves_its_row(
    url: str, lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's window and the server's buffers fill; both rows are given to others."""
    original = lm.stream_requests

    def endless(requests: Any, stop: Any = None) -> Iterator[Any]:
        *_, (index, last) = original(requests, stop)
        while not stop.is_set():
            yield index, edgelm.Chunk("x" * 100_000)
            time.sleep(0.01)
        yield index, last

    clients = [connected(url) for _ in range(2)]
    body = b'{"prompt": [5], "stream": true, "max_tokens": 1}'
    with monkeypatch.context() as patch, ExitStack() as stack:
        patch.setattr(lm, "stream_requests", endless)
        for client in clients:
            stack.enter_context(closing(client))
            head = HEAD.replace(b"/tokenize", b"/v1/completions")
            client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert b" 200 " in client.recv(1000)
        patch.undo()
        assert answered(url)
