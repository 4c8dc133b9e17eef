"""Readable form of a plan: the same lines and tables in Python, notebooks and terminals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from edgelm.budget.placement import streamed_layers
from edgelm.budget.shortage import shortage
from edgelm.budget.units import human, human_speed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgelm.budget.plan import Plan

TEXT_WIDTH = 110
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Slice:
    """A part of a whole, drawn as a bar that begins at ``start``."""

    start: int
    bytes: int
    whole: int

    @property
    def percent(self) -> str:
        return f"{self.bytes / self.whole:.1%}" if self.whole else ""


@dataclass(frozen=True)
class Grid:
    """A table of texts; ``right`` names the columns that are numbers."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str | Slice]]
    right: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorClass:
    """Matrices of one kind (embed, attn, mlp, head) that share scheme and kernel."""

    name: str
    scheme: str
    kernel: str
    count: int
    nbytes: int


def tensor_classes(plan: Plan) -> list[TensorClass]:
    """Every product of a plan, grouped; in loading order."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for product in plan.products:
        key = (product.kind, product.scheme, product.kernel)
        groups.setdefault(key, []).append(product.nbytes)
    return [TensorClass(*key, len(sizes), sum(sizes)) for key, sizes in groups.items()]


def blocks(plan: Plan, name: str = "", all_choices: bool = False) -> Iterator[str | Grid]:
    """Lines and tables, in the order they are read.

    Args:
        name: of the model. all_choices: every cache and context that was not taken too.
    """
    yield headline(plan, name)
    yield _parts(plan)
    yield Grid(
        ("tensors", "count", "scheme", "kernel", "size"),
        [
            (own.name, str(own.count), own.scheme, own.kernel, human(own.nbytes))
            for own in tensor_classes(plan)
        ],
        right=("size",),
    )
    if plan.rejected:
        yield _others(plan, all_choices)
    yield "\n".join(_verdict(plan))


def headline(plan: Plan, name: str = "") -> str:
    """Summary of the load, in one line."""
    each = f"{plan.context} tokens"
    if plan.rows > 1:
        each = f"{plan.rows} answers of {each} each"
    return (
        f"{f'{name}: ' if name else ''}{plan.scheme}, {plan.bits_per_weight:.2f} bits per weight, "
        f"{plan.dtype} activations, {plan.kv} cache for {each}, chunks of {plan.chunk}"
    )


def summary(plan: Plan) -> str:
    """Scheme, cache, peak and verdict, short enough for a ``repr``."""
    verdict = "fits" if plan.fits else "does not fit"
    return (
        f"{plan.scheme}, {plan.bits_per_weight:.2f} bits per weight, context {plan.context}, "
        f"kv {plan.kv}, device {plan.device}, peak {human(plan.predicted_peak_bytes)} of "
        f"{human(plan.budget_bytes)}, {verdict}"
    )


def text(plan: Plan, name: str = "") -> str:
    """As ``edgelm plan`` prints it, on lines of at most TEXT_WIDTH characters."""
    from rich.console import Console

    page = StringIO()
    show(
        plan, Console(file=page, width=TEXT_WIDTH, highlight=False, emoji=False, markup=False), name
    )
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def show(plan: Plan, console: Console, name: str = "", all_choices: bool = False) -> None:
    """Print a plan on a terminal."""
    for index, block in enumerate(blocks(plan, name, all_choices)):
        if index:
            console.print()
        console.print(block if isinstance(block, str) else _table(block))


def html(plan: Plan, name: str = "") -> str:
    """For notebooks."""
    return "\n".join(
        f"<p>{escape(block).replace(chr(10), '<br>')}</p>"
        if isinstance(block, str)
        else _html_table(block)
        for block in blocks(plan, name)
    )


def _parts(plan: Plan) -> Grid:
    """Every part with its share of the bar, one behind the other."""
    rows, start, whole = [], 0, plan.steady_peak_bytes
    for part in plan.parts:
        held = part.bytes if part.where == "host" else 0
        rows.append((part.name, part.where, human(part.bytes), Slice(start, held, whole)))
        start += held
    columns = ("part", "where", "size", "of the peak while generating")
    return Grid(columns, rows, right=("size",))


def _others(plan: Plan, all_of_them: bool) -> Grid:
    """The best of every other scheme, or every choice that was not taken."""
    rows, shown = [], {plan.scheme}
    for other in plan.rejected:
        if all_of_them or other["scheme"] not in shown:
            shown.add(other["scheme"])
            peak = other["predicted_peak_bytes"]
            cells = (other["scheme"], other["kv"] or "", str(other["context"] or ""))
            rows.append((*cells, human(peak) if peak else "", other["reason"]))
    return Grid(("instead", "cache", "context", "peak", "why not"), rows, right=("peak",))


def _verdict(plan: Plan) -> Iterator[str]:
    yield (
        f"peak while loading {human(plan.load_peak_bytes)}, while generating "
        f"{human(plan.steady_peak_bytes)}; budget {human(plan.budget_bytes)}: "
        f"{'fits' if plan.fits else 'DOES NOT FIT'}"
    )
    notes: Counter[str] = Counter()
    for product in plan.products:
        notes[product.note] += len(product.names) if product.note else 0
    yield from (f"{count} matrices in {note}" for note, count in notes.items() if note)
    if not plan.fits:
        yield f"nothing smaller is left to choose: {shortage(plan)}"
    streamed = streamed_layers(plan)
    if streamed:
        yield f"{len(streamed)} of {len(plan.placement)} layers are read from disk in every step"
    speed = plan.expected_tok_s
    read = "disk" if streamed else "read"
    told = f"speed unknown: this machine's {read} bandwidth was not measured"
    if speed is not None:
        told = f"at most {human_speed(speed)} by this machine's {read} bandwidth"
    kld = "unknown: this scheme was not measured"
    if plan.expected_kld is not None:
        small = "as measured on models of 5 million parameters"
        kld = f"{plan.expected_kld:.4f} nats a token, {small}"
    yield f"estimates: {told}; divergence {kld}"


def _table(grid: Grid) -> Table:
    from rich.bar import Bar
    from rich.table import Table

    table = Table(box=None)
    for column in grid.columns:
        bars = any(isinstance(row[grid.columns.index(column)], Slice) for row in grid.rows)
        justify = "right" if column in grid.right else "left"
        table.add_column(column, justify=justify, min_width=_BAR_WIDTH if bars else None)  # type: ignore[arg-type]
    for row in grid.rows:
        table.add_row(*(
            cell if isinstance(cell, str)
            else Bar(cell.whole, cell.start, cell.start + cell.bytes, width=_BAR_WIDTH)
            for cell in row
        ))  # fmt: skip
    return table


def _html_table(grid: Grid) -> str:
    def cell(tag: str, column: str, value: str | Slice) -> str:
        side = "right" if column in grid.right else "left"
        shown = value.percent if isinstance(value, Slice) else value
        return f'<{tag} style="text-align:{side}">{escape(shown)}</{tag}>'

    lines = ["".join(cell("th", column, column) for column in grid.columns)]
    for row in grid.rows:
        pairs = zip(grid.columns, row, strict=True)
        lines.append("".join(cell("td", column, value) for column, value in pairs))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
