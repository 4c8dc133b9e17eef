"""Instruction sets of the native library, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quant import native


def in_use(name: str) -> Iterator[str]:
    """Run with an instruction set until the test ends; skips where this CPU lacks it."""
    if name not in native.isas():
        pytest.skip(f"this CPU has no {name}")
    native.use_isa(name)
    yield name
    native.use_isa(native.isas()[-1])
