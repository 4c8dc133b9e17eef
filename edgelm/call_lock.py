"""CallLock: a lock that serialises calls to one model, in the process that loaded it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import CO_GENERATOR
from types import CodeType, FrameType
from typing import NoReturn

from edgelm.errors import CancelledError, UsageError

_LOOK_S = 0.02  # interval at which a waiting call checks whether it was cancelled
PATIENCE_S = 10.0
"""A call waits so long for a stream that its own thread read last, and that nobody reads on."""


class CallLock:
    """A lock that belongs to a call, which different threads may carry on.

    Args:
        within: entered by whatever thread runs the call, as long as it does.
    """

    def __init__(self, within: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        self._turn = threading.Lock()  # from a call's beginning to its end
        self._gate = threading.RLock()  # while a thread runs the call, and while it is ended
        self._within = within
        self._inside: AbstractContextManager[object] = nullcontext()
        self._runner: int | None = None
        self._reader: _Reader | None = None
        self._process = os.getpid()

    @property
    def is_forked(self) -> bool:
        """True if this process was forked from the one that loaded the model."""
        return self._process != os.getpid()

    @contextmanager
    def take(self, cancelled: Callable[[], bool] = bool) -> Iterator[None]:
        """Wait for the turn and take it.

        Raises:
            UsageError: the call that has the turn waits for this one, or the process was forked
                after loading.
            CancelledError: ``cancelled`` returned True while other calls were running.
        """
        if self.is_forked:
            # A lock copied by fork stays locked, and torch's threads do not exist here.
            raise UsageError(
                f"This model was loaded in process {self._process} and used after a fork. Load it "
                "again in this process, or start processes with the method 'spawn'."
            )
        while not self._turn.acquire(timeout=_LOOK_S):
            self._refuse_nesting()
            if cancelled():
                raise CancelledError("The call was cancelled while it waited for its turn.")
        try:
            self._enter()
            try:
                yield
            finally:
                self._leave()
        finally:
            self._turn.release()

    def paused(self) -> AbstractContextManager[None]:
        """Around a stream's ``yield``: any thread may read on, and the turn is kept."""
        return _Pause(self)

    @contextmanager
    def end(self) -> Iterator[None]:
        """Wait for other threads' calls before closing; not for this thread's, nor when forked."""
        reader, own = self._reader, threading.get_ident()
        if self.is_forked:
            yield
        elif own == self._runner or (reader and own == reader.thread):
            with self._gate:  # a thread that reads on waits, and finds the model closed
                yield
        else:
            with self._turn:
                yield

    def _enter(self) -> None:
        self._gate.acquire()
        self._reader, self._runner = None, threading.get_ident()
        self._inside = self._within()
        self._inside.__enter__()

    def _leave(self, reader: _Reader | None = None) -> None:
        self._inside.__exit__(None, None, None)
        self._reader, self._runner = reader, None
        self._gate.release()

    def _refuse_nesting(self) -> None:
        """Raise UsageError if the call that has the turn cannot go on before this one ends.

        Known for sure of a call that this thread runs, and of a stream whose reader's frame stands
        on this thread's stack. A stream that this thread read last may be read on by another.
        """
        reader, own = self._reader, threading.get_ident()
        if self._runner == own:
            _refuse("A call to this model is running in this thread")
        if reader is None or reader.thread != own:
            return
        if reader.stands_here():
            _refuse("An answer is still being streamed in this thread")
        if time.monotonic() - reader.since > PATIENCE_S:
            _refuse(
                "An answer is still being streamed; this thread read it last, and nobody has read "
                f"on for {PATIENCE_S:g} seconds"
            )


def _refuse(reason: str) -> NoReturn:
    raise UsageError(f"{reason}; read it to its end or close it before the next call.")


class _Pause:
    """A stream between two pieces; see ``CallLock.paused``."""

    def __init__(self, lock: CallLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock._leave(_Reader.of(sys._getframe(1)))

    def __exit__(self, *exception: object) -> None:
        self._lock._enter()


@dataclass(frozen=True)
class _Reader:
    """Who read a stream last: a thread, and its frames from the stream up to the reader.

    Frames are known by id, code and instruction. Held themselves they would keep an abandoned
    stream alive, which is in their locals. An id may come again: what stands at the same
    instruction is a later run of the same code (the loop of a pool's thread), not the reader.
    """

    thread: int
    frames: dict[int, tuple[CodeType, int]]
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, stream: FrameType) -> _Reader:
        """Of the frame of the stream's generator; generators between it and the reader count."""
        frames, frame = {}, stream.f_back
        while frame is not None:
            frames[id(frame)] = frame.f_code, frame.f_lasti
            if not frame.f_code.co_flags & CO_GENERATOR:
                break
            frame = frame.f_back
        return cls(threading.get_ident(), frames)

    def stands_here(self) -> bool:
        """True if one of the frames is on the stack of this call, beyond where it read."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code, read_at = self.frames.get(id(frame), (None, -1))
            if code is frame.f_code and read_at != frame.f_lasti:
                return True
            frame = frame.f_back
        return False
