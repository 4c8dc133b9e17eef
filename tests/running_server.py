"""A server that runs in a thread of the test, as ``edgelm serve`` runs it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from edgelm.server.app import Server
from edgelm.server.connection import http_config

NEEDED_S = 120.0


@contextmanager
def running(server: Server) -> Iterator[str]:
    """The server on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    http = uvicorn.Server(http_config(server.app, "127.0.0.1", port))
    thread = threading.Thread(target=http.run)
    thread.start()
    try:
        until = time.monotonic() + NEEDED_S
        while not http.started and time.monotonic() < until:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        http.should_exit = True
        thread.join(NEEDED_S)


def wait_until_ready(address: str) -> None:
    until = time.monotonic() + NEEDED_S
    while httpx.get(f"{address}/health").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.01)
