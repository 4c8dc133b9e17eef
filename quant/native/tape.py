"""Tape: calls of the native library, recorded once and replayed without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from . import library, structs
from .ops import Call


class Tape:
    """Calls in order; calling the tape replays them on the memory they were recorded with.

    first: Python code to run before them.
    """

    def __init__(self, calls: Sequence[Call], first: Callable[[], object] | None = None) -> None:
        self.calls, self.first = tuple(calls), first
        array = (structs.RecordedCall * len(calls))()
        for entry, call in zip(array, calls, strict=True):
            function = getattr(library(), call.function)
            entry.operation = ctypes.cast(function, ctypes.c_void_p).value
            entry.arguments = ctypes.addressof(call.struct)
        self._array = array
        self._tape = structs.RecordedTape(ctypes.addressof(array), len(calls))
        self._replay = library().edgelm_replay
        self._pointer = ctypes.byref(self._tape)

    def __call__(self) -> None:
        if self.first is not None:
            self.first()
        self._replay(self._pointer)
