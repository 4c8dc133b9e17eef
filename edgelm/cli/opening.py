"""From a command line to files and to a loaded model, in the order that finds mistakes early."""

from __future__ import annotations

from dataclasses import asdict, replace

from edgelm.benchmark import random_model
from edgelm.chat import render
from edgelm.cli.console import progress_bars, set_verbosity, waiting
from edgelm.cli.options import GuessOptions, LoadOptions, OutputOptions, RunOptions, SourceOptions
from edgelm.entry import load
from edgelm.errors import UsageError
from edgelm.files import ModelFiles
from edgelm.model import LanguageModel


def open_files(model: str, source: SourceOptions, output: OutputOptions) -> ModelFiles:
    """Headers of a model; ``demo`` is fetched the first time."""
    set_verbosity(output)
    if model != "demo":
        return ModelFiles.open(model, **asdict(source))
    with waiting("opening the demo model (98 MB, fetched once)", output):
        return ModelFiles.open(model, **asdict(source))


def open_files_or_shape(
    model: str | None, shape: str | None, source: SourceOptions, options: LoadOptions,
    output: OutputOptions,
) -> tuple[ModelFiles, LoadOptions]:  # fmt: skip
    """Headers of a model, or a shape whose random weights come in the scheme asked for."""
    if shape is None and model is not None:
        return open_files(model, source, output), options
    if shape is None or model is not None:
        raise UsageError("Give either a MODEL or --shape, one of them.")
    set_verbosity(output)
    if options.quant == "auto":
        options = replace(options, quant="int4")
    return random_model(shape, options.quant), options


def load_for_text(
    files: ModelFiles, options: LoadOptions, guess: GuessOptions, run: RunOptions,
    output: OutputOptions, *, chat: bool = False, rows: int = 1,
) -> LanguageModel:  # fmt: skip
    """Weights, after the tokenizer (and for ``chat`` the template) proved to be there.

    ``rows`` answers are made side by side.
    """
    template = files.tokenizer.chat_template
    if chat:
        render(template, [{"role": "user", "content": "Hello!"}], bos="", eos="")
    with progress_bars(output) as bar:
        progress = bar(f"loading {files.name}")
        settings = options.settings() | guess.settings() | {"rows": rows}
        return load(files, threads=run.threads, progress=progress, **settings)
