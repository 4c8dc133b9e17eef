"""``edgelm chat``: a conversation, line by line, from a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

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
from edgelm.errors import EdgeLMError, UsageError
from edgelm.generation.request import Result
from edgelm.model import LanguageModel

HELP = "/reset starts over, /save FILE and /load FILE store a conversation, /exit ends."


def chat(
    model: Model, sampling: SamplingOptions, source: SourceOptions, template: TemplateOptions,
    load: LoadOptions, guess: GuessOptions, run: RunOptions, output: OutputOptions,
) -> None:  # fmt: skip
    """Chat with MODEL; /reset starts over, /save FILE and /load FILE store it, /exit ends it."""
    options = sampling.request(run) | guess.request() | template.request()
    with load_for_text(model, source, load, guess, run, output, chat=True) as lm:
        talk = _Talk(lm, options, output)
        for line in _lines(output):
            if line == "/exit":
                break
            if line.startswith("/"):
                talk.command(line)
            else:
                talk.say(line)
    if output.json:
        told = [answer.to_dict() for answer in talk.answers]
        console.print_json({"messages": talk.messages, "answers": told})


@dataclass
class _Talk:
    lm: LanguageModel
    options: dict[str, Any]
    output: OutputOptions
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Result] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A turn; a turn that Ctrl-C stopped on a terminal never was."""
        self.messages.append({"role": "user", "content": text})
        answer = self._answer()
        if answer is None:
            self.messages.pop()
            return
        self.messages.append({"role": "assistant", "content": answer.text})
        self.answers.append(answer)
        console.note(console.statistics_line(self.lm.plan, answer.stats), self.output)

    def command(self, line: str) -> None:
        """A line that begins with a slash; on a terminal a mistake in it ends nothing."""
        try:
            self._obey(*line.partition(" ")[::2])
        except EdgeLMError as error:
            if not sys.stdin.isatty():
                raise
            console.print_error(error, as_json=False)

    def _obey(self, name: str, file: str) -> None:
        if name == "/reset":
            self.messages.clear()
        elif name == "/save" and file:
            self.lm.save_conversation(file, self.messages)
        elif name == "/load" and file:
            self.messages[:] = self.lm.restore_conversation(file)
        else:
            raise UsageError(f"{name} {file}".strip() + f" is not a command. {HELP}")

    def _answer(self) -> Result | None:
        chunks = self.lm.stream_chat(self.messages, **self.options)
        try:
            return console.say(chunks, self.output)
        except KeyboardInterrupt:
            chunks.close()
            if not sys.stdin.isatty():
                raise
            print()
            return None


def _lines(output: OutputOptions) -> Iterator[str]:
    """The user's lines, without empty ones; a prompt is shown on terminals only."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and remembers them then)
    if not output.quiet:
        print(HELP, file=sys.stderr)
    with suppress(EOFError):
        while True:
            if line := input("> ").strip():
                yield line
