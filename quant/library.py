"""Optional libraries of the backends, imported at first use."""

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
    """Import the module ``name``; None if it is not installed or cannot be loaded here.

    Takes seconds and about 100 MiB the first time, so kernels check this last.
    """
    with _quiet():
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    # bitsandbytes fetches code from the Hub if the package ``kernels`` is installed: hide it.
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
