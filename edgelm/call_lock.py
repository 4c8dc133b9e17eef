"""CallLock: whose turn it is among the calls to one model, in the process that loaded it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import CO_GENERATOR
from types import CodeType, FrameType
from typing import NoReturn

from edgelm.errors import CancelledError, UsageError

_LOOK_S = 0.02  # interval at which a waiting call checks whether it was cancelled
WAITED = "The call was cancelled while it waited for its turn."
PATIENCE_S = 10.0
"""A call waits so long for a stream that its own thread read last, and that nobody reads on."""


class CallLock:
    """The turns of calls: shared ones run side by side, any other alone, by arrival.

    Args:
        within: entered by whatever thread runs a call, as long as it does.
    """

    def __init__(self, within: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        self._changed = threading.Condition()
        self._line: list[Call] = []  # that wait, in order of arrival
        self._inside: list[Call] = []
        self._within = within
        self._process = os.getpid()

    @property
    def is_forked(self) -> bool:
        """True if this process was forked from the one that loaded the model."""
        return self._process != os.getpid()

    @contextmanager
    def take(self, cancelled: Callable[[], bool] = bool, *, shared: bool = False) -> Iterator[Call]:
        """Wait for the turn and take it.

        Raises:
            UsageError: a call that has the turn waits for this one, or the process was forked
                after loading.
            CancelledError: ``cancelled`` returned True while other calls were running.
        """
        if self.is_forked:
            # A lock copied by fork stays locked, and torch's threads do not exist here.
            raise UsageError(
                f"This model was loaded in process {self._process} and used after a fork. Load it "
                "again in this process, or start processes with the method 'spawn'."
            )
        call = Call(self._within, shared)
        self._wait(call, cancelled)
        try:
            call.enter()
            try:
                yield call
            finally:
                call.leave()
        finally:
            self._give_up(self._inside, call)

    @contextmanager
    def end(self) -> Iterator[None]:
        """Wait for other threads' calls before closing; not for this thread's, nor when forked."""
        if self.is_forked:
            yield
            return
        call, own = Call(self._within, shared=False), threading.get_ident()
        with self._changed:
            self._line.insert(0, call)  # what waits meanwhile finds the model closed
            while not all(other.belongs_to(own) for other in self._inside):
                self._changed.wait(_LOOK_S)
        try:
            yield
        finally:
            self._give_up(self._line, call)

    def _wait(self, call: Call, cancelled: Callable[[], bool]) -> None:
        own = threading.get_ident()
        with self._changed:
            if any(other.runner == own for other in self._inside):
                _refuse("A call to this model is running in this thread")
            self._line.append(call)
        try:
            while not self._admitted(call):
                refuse_nesting(self._inside)
                if cancelled():
                    raise CancelledError(WAITED)
        except BaseException:
            self._give_up(self._line, call)
            raise

    def _admitted(self, call: Call) -> bool:
        """True once the call is inside; waits for a change otherwise."""
        with self._changed:
            before = self._line[: self._line.index(call)] + self._inside
            if before and not (call.shared and all(other.shared for other in before)):
                self._changed.wait(_LOOK_S)
                return False
            self._line.remove(call)
            self._inside.append(call)
            return True

    def _give_up(self, place: list[Call], call: Call) -> None:
        with self._changed:
            place.remove(call)
            self._changed.notify_all()


class Call:
    """A call that has its turn, and the thread that runs it or read from it last."""

    def __init__(self, within: Callable[[], AbstractContextManager[object]], shared: bool) -> None:
        self.shared = shared
        self.runner: int | None = None
        self.reader: _Reader | None = None
        self._within = within
        self._entered: AbstractContextManager[object] = nullcontext()

    def enter(self) -> None:
        self.reader, self.runner = None, threading.get_ident()
        self._entered = self._within()
        self._entered.__enter__()

    def leave(self, reader: _Reader | None = None) -> None:
        self._entered.__exit__(None, None, None)
        self.reader, self.runner = reader, None

    def paused(self) -> AbstractContextManager[None]:
        """Around a stream's ``yield``: any thread may read on, and the turn is kept."""
        return _Pause(self)

    def belongs_to(self, thread: int) -> bool:
        """True if the thread runs the call, or read from it last."""
        reader = self.reader
        return self.runner == thread or (reader is not None and reader.thread == thread)


def refuse_nesting(calls: Iterable[Call], *, at_once: bool = True) -> None:
    """Raise UsageError if one of the calls cannot go on before the one that this thread waits in.

    Known for sure of a stream whose reader's frame stands on this thread's stack. A stream that
    this thread read last may be read on by another.

    Args:
        at_once: False where others may let this thread go on as well.
    """
    own = threading.get_ident()
    for reader in [call.reader for call in calls]:
        if reader is None or reader.thread != own:
            continue
        if at_once and reader.stands_here():
            _refuse("An answer is still being streamed in this thread")
        if time.monotonic() - reader.since > PATIENCE_S:
            _refuse(
                "An answer is still being streamed; this thread read it last, and nobody has read "
                f"on for {PATIENCE_S:g} seconds"
            )


def _refuse(reason: str) -> NoReturn:
    raise UsageError(f"{reason}; read it to its end or close it before the next call.")


class _Pause:
    """A stream between two pieces; see ``Call.paused``."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._call.leave(_Reader.of(sys._getframe(1)))

    def __exit__(self, *exception: object) -> None:
        self._call.enter()


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
