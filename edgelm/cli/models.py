"""``edgelm pull``, ``list`` and ``rm``: the models that were fetched to this machine."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer

from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import Model, OutputOptions, SourceOptions
from edgelm.cli.streams import tell
from edgelm.errors import EdgeLMError, UsageError

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Models as edgelm list names them.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")]


def pull(model: Model, source: SourceOptions, output: OutputOptions) -> None:
    """Fetch MODEL from the Hub (or the demo), after its headers showed that it is supported."""
    from edgelm.hub.references import is_local, resolve

    if model != "demo" and is_local(model):
        raise UsageError(f"{model!r} is a path on this machine; there is nothing to fetch.")
    open_files(model, source, output, headers_only=True)
    path = resolve(model, **asdict(source))
    if output.json:
        console.print_json({"model": model, "path": str(path)})
    else:
        print(path)


def list_(output: OutputOptions) -> None:
    """List the models in the Hub's cache and in edgelm's, the one that was used last first."""
    from rich.table import Table

    from edgelm.hub.inventory import fetched_models, other_bytes

    console.set_verbosity(output)
    found, others = fetched_models(), other_bytes()
    if output.json:
        models = [own.to_dict() for own in found]
        console.print_json({"models": models, "other_bytes": others})
        return
    table = Table("model", box=None)
    table.add_column("size", justify="right")
    table.add_column("last used")
    if output.verbose:
        table.add_column("path")
    for own in found:
        size = human(own.bytes) if own.complete else f"{human(own.bytes)}, no weights"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(own.used))
        table.add_row(own.model, size, used, *([own.path] if output.verbose else []))
    out = console.stdout()
    out.print(table if found else "No model was fetched; edgelm pull MODEL fetches one.")
    if others:
        out.print(
            f"and {human(others)} in edgelm's cache, mostly weights as kernels read them, for "
            "quick starts; edgelm doctor --clear-cache deletes them"
        )


def rm(models: Models, output: OutputOptions, yes: Yes = False) -> None:
    """Delete fetched models; files of your own are never touched."""
    from edgelm.budget.running import running
    from edgelm.hub.inventory import remove
    from edgelm.hub.references import cache_dir

    console.set_verbosity(output)
    for own in running(cache_dir()):
        if own.held.model in models:
            raise UsageError(
                f"{own.held.model} is in use by process {own.held.pid}; end that first."
            )
    if not yes:
        _ask(f"Delete {', '.join(models)}?")
    freed: dict[str, int] = {}
    for model in models:
        freed[model] = remove(model)
        if not (output.json or output.quiet):
            print(f"deleted {model}: {human(freed[model])} free again", flush=True)
    if output.json:
        console.print_json({"freed_bytes": freed})


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody can be asked here; say so with --yes.")
    tell(f"{question} [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise EdgeLMError("Nothing was deleted.")
