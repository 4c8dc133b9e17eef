"""Who is told how far long work is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""What is being done; how much of it is done, and of how much: bytes, or pieces of work."""

Count = Callable[[int, int], None]
"""How many are done, and of how many."""
