"""``edgelm plan``: the plan of a load, its parts and the other choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import edgelm
from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.opening import open_headers_or_shape
from edgelm.cli.options import (
    LOADING,
    OUTPUT,
    Draft,
    LoadOptions,
    ModelIfNoShape,
    OutputOptions,
    Shape,
    SourceOptions,
    flag,
)
from edgelm.errors import DoesNotFitError
from edgelm.planning.setting_table import LoadSettings

if TYPE_CHECKING:
    from edgelm.budget.plan import Plan

Contexts = Annotated[
    bool,
    typer.Option(
        "--table", help="Show which contexts fit in which schemes.", rich_help_panel=OUTPUT
    ),
]
Rows = Annotated[str, flag(LoadSettings, "rows", LOADING)]


def plan(
    source: SourceOptions, load: LoadOptions, output: OutputOptions,
    model: ModelIfNoShape = None, shape: Shape = None, table: Contexts = False,
    draft: Draft = None, rows: Rows = "1",
) -> int:  # fmt: skip
    """Show the memory MODEL would need (reads headers only); exit code 3 when nothing fits."""
    from edgelm.budget import plan_view
    from edgelm.hub.references import cache_dir
    from edgelm.loading import plan_table
    from edgelm.machine import hardware

    files = open_headers_or_shape(model, shape, source, output)
    if hardware.recorded_read_gb_s(cache_dir()) is None:
        hardware.record_read_gb_s(cache_dir())
    settings = load.settings() | {"rows": rows}
    if table:
        plans = plan_table(files, **settings)
        if output.json:
            console.print_json({"plans": [_cell(made) for made in plans]})
        else:
            _show_table(files.name, plans)
        return 0 if any(made.fits for made in plans) else DoesNotFitError.exit_code
    made = edgelm.plan(files, draft=draft, **settings)
    if output.json:
        console.print_json(made.to_dict())
    else:
        plan_view.show(made, console.stdout(), files.name, output.verbose)
    return 0 if made.fits else DoesNotFitError.exit_code


def _cell(made: Plan) -> dict[str, object]:
    keys = ("scheme", "kv", "context", "rows", "chunk", "fits", "predicted_peak_bytes")
    estimates = ("expected_kld", "expected_tok_s")
    return {key: getattr(made, key) for key in (*keys, "budget_bytes", *estimates)}


def _show_table(name: str, plans: list[Plan]) -> None:
    """A row a context, a column a scheme."""
    out = console.stdout()
    schemes = list(dict.fromkeys(made.scheme for made in plans))
    found = {(made.context, made.scheme): made for made in plans}
    grid = Table("context", box=None)
    for scheme in schemes:
        grid.add_column(scheme, justify="right")
    for context in dict.fromkeys(made.context for made in plans):
        cells = [found[context, scheme] for scheme in schemes]
        grid.add_row(str(context), *(_peak(made) for made in cells))
    fastest = [found[plans[0].context, scheme] for scheme in schemes]
    grid.add_row("")
    grid.add_row("est. tok/s", *(_number(made.expected_tok_s, ".0f") for made in fastest))
    grid.add_row("est. KLD", *(_number(made.expected_kld, ".4f") for made in fastest))
    budget = human(plans[0].budget_bytes)
    out.print(
        f"{name}: peaks in GiB, with the cache's type where it is narrower than {plans[0].dtype}; "
        f"a budget of {budget} holds what is not in brackets\n"
    )
    out.print(grid)


def _peak(made: Plan) -> str:
    kv = "" if made.kv == made.dtype else f" {made.kv.replace('bfloat', 'bf')}"
    size = f"{made.predicted_peak_bytes / 2**30:.1f}{kv}"
    return size if made.fits else f"({size})"


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
