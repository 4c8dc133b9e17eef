"""LimitedProcess: what a model's files say to compute, in a process with limits.

Chat templates are programs, and a tokenizer's regular expressions and normalizers nearly are: no
check beforehand bounds what they take, and a library that is busy with them cannot be stopped. The
process starts when it is first asked (``python -I -S``, no environment, pipes only), answers one
question after another, and is killed when an answer takes too long or too much memory; the next
question starts another. It ends with this process: normally through ``weakref.finalize``, else
because its stdin ends. Its memory (about 20 MiB while idle) is its own and in no plan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgelm.errors import EdgeLMError
from edgelm.text.limited_worker import OUT_OF_MEMORY

_POLL_S = 0.02
_PATIENCE = 10  # seconds to wait for one of processor time: the machine may be busy
_IDLE_BYTES = 64 * 2**20  # resident before a question, beyond which nbytes counts
_HERE = Path(__file__).parent
_KEPT = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ")  # of the environment: to start, and the clock


class QuestionError(Exception):
    """A question has no answer: the message, the end of a sentence, is what the script raised."""


class LimitExceededError(QuestionError):
    """It took more than its limits; the message says which."""


@dataclass(frozen=True)
class Limits:
    """What one question may take: seconds of processor time, bytes beyond those of an idle one."""

    seconds: float
    nbytes: int


class LimitedProcess:
    """Asks a script of this package questions, all of JSON types; from any thread."""

    def __init__(
        self,
        script: str,
        libraries: Sequence[str],
        first: Callable[[], tuple[Any, Limits]] | None = None,
    ) -> None:
        """script: a module of this folder with a function ``answer``. libraries: the packages
        that it imports. first: the question that each new process is asked before any other."""
        self._script = script
        self._libraries = libraries
        self._first = first
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        _ALL.add(self)

    def ask(self, question: Any, limits: Limits) -> Any:
        """The answer. Raises QuestionError; EdgeLMError if no process can be started."""
        request = _request(question, limits)
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._exchange(request, limits)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def forget(self) -> None:
        """Leave the process to the one that this process was forked from."""
        self._lock = threading.Lock()
        if (process := self._process) is not None:
            self._finalizer.detach()
            _close_pipes(process)
            process.returncode = 0  # it is nobody's child here
            self._process = None

    def _start(self) -> None:
        self.close()
        worker = [_HERE / "limited_worker.py", _HERE / self._script]
        worker += map(_folder, self._libraries)
        try:
            process = subprocess.Popen(
                [_interpreter(), "-I", "-S", *map(str, worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # a fork copies no bytes that are not written yet
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                cwd=os.sep,
                start_new_session=True,  # Ctrl-C is for this process alone
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise EdgeLMError(
                f"The helper process for chat templates and tokenizers does not start ({error}). "
                f"Check that {_interpreter()} can be run and that memory is left."
            ) from error
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        if self._first is not None:
            question, limits = self._first()
            try:
                self._exchange(_request(question, limits), limits)
            except QuestionError:
                self.close()
                raise

    def _exchange(self, request: bytes, limits: Limits) -> Any:
        process = self._process
        assert process is not None
        found: list[str] = []
        try:
            with _watched(process, limits, found):
                reply = _talk(process, request)
        except BaseException:  # the reply that is still to come would be taken for the next one
            self.close()
            raise
        if reply.endswith(b"\n"):
            told = json.loads(reply)
            if "failed" in told:
                raise QuestionError(told["failed"])
            return told["answer"]
        self.close()
        raise LimitExceededError(found[0] if found else _reason(process.returncode, limits))


def _request(question: Any, limits: Limits) -> bytes:
    asked = {"question": question, "seconds": limits.seconds, "nbytes": limits.nbytes}
    return json.dumps(asked).encode() + b"\n"


def _folder(package: str) -> Path:
    """Where the package lies; the process sees no other folder of libraries."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


def _interpreter() -> str:
    """This Python; on Windows not the launcher of a virtual environment, whose child it is."""
    return (
        str(getattr(sys, "_base_executable", sys.executable)) if os.name == "nt" else sys.executable
    )


def _talk(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The line that comes back; without its end if the process ended."""
    assert process.stdin is not None and process.stdout is not None
    rest, parts = memoryview(request), [b""]
    try:
        while rest:
            rest = rest[process.stdin.write(rest) :]
    except OSError:
        return b""
    while not parts[-1].endswith(b"\n") and (part := process.stdout.read(2**20)):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def _watched(process: subprocess.Popen[bytes], limits: Limits, found: list[str]) -> Iterator[None]:
    """Kill the process if it exceeds its limits meanwhile; ``found`` then says which."""
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(process, limits, done, found), name="edgelm-limits", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(
    process: subprocess.Popen[bytes], limits: Limits, done: threading.Event, found: list[str]
) -> None:
    import psutil

    began, before = time.monotonic(), None
    while not done.wait(_POLL_S):
        try:
            program = psutil.Process(process.pid)
            used = sum(program.cpu_times()[:2])
            held = program.memory_info().rss
        except psutil.Error:  # it ended
            return
        before = used if before is None else before
        waited = time.monotonic() - began
        if used - before > limits.seconds or waited > _PATIENCE * limits.seconds:
            found.append(f"it ran longer than {limits.seconds:.3g} s")
        elif held > _IDLE_BYTES + limits.nbytes:
            found.append(_too_much(limits))
        if found:
            process.kill()
            return


def _reason(code: int | None, limits: Limits) -> str:
    if code == OUT_OF_MEMORY:
        return _too_much(limits)
    return f"{_too_much(limits)} or crashed (exit code {code})"


def _too_much(limits: Limits) -> str:
    return f"it took more than {limits.nbytes >> 20} MiB of memory"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


_ALL: weakref.WeakSet[LimitedProcess] = weakref.WeakSet()


def _forget_all() -> None:
    for each in list(_ALL):
        each.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
