"""Progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (title, done, total); done and total are bytes or work items."""

Count = Callable[[int, int], None]
"""Called with (done, total)."""
