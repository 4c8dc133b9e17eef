"""``edgelm chat``: a conversation, line by line, from a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress

from edgelm.cli import console
from edgelm.cli.opening import load_for_text, open_files
from edgelm.cli.options import (
    LoadOptions,
    Model,
    OutputOptions,
    RunOptions,
    SamplingOptions,
    SourceOptions,
)
from edgelm.model import LanguageModel
from edgelm.request import Result


def chat(
    model: Model, sampling: SamplingOptions, source: SourceOptions,
    load: LoadOptions, run: RunOptions, output: OutputOptions,
) -> None:  # fmt: skip
    """Talk with MODEL; /reset starts anew, /exit or the end of input ends it."""
    files = open_files(model, source, output, load)
    messages: list[dict[str, str]] = []
    answers: list[Result] = []
    with load_for_text(files, load, run, output, chat=True) as lm:
        for line in _lines(output):
            if line == "/exit":
                break
            if line == "/reset":
                messages.clear()
                continue
            messages.append({"role": "user", "content": line})
            answer = _answer(lm, messages, sampling, run, output)
            if answer is None:
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer.text})
            answers.append(answer)
            console.note(console.statistics_line(lm.plan, answer.stats), output)
    if output.json:
        told = [answer.to_dict() for answer in answers]
        console.print_json({"messages": messages, "answers": told})


def _answer(
    lm: LanguageModel, messages: list[dict[str, str]], sampling: SamplingOptions, run: RunOptions,
    output: OutputOptions,
) -> Result | None:  # fmt: skip
    """The model's turn; None where Ctrl-C on a terminal stopped it, which ends that turn alone."""
    chunks = lm.stream_chat(messages, **sampling.request(run))
    try:
        return console.say(chunks, output)
    except KeyboardInterrupt:
        chunks.close()
        if not sys.stdin.isatty():
            raise
        print()
        return None


def _lines(output: OutputOptions) -> Iterator[str]:
    """What the user types, without empty lines; a prompt is shown on terminals only."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (input() edits lines and remembers them then)
    if not output.quiet:
        print("/reset starts anew, /exit ends.", file=sys.stderr)
    with suppress(EOFError):
        while True:
            if line := input("> ").strip():
                yield line
