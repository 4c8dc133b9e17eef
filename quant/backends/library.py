"""Libraries that a backend may run on: whether one is installed, and its import at first use."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType


@cache
def library(name: str) -> ModuleType | None:
    """The module ``name``, None if it is not installed or cannot be loaded on this machine.

    Takes seconds and about a hundred MiB the first time, so kernels ask for it last.
    """
    with _quiet():
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    # bitsandbytes asks the Hub for code when the package ``kernels`` is there: hide it meanwhile.
    hidden = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        sys.modules.pop("kernels")
        if hidden is not None:
            sys.modules["kernels"] = hidden
