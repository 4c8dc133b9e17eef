"""``edgelm serve`` in a process of its own, for soaks that watch it from outside."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ASSETS = Path(
    os.environ.get("EDGELM_ASSETS") or Path(__file__).resolve().parents[3] / "shared" / "assets"
)
MIB = 1 << 20
NEEDED_S = 120.0


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        ready_s: from the start of its process to its first 200.
    """

    url: str
    process: subprocess.Popen[bytes]
    ready_s: float

    def kill(self) -> None:
        """SIGKILL."""
        self.process.send_signal(signal.SIGKILL)

    def memory_bytes(self, kind: str = "VmRSS") -> int:
        """Resident memory now; VmHWM: the most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        found = re.search(rf"{kind}:\s*(\d+) kB", text)
        assert found is not None
        return int(found[1]) << 10

    def measure(self, name: str) -> float:
        """One number of ``/metrics``."""
        text = httpx.get(f"{self.url}/metrics", timeout=NEEDED_S).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"{name} is not in /metrics"
        return float(found[1])


def with_template(family: str, folder: Path) -> Path:
    """A nano model's folder with a chat template, Gemma's, which they come without."""
    model = folder / family
    shutil.copytree(ASSETS / "nano" / family, model)
    template = ASSETS / "templates" / "google-gemma-2-2b-it.jinja"
    shutil.copy(template, model / "chat_template.jinja")
    return model


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Served]:
    """The server until the block ends; then it must stop by itself, and without a fault."""
    with socket.socket() as probe, tempfile.TemporaryFile() as log:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "edgelm", "serve", str(model), "--port", str(port)]
        start = time.perf_counter()
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        try:
            wait_until_ready(port, process)
            yield Served(f"http://127.0.0.1:{port}", process, time.perf_counter() - start)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(NEEDED_S)
            log.seek(0)
            said = log.read().decode(errors="replace")
        if "Traceback" in said:
            raise SystemExit(f"the server said:\n{said[-4000:]}")


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Asks every few milliseconds, without a client that takes time to import."""
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    until = time.monotonic() + NEEDED_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=NEEDED_S) as client:
                client.sendall(asked)
                if b" 200 " in client.recv(100):
                    return
        except OSError:
            pass
        time.sleep(0.005)
    raise SystemExit(f"the server is not ready: exit code {process.poll()}")
