"""From a command line to files and to a loaded model, in the order that finds mistakes early."""

from __future__ import annotations

from edgelm.chat import render
from edgelm.cli.console import progress_bars, set_verbosity, waiting
from edgelm.cli.options import LoadOptions, OutputOptions, RunOptions, SourceOptions
from edgelm.entry import load
from edgelm.files import ModelFiles
from edgelm.model import LanguageModel


def open_files(model: str, source: SourceOptions, output: OutputOptions) -> ModelFiles:
    """Headers of a model; ``demo`` is fetched the first time."""
    set_verbosity(output)
    if model != "demo":
        return ModelFiles.open(model, revision=source.revision, offline=source.offline)
    with waiting("opening the demo model (98 MB, fetched once)", output):
        return ModelFiles.open(model, revision=source.revision, offline=source.offline)


def load_for_text(
    files: ModelFiles, options: LoadOptions, run: RunOptions, output: OutputOptions,
    *, chat: bool = False,
) -> LanguageModel:  # fmt: skip
    """Weights, after the tokenizer (and for ``chat`` the template) proved to be there."""
    template = files.tokenizer.chat_template
    if chat:
        render(template, [{"role": "user", "content": "Hello!"}], bos="", eos="")
    with progress_bars(output) as bar:
        progress = bar(f"loading {files.name}")
        return load(files, threads=run.threads, progress=progress, **options.settings())
