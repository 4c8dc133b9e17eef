"""``edgelm plan``: what would be loaded, what each part weighs, and what else was considered."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.bar import Bar
from rich.table import Table

import edgelm
from edgelm.budget.placement import streamed_layers
from edgelm.budget.plan import Plan, human, human_speed
from edgelm.budget.shortage import shortage
from edgelm.cli import console
from edgelm.cli.opening import open_headers_or_shape
from edgelm.cli.options import (
    Draft,
    LoadOptions,
    ModelIfNoShape,
    OutputOptions,
    Shape,
    SourceOptions,
)
from edgelm.errors import DoesNotFitError
from edgelm.hub.references import cache_dir
from edgelm.loading import plan_table
from edgelm.machine import hardware
from edgelm.reports.inspection import tensor_classes

Contexts = Annotated[
    bool, typer.Option("--table", help="Contexts against schemes: what fits, and what it takes.")
]
Rows = Annotated[str, typer.Option(help="Answers made side by side, or auto.")]

_BAR_WIDTH = 40


def plan(
    source: SourceOptions, load: LoadOptions, output: OutputOptions,
    model: ModelIfNoShape = None, shape: Shape = None, table: Contexts = False,
    draft: Draft = None, rows: Rows = "1",
) -> int:  # fmt: skip
    """Say what MODEL would take, from headers alone; exit code 3 when nothing fits."""
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
        _show(files.name, made, output)
    return 0 if made.fits else DoesNotFitError.exit_code


def _show(name: str, made: Plan, output: OutputOptions) -> None:
    out = console.stdout()
    out.print(
        f"{name}: {made.scheme}, {made.bits_per_weight:.2f} bits per weight, {made.dtype} "
        f"activations, {made.kv} cache for {_answers(made)}, chunks of {made.chunk}\n"
    )
    out.print(_parts(made), "")
    kernels = Table("tensors", "count", "scheme", "kernel", box=None)
    kernels.add_column("size", justify="right")
    for kind in tensor_classes(made):
        count, size = str(kind.count), human(kind.nbytes)
        kernels.add_row(kind.name, count, kind.scheme, kind.kernel, size)
    out.print(kernels, "")
    if made.rejected:
        out.print(_others(made, output.verbose), "")
    verdict = "fits" if made.fits else "DOES NOT FIT"
    out.print(
        f"peak while loading {human(made.load_peak_bytes)}, while generating "
        f"{human(made.steady_peak_bytes)}; budget {human(made.budget_bytes)}: {verdict}"
    )
    if not made.fits:
        out.print(f"nothing smaller is left to choose: {shortage(made)}")
    streamed = streamed_layers(made)
    if streamed:
        out.print(
            f"{len(streamed)} of {len(made.placement)} layers are read from disk in every step"
        )
    out.print(
        f"estimates: {_speed(made.expected_tok_s)} by this machine's "
        f"{'disk' if streamed else 'read'} bandwidth, divergence {_nats(made.expected_kld)} by "
        "what small models measured"
    )


def _answers(made: Plan) -> str:
    each = f"{made.rows} answers of {made.context} tokens each"
    return each if made.rows > 1 else f"{made.context} tokens"


def _parts(made: Plan) -> Table:
    """Every part with its share of the bar, one behind the other."""
    parts = Table("part", "where", box=None)
    parts.add_column("size", justify="right")
    parts.add_column("of the peak while generating", min_width=_BAR_WIDTH)
    start = 0
    for part in made.parts:
        held = part.bytes if part.where == "host" else 0
        bar = Bar(made.steady_peak_bytes, start, start + held, width=_BAR_WIDTH)
        parts.add_row(part.name, part.where, human(part.bytes), bar)
        start += held
    return parts


def _others(made: Plan, all_of_them: bool) -> Table:
    """The best of every other scheme; with ``-v`` every cache and context too."""
    others = Table("instead", "cache", "context", box=None)
    others.add_column("peak", justify="right")
    others.add_column("why not")
    shown = {made.scheme}
    for other in made.rejected:
        if all_of_them or other["scheme"] not in shown:
            shown.add(other["scheme"])
            peak = other["predicted_peak_bytes"]
            size = human(peak) if peak else ""
            cells = (other["scheme"], other["kv"] or "", str(other["context"] or ""), size)
            others.add_row(*cells, other["reason"])
    return others


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


def _speed(tok_s: float | None) -> str:
    return "unknown speed" if tok_s is None else f"at most {human_speed(tok_s)}"


def _nats(kld: float | None) -> str:
    return "unknown" if kld is None else f"{kld:.4f} nats a token"


def _number(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
