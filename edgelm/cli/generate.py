"""``edgelm generate``: the continuation of a prompt, or of every line of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelm.cli import console
from edgelm.cli.opening import load_for_text
from edgelm.cli.options import (
    OUTPUT,
    SAMPLING,
    SOURCE,
    GuessOptions,
    LoadOptions,
    Model,
    OutputOptions,
    RunOptions,
    SamplingOptions,
    SourceOptions,
    flag,
)
from edgelm.cli.streams import read_stdin
from edgelm.errors import UsageError
from edgelm.generation.option_table import GenerateOptions
from edgelm.planning.setting_table import MOST_ROWS
from edgelm.text.lines import open_text, without_ends

if TYPE_CHECKING:
    from edgelm.generation.request import Result
    from edgelm.model import LanguageModel

Prompt = Annotated[str | None, typer.Argument(help="The text to continue; - reads it from stdin.")]
File = Annotated[
    Path | None, typer.Option(help="A text file with one prompt per line.", rich_help_panel=SOURCE)
]
Answers = Annotated[
    int, typer.Option("-n", help="Number of answers per prompt.", rich_help_panel=SAMPLING)
]
Beams = Annotated[
    int, typer.Option(help="Beam search of this width (above 1).", rich_help_panel=SAMPLING)
]
ParseSpecial = Annotated[bool | None, flag(GenerateOptions, "parse_special", SOURCE)]
Logprobs = Annotated[int | None, flag(GenerateOptions, "logprobs", OUTPUT)]


def generate(
    model: Model, sampling: SamplingOptions, source: SourceOptions, load: LoadOptions,
    guess: GuessOptions, run: RunOptions, output: OutputOptions, prompt: Prompt = None,
    file: File = None, parse_special: ParseSpecial = None, n: Answers = 1, beams: Beams = 1,
    logprobs: Logprobs = None,
) -> None:  # fmt: skip
    """Stream a continuation of PROMPT, or continue every line of --file."""
    if (prompt is None) == (file is None):
        raise UsageError("Give either a PROMPT or --file, one of them.")
    prompt = read_stdin() if prompt == "-" else prompt
    prompts = [prompt] if prompt is not None else _lines(file)
    options = sampling.request(run) | guess.request()
    options |= {"logprobs": logprobs, "parse_special": parse_special}
    rows = max(min(len(prompts) * n, MOST_ROWS), beams)
    with load_for_text(model, source, load, guess, run, output, rows=rows) as lm:
        if prompt is None or n != 1 or beams != 1:
            answers = _answers(lm, prompts, n, options | {"beams": beams})
            if output.json:
                console.print_json({"results": [answer.to_dict() for answer in answers]})
            else:
                lines = (line for line in prompts for _ in range(n))
                for line, answer in zip(lines, answers, strict=True):
                    print(f"{line}{answer.text}\n")
            return
        answer = console.say(lm.stream(prompt, **options), output)
        if output.json:
            console.print_json(answer.to_dict())
        console.note(console.statistics_line(lm.plan, answer.stats), output)


def _answers(
    lm: LanguageModel, prompts: list[str], n: int, options: dict[str, Any]
) -> list[Result]:
    """n answers to each prompt, one prompt after the other."""
    if n == 1:
        return lm.generate(prompts, **options)
    return [answer for own in lm.generate(prompts, n=n, **options) for answer in own]


def _lines(file: Path | None) -> list[str]:
    assert file is not None
    try:
        with open_text(file) as stream:
            lines = [line for line in without_ends(stream) if line]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as UTF-8 text: {error}.") from error
    if not lines:
        raise UsageError(f"{file} holds no prompt; write one a line.")
    return lines
