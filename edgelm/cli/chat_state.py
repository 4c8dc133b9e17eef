"""A conversation and how its answers are shown, wherever its lines come from."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from edgelm.cli import console
from edgelm.cli.options import OutputOptions
from edgelm.cli.streams import tell

if TYPE_CHECKING:
    from edgelm.generation.dialogue import Dialogue
    from edgelm.generation.request import Chunk, Result


class Chat:
    """A conversation whose questions and commands come from somewhere.

    offered: a text that the user may change and send. ended: nothing more is read.
    """

    def __init__(self, dialogue: Dialogue, output: OutputOptions) -> None:
        self.dialogue, self.output = dialogue, output
        self.offered = ""
        self.ended = False

    def tell(self, text: str) -> None:
        """A line about the conversation, which is not part of it."""
        if not self.output.quiet:
            tell(text)

    def answer(self, ask: Callable[[], Generator[Chunk, None, None]]) -> None:
        """Show an answer, and how it ended."""
        forgotten = self.dialogue.forgotten
        result = self.show(ask)
        if dropped := self.dialogue.forgotten - forgotten:
            tell(f"[the oldest {dropped} turns were dropped: the context is full]")
        if result.finish_reason == "length":
            self.tell(self._cut(result))
        console.note(console.statistics_line(self.dialogue.lm.plan, result.stats), self.output)

    def show(self, ask: Callable[[], Generator[Chunk, None, None]]) -> Result:
        """Write an answer while it comes."""
        return console.say(ask(), self.output)

    def _cut(self, result: Result) -> str:
        """Why an answer ends in the middle."""
        used = result.stats.prompt_tokens + result.stats.new_tokens
        context = self.dialogue.lm.plan.context
        if used >= context:
            return f"[cut: the context of {context} tokens is full; /forget makes room]"
        return f"[cut after {result.stats.new_tokens} tokens, the limit of an answer]"
