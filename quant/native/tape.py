"""Tape: calls of the native library, recorded once and replayed without Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from . import library
from .ops import Call


class _Call(ctypes.Structure):
    """edgelm_call"""

    _fields_ = (("operation", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


class _Tape(ctypes.Structure):
    """edgelm_tape"""

    _fields_ = (("calls", ctypes.c_void_p), ("count", ctypes.c_int64))


class Tape:
    """Calls in order; calling the tape replays them on the memory they were recorded with.

    first: Python code to run before them.
    """

    def __init__(self, calls: Sequence[Call], first: Callable[[], object] | None = None) -> None:
        self.calls, self.first = tuple(calls), first
        array = (_Call * len(calls))()
        for entry, call in zip(array, calls, strict=True):
            function = getattr(library(), call.function)
            entry.operation = ctypes.cast(function, ctypes.c_void_p).value
            entry.arguments = ctypes.addressof(call.struct)
        self._array = array
        self._tape = _Tape(ctypes.addressof(array), len(calls))
        self._replay = library().edgelm_replay
        self._pointer = ctypes.byref(self._tape)

    def __call__(self) -> None:
        if self.first is not None:
            self.first()
        self._replay(self._pointer)
