"""Lines of the texts that people write, which end at a line feed and nowhere else.

Python also parts lines at U+2028, U+0085, form feeds and lone carriage returns, all of which occur
inside texts. A carriage return before the line feed belongs to the line's end. The mark (BOM) that
editors on Windows put before a UTF-8 text is no part of it.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

UTF8 = "utf-8-sig"  # UTF-8 with or without the mark


def open_text(path: Path) -> TextIO:
    """A UTF-8 file to be read by lines, which keep their ends."""
    return path.open(encoding=UTF8, newline="\n")


def part_at_line_feeds(stream: TextIO) -> TextIO:
    """The stream, of which nothing was read yet, to be read as those of ``open_text``."""
    if isinstance(stream, io.TextIOWrapper):
        known = codecs.lookup(stream.encoding).name
        stream.reconfigure(
            encoding=UTF8 if known == "utf-8" else known, newline="\n", errors="strict"
        )
    return stream


def without_ends(lines: Iterable[str]) -> Iterator[str]:
    """Lines without their line feeds and what belongs to these."""
    return (line.removesuffix("\n").removesuffix("\r") for line in lines)
