"""``edgelm generate``: the continuation of a prompt."""

from __future__ import annotations

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

Prompt = Annotated[str, typer.Argument(help="The text to continue.")]


def generate(
    model: Model, prompt: Prompt, sampling: SamplingOptions, source: SourceOptions,
    load: LoadOptions, run: RunOptions, output: OutputOptions,
) -> None:  # fmt: skip
    """Stream a continuation of PROMPT."""
    files = open_files(model, source, output)
    with load_for_text(files, load, run, output) as lm:
        answer = console.say(lm.stream(prompt, **sampling.request(run)), output)
        if output.json:
            console.print_json(answer.to_dict())
        console.note(console.statistics_line(lm.plan, answer.stats), output)
