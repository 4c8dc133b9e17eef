"""Markdown shown while it is written: whole blocks stay, the one that goes on is drawn again."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

_FENCES = ("```", "~~~")
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


class _Markdown(Markdown):
    """Markdown in which tags of HTML are text: Rich would leave them out, with what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self.parsed = parser.parse(text)


class MarkdownWriter:
    """Writes pieces of Markdown to a terminal.

    Only the last block is drawn again as it grows, so that long answers scroll as other text does.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        self._print(self._rest)

    def write(self, text: str) -> None:
        """Add a piece of the text."""
        self._rest += text.translate(_CONTROLS)  # which could steer the terminal
        end = whole_blocks(self._rest)
        if end:
            self._print(self._rest[:end])
            self._rest = self._rest[end:]
        self._live.update(_Markdown(self._rest), refresh=True)

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(_Markdown(text))


def whole_blocks(text: str) -> int:
    """How many characters are blocks that nothing more can change: up to the last empty line that
    stands outside of a fence of code."""
    end = at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        bare = line.strip()
        if fence:
            fence = "" if bare.startswith(fence) else fence
        elif bare.startswith(_FENCES):
            fence = bare[:3]
        elif not bare and line.endswith("\n"):
            end = at
    return end
