"""``edgelm doctor``: report on this machine, its kernels and the cache folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.options import OutputOptions
from edgelm.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from edgelm.layerstore.kept_layers import KeptLayers
    from edgelm.machine.accelerators import Accelerator
    from edgelm.reports.diagnosis import Diagnosis

ClearCache = Annotated[
    bool,
    typer.Option(
        "--clear-cache",
        help="Delete the demo model, cached weight layouts and the machine's profile.",
    ),
]

Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Only read all kept weight layouts whole; delete those that are broken (exit code 4).",
    ),
]

_SHOWN_RUNS = 5


def doctor(output: OutputOptions, clear: ClearCache = False, verify: Verify = False) -> None:
    """Show this machine's hardware, the kernels it can run, and the content of the cache."""
    console.set_verbosity(output)
    if verify:
        if clear:
            raise UsageError("--verify and --clear-cache were given; give one of them.")
        _verify(output)
        return
    from edgelm.reports.diagnosis import clear_cache, diagnose

    freed = clear_cache() if clear else None
    with console.waiting("measuring", output):
        found = diagnose()
    if output.json:
        console.print_json(found.to_dict() | ({} if freed is None else {"freed_bytes": freed}))
        return
    _show(found, output)
    if freed is not None:
        console.stdout().print(f"cleared {human(freed)} from the cache")


def _verify(output: OutputOptions) -> None:
    """Check the kept layouts; typer.Exit with the code of damaged files if some are broken."""
    from edgelm.hub.references import cache_dir
    from edgelm.layerstore.kept_layers import verify_layers

    with console.progress_bars(output) as bar:
        found = verify_layers(cache_dir(), bar("reading kept layouts"))
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show_layers(found)
    if found.broken:
        raise typer.Exit(ModelFileError.exit_code)


def _show_layers(found: KeptLayers) -> None:
    out = console.stdout()
    for own in found.broken:
        done = "deleted" if own.deleted else "it could not be deleted: delete it yourself"
        out.print(f"broken: {own.path}: {own.problem}; {done}")
    told = f"{len(found.broken)} are broken" if found.broken else "all are as they were written"
    again = "; the next start writes them again" if found.broken else ""
    out.print(f"{found.files} files with weight layouts, {human(found.bytes)}: {told}{again}")


def _show(found: Diagnosis, output: OutputOptions) -> None:
    out = console.stdout()
    limit = found.cgroup_limit_bytes
    packages = (f"{name} {number or 'missing'}" for name, number in found.packages.items())
    facts = Table(show_header=False, box=None)
    for name, text in (
        ("versions", f"edgelm {found.version}, Python {found.python}, {', '.join(packages)}"),
        ("system", found.system),
        ("processor", f"{found.processor}, {found.cores} cores, {found.threads} threads used"),
        ("instructions", f"{' '.join(found.instruction_sets)}; torch uses {found.torch_vectors}"),
        ("memory", f"{human(found.available_memory_bytes)} of {human(found.total_memory_bytes)}"),
        ("cgroup limit", "none" if limit is None else human(limit)),
        ("read bandwidth", f"{found.read_gb_s:.1f} GB/s"),
        ("accelerator", _described(found.accelerator)),
        ("learned", f"plans add {human(found.learned_bytes)}, as {len(found.runs)} runs taught"),
        ("cache", f"{found.cache}, {human(found.cache_bytes)}"),
    ):
        facts.add_row(name, text)
    out.print(facts, "")
    if found.runs:
        _show_runs(found)
    kernels = Table("device", "scheme", "to", "kernel", box=None)
    for choice in found.kernels:
        kernels.add_row(choice.device, choice.scheme, choice.use, choice.kernel)
        for name, reason in choice.declined.items() if output.verbose else ():
            kernels.add_row("", "", "", f"not {name}: {reason}")
    out.print(kernels)
    if not output.verbose:
        out.print("-v or --json shows why other kernels were not chosen")


def _described(card: Accelerator | None) -> str:
    if card is None:
        return "none"
    free, total = human(card.free_bytes), human(card.total_bytes)
    return f"{card.device}, {card.name}, {free} of {total} free"


def _show_runs(found: Diagnosis) -> None:
    """Show the last runs: planned peaks against measured ones."""
    table = Table("last runs", "scheme", box=None)
    for column in ("planned", "measured", "off"):
        table.add_column(column, justify="right")
    for run in found.runs[-_SHOWN_RUNS:]:
        off = f"{run.peak_bytes / run.predicted_bytes - 1:+.1%}"
        planned, measured = human(run.predicted_bytes), human(run.peak_bytes)
        table.add_row(run.model, run.scheme, planned, measured, off)
    console.stdout().print(table, "")
