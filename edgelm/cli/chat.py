"""``edgelm chat``: a conversation, from a terminal or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgelm.cli import console
from edgelm.cli.chat_state import Chat
from edgelm.cli.opening import load_for_text
from edgelm.cli.options import (
    LOADING,
    SOURCE,
    GuessOptions,
    LoadOptions,
    Model,
    OutputOptions,
    RunOptions,
    SamplingOptions,
    SourceOptions,
    TemplateOptions,
)
from edgelm.cli.streams import tell
from edgelm.errors import CancelledError, EdgeLMError, UsageError
from edgelm.text.lines import part_at_line_feeds, without_ends

if TYPE_CHECKING:
    from edgelm.generation.dialogue import Dialogue

System = Annotated[str, typer.Option(help="System message.", rich_help_panel=SOURCE)]
OnFull = Annotated[
    Literal["stop", "drop-oldest"],
    typer.Option(
        help="A question that does not fit the context is refused, or the oldest turns are dropped "
        "for it.",
        rich_help_panel=LOADING,
    ),
]


def chat(
    model: Model, sampling: SamplingOptions, source: SourceOptions, template: TemplateOptions,
    load: LoadOptions, guess: GuessOptions, run: RunOptions, output: OutputOptions,
    system: System = "", on_full: OnFull = "stop",
) -> None:  # fmt: skip
    """Chat with MODEL; /help shows the commands, among them /save FILE and /load FILE.

    From a pipe each line is a question, and only /reset, /load and /exit are commands: lines may be
    anybody's.
    """
    options = sampling.request(run) | guess.request() | template.request()
    with load_for_text(model, source, load, guess, run, output, chat=True) as lm:
        from edgelm.generation.dialogue import Dialogue

        dialogue = Dialogue(lm, options, system, on_full)
        try:
            if sys.stdin.isatty():
                from edgelm.cli.chat_terminal import Terminal

                Terminal(dialogue, output).run()
            else:
                Piped(dialogue, output).run()
        except KeyboardInterrupt:
            stopped = CancelledError("stopped by Ctrl-C")
            stopped.results = document(dialogue)
            raise stopped from None
        except EdgeLMError as error:
            error.results = document(dialogue)
            raise
    if output.json:
        console.print_json(document(dialogue))


def document(dialogue: Dialogue) -> dict[str, Any]:
    """What ``--json`` gives."""
    answers = [own.to_dict() for own in dialogue.answers]
    return {"messages": dialogue.messages, "answers": answers}


class Piped(Chat):
    """Lines from a pipe or a file; the first that fails ends the conversation."""

    def run(self) -> None:
        from edgelm.cli.chat_commands import command_in

        said = False
        for line in self._lines():
            found = command_in(line)
            if found and found[0].in_pipes:
                found[0].call(self, found[1])
                if self.ended:
                    return
                continue
            if found and line.split()[0] == "/save" and not said:
                said = True
                tell("edgelm: /save from a pipe writes nothing and is text like any other.")
            self.answer(lambda line=line: self.dialogue.ask(line))  # type: ignore[misc]

    def tell(self, text: str) -> None:
        if self.output.verbose:
            super().tell(text)

    def _lines(self) -> Iterator[str]:
        """The user's lines, without empty ones."""
        try:
            lines = without_ends(part_at_line_feeds(sys.stdin))
            yield from (line for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin is not {sys.stdin.encoding} text: {error}.") from error
