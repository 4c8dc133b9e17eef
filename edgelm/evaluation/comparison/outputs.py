"""Files that a comparison writes, tried before hours of work and not after."""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import UsageError


def require_writable(name: str, path: Path) -> None:
    """Try whether a file can be written; one that exists keeps its content until then.

    Raises UsageError, with the option's name.
    """
    there = path.exists()
    try:
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise UsageError(
            f"{name} {path} cannot be written: {error.strerror or error}. Give a file in a folder "
            "that exists and that you may write to."
        ) from None


def require_matplotlib() -> None:
    """Raise UsageError if there is no Matplotlib to draw a report with."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "The report is drawn with Matplotlib, which is not installed: pip install "
            "'edgelm[plot]'."
        ) from error


def write(path: Path, text: str) -> None:
    """Write a text; raises UsageError if the place was lost meanwhile."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}. Run the same command again: "
            "what was measured is kept."
        ) from error
