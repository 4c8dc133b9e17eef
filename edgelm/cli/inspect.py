"""``edgelm inspect``: what a model's files hold."""

from __future__ import annotations

from rich.table import Table

from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import LoadOptions, Model, OutputOptions
from edgelm.inspection import Inspection, inspect_files
from edgelm.memory import human


def inspect(model: Model, load: SourceOptions, output: OutputOptions) -> None:
    """List tensors, numbers, tokenizer and licence of MODEL, from headers alone."""
