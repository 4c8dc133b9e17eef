"""``edgelm chat``: a conversation, line by line, from a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgelm.cli import console
from edgelm.cli.opening import load_for_text
from edgelm.cli.options import (
    GuessOptions,
    LoadOptions,
    Model,
    OutputOptions,
    RunOptions,
    SamplingOptions,
    SourceOptions,
    TemplateOptions,
)
from edgelm.cli.streams import OutputError, tell
from edgelm.errors import CancelledError, EdgeLMError, UsageError
from edgelm.text.lines import part_at_line_feeds, without_ends

if TYPE_CHECKING:
    from edgelm.generation.request import Result
    from edgelm.model import LanguageModel

HELP = "/reset starts over, /save FILE and /load FILE store a conversation, /exit ends."
COMMANDS = ("/reset", "/save", "/load", "/exit")


def chat(
    model: Model, sampling: SamplingOptions, source: SourceOptions, template: TemplateOptions,
    load: LoadOptions, guess: GuessOptions, run: RunOptions, output: OutputOptions,
) -> None:  # fmt: skip
    """Chat with MODEL; /reset starts over, /save FILE and /load FILE store it, /exit ends it.

    In lines from a pipe any other beginning is text, and so is /save: they may be anybody's.
    """
    options = sampling.request(run) | guess.request() | template.request()
    with load_for_text(model, source, load, guess, run, output, chat=True) as lm:
        talk = _Typed(lm, options, output) if sys.stdin.isatty() else _Piped(lm, options, output)
        try:
            for line in talk.lines():
                if line.split()[0] == "/exit":
                    break
                talk.obey(line)
        except KeyboardInterrupt:
            stopped = CancelledError("stopped by Ctrl-C")
            stopped.results = talk.document()
            raise stopped from None
        except EdgeLMError as error:
            error.results = talk.document()
            raise
    if output.json:
        console.print_json(talk.document())


@dataclass
class _Talk:
    """A conversation and what is done with the lines of its user."""

    lm: LanguageModel
    options: dict[str, Any]
    output: OutputOptions
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Result] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """What ``--json`` gives."""
        return {"messages": self.messages, "answers": [own.to_dict() for own in self.answers]}

    def say(self, text: str) -> None:
        """A turn; one that was not answered never was."""
        self.messages.append({"role": "user", "content": text})
        try:
            answer = console.say(self.lm.stream_chat(self.messages, **self.options), self.output)
        except BaseException:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        self.answers.append(answer)
        console.note(console.statistics_line(self.lm.plan, answer.stats), self.output)

    def command(self, line: str) -> None:
        """A line that begins with a slash."""
        name, _, file = line.strip().partition(" ")
        if name == "/reset":
            self.messages.clear()
        elif name == "/save" and file:
            self.lm.save_conversation(file, self.messages)
        elif name == "/load" and file:
            self.messages[:] = self.lm.restore_conversation(file)
        else:
            raise UsageError(f"{line.strip()} is not a command. {HELP}")


class _Piped(_Talk):
    """Lines from a pipe or a file; the first that fails ends the conversation."""

    _said = False

    def lines(self) -> Iterator[str]:
        """The user's lines, without empty ones."""
        try:
            lines = without_ends(part_at_line_feeds(sys.stdin))
            yield from (line for line in lines if line.strip())
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin is no {sys.stdin.encoding} text: {error}.") from error

    def obey(self, line: str) -> None:
        name = line.split()[0]
        if name == "/save" and not self._said:
            self._said = True
            tell("edgelm: /save from a pipe writes nothing and is text like any other.")
        if name in COMMANDS and name != "/save":
            self.command(line)
        else:
            self.say(line)


class _Typed(_Talk):
    """Lines typed on a terminal, where a mistake ends nothing and Ctrl-C an answer alone."""

    def lines(self) -> Iterator[str]:
        """The user's lines, without empty ones, after a prompt each."""
        with suppress(ImportError):
            import readline  # noqa: F401  (input() edits lines and remembers them then)
        if not self.output.quiet:
            tell(HELP)
        with suppress(EOFError):
            while True:
                if (line := input("> ")).strip():
                    yield line

    def obey(self, line: str) -> None:
        answers = not line.startswith("/")
        try:
            (self.say if answers else self.command)(line)
        except OutputError:
            raise
        except EdgeLMError as error:
            console.print_error(error, as_json=False)
        except KeyboardInterrupt:
            if not answers:
                raise
            print()
