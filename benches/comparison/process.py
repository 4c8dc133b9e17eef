"""The other side of ``worker``: starts it, asks it, and does not wait for ever."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import provenance

from .missing import Missing
from .worker import ON_TORCH

BENCHES = Path(__file__).resolve().parent.parent
LOAD_LIMIT_S, TURN_LIMIT_S = 420.0, 180.0


class Worker:
    """A loaded engine that answers turn by turn.

    Args:
        spec: what ``worker.load`` takes. environment: variables for this engine alone.

    Raises:
        Missing: the engine is not installed, refused, or took longer than the limit.
    """

    def __init__(self, spec: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment, **provenance.environment(BENCHES)},
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(spec)
        base = {"import_torch_s": 0.0, "import_torch_bytes": 0}
        if spec["engine"] in ON_TORCH:
            base = self._answer(LOAD_LIMIT_S) | {"import_torch_s": self.seconds_alive()}
        self.about = self._answer(LOAD_LIMIT_S) | base

    def turn(self, prompt: int, steps: int) -> dict[str, float]:
        """Seconds of prefilling `prompt` tokens and of `steps` decode steps, and bytes of memory.

        Raises Missing as above; the worker has then ended.
        """
        self._send({"prompt": prompt, "steps": steps})
        return self._answer(TURN_LIMIT_S)

    def seconds_alive(self) -> float:
        return time.perf_counter() - self._started

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:  # closed meanwhile
            pass
        self._lines.put("")

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the missing answer says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _answer(self, limit_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            line = json.dumps({"missing": f"no answer within {limit_s:.0f} s"})
        told = json.loads(line) if line else {"missing": self._death()}
        if "missing" in told:
            self.close()
            raise Missing(told["missing"])
        return dict(told)

    def _death(self) -> str:
        return f"its process ended with {self._process.wait()}"
