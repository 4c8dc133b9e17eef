"""From a command line to files and to a loaded model, in the order that finds mistakes early."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from edgelm.cli.console import progress_bars, set_verbosity, waiting
from edgelm.cli.options import GuessOptions, LoadOptions, OutputOptions, RunOptions, SourceOptions
from edgelm.errors import UsageError

if TYPE_CHECKING:
    from edgelm.model import LanguageModel
    from edgelm.models.model_files import ModelFiles


def open_files(
    model: str, source: SourceOptions, output: OutputOptions, *, headers_only: bool = False
) -> ModelFiles:
    """Headers of a model; ``demo`` is fetched the first time.

    ``headers_only``: see ``ModelFiles.open``.
    """
    from edgelm.models.model_files import ModelFiles

    set_verbosity(output)
    if model != "demo":
        return ModelFiles.open(model, headers_only=headers_only, **asdict(source))
    with waiting("opening the demo model (93 MB, fetched once)", output):
        return ModelFiles.open(model, **asdict(source))


def open_fitting(
    model: str, source: SourceOptions, output: OutputOptions, load: LoadOptions, run: RunOptions
) -> ModelFiles:
    """As ``open_files``; a model that does not fit so is not fetched."""
    if model == "demo":
        return open_files(model, source, output)
    from edgelm import loading

    set_verbosity(output)
    return loading.open_fitting(model, threads=run.threads, **asdict(source), **load.settings())


def open_headers_or_shape(
    model: str | None, shape: str | None, source: SourceOptions, output: OutputOptions
) -> ModelFiles:
    """Headers of a model, or those of a shape as it is published: in bfloat16."""
    if shape is None and model is not None:
        return open_files(model, source, output, headers_only=True)
    _refuse_both(model, shape)
    from edgelm.reports.benchmark import random_model

    set_verbosity(output)
    return random_model(str(shape), "none")


def _refuse_both(model: str | None, shape: str | None) -> None:
    if shape is None or model is not None:
        raise UsageError("Give either a MODEL or --shape, one of them.")


def open_files_or_shape(
    model: str | None, shape: str | None, source: SourceOptions, options: LoadOptions,
    run: RunOptions, output: OutputOptions,
) -> tuple[ModelFiles, LoadOptions]:  # fmt: skip
    """Headers of a model, or a shape whose random weights come in the scheme asked for."""
    if shape is None and model is not None:
        return open_fitting(model, source, output, options, run), options
    _refuse_both(model, shape)
    from edgelm.reports.benchmark import random_model

    set_verbosity(output)
    options = options.or_quant("int4")
    return random_model(str(shape), options.settings()["quant"]), options


def load_for_text(
    model: str, source: SourceOptions, options: LoadOptions, guess: GuessOptions, run: RunOptions,
    output: OutputOptions, *, chat: bool = False, rows: int = 1,
) -> LanguageModel:  # fmt: skip
    """Weights, after the tokenizer (and for ``chat`` the template) proved to be there.

    ``rows`` answers are made side by side.
    """
    from edgelm import loading
    from edgelm.text.chat_template import render

    set_verbosity(output)
    files = open_files(model, source, output) if model == "demo" else model
    settings = options.settings() | guess.settings() | {"rows": rows}
    prepared = loading.prepare(files, threads=run.threads, **asdict(source), **settings)
    template = prepared.files.tokenizer.chat_template
    if chat:
        render(template, [{"role": "user", "content": "Hello!"}], bos="", eos="")
    with progress_bars(output) as bar:
        return prepared.load(bar(f"loading {prepared.files.name}"))
