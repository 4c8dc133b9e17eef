"""``edgelm generate``: the continuation of a prompt, or of every line of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from edgelm.errors import UsageError

Prompt = Annotated[str | None, typer.Argument(help="The text to continue.")]
File = Annotated[Path | None, typer.Option(help="A text file with one prompt a line.")]

_ROWS = 8  # lines of a file that are answered side by side


def generate(
    model: Model, sampling: SamplingOptions, source: SourceOptions, load: LoadOptions,
    run: RunOptions, output: OutputOptions, prompt: Prompt = None, file: File = None,
) -> None:  # fmt: skip
    """Stream a continuation of PROMPT, or continue every line of --file."""
    if (prompt is None) == (file is None):
        raise UsageError("Give either a PROMPT or --file, one of them.")
    prompts = [prompt] if prompt is not None else _lines(file)
    files = open_files(model, source, output)
    rows = min(len(prompts), _ROWS)
    with load_for_text(files, load, run, output, rows=rows) as lm:
        options = sampling.request(run)
        if prompt is None:
            answers = lm.generate(prompts, **options)
            if output.json:
                console.print_json({"results": [answer.to_dict() for answer in answers]})
            else:
                for line, answer in zip(prompts, answers, strict=True):
                    print(f"{line}{answer.text}\n")
            return
        answer = console.say(lm.stream(prompt, **options), output)
        if output.json:
            console.print_json(answer.to_dict())
        console.note(console.statistics_line(lm.plan, answer.stats), output)


def _lines(file: Path | None) -> list[str]:
    assert file is not None
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as UTF-8 text: {error}.") from error
    if not lines:
        raise UsageError(f"{file} holds no prompt; write one a line.")
    return lines
