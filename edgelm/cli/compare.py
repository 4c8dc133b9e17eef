"""``edgelm compare``: schemes and files against the unquantized weights, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import edgelm
from edgelm.cli import console
from edgelm.cli.eval import Limit, Margin, TaskFiles, Window, pairs_table, task_files
from edgelm.cli.opening import open_files
from edgelm.cli.options import (
    LOADING,
    OUTPUT,
    SOURCE,
    LoadOptions,
    Model,
    OutputOptions,
    RunOptions,
    SourceOptions,
)
from edgelm.cli.streams import tell

if TYPE_CHECKING:
    from edgelm.evaluation.comparison.comparison import Comparison

Candidates = Annotated[
    list[str],
    typer.Option(
        "--quant",
        help="Schemes of MODEL, recipes, gguf:FILE and quantized folders of its weights; separated "
        "by commas, or repeated.",
        rich_help_panel=LOADING,
    ),
]
Texts = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="UTF-8 file, or a folder of files: their names are categories, and *.jsonl holds "
        "conversations.",
    ),
]
Kept = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        help="A *.baseline file of MODEL, created if missing and kept (default: made once, and "
        "deleted when all candidates are done).",
        rich_help_panel=SOURCE,
    ),
]
Again = Annotated[
    bool, typer.Option("--again", help="Measure what an earlier run has finished, too.")
]
Csv = Annotated[
    Path | None, typer.Option(help="File for the table's values.", rich_help_panel=OUTPUT)
]
Report = Annotated[
    Path | None,
    typer.Option(help="HTML page to write (needs edgelm\\[plot]).", rich_help_panel=OUTPUT),
]


class SharedOptions(LoadOptions):
    """Settings of every candidate's load."""

    left_out = ("quant",)


def compare(
    source: SourceOptions, load: SharedOptions, run: RunOptions, output: OutputOptions,
    model: Model, candidates: Candidates, text: Texts = None, task: TaskFiles = None,
    limit: Limit = None, window: Window = 512, baseline: Kept = None, margin: Margin = 1.0,
    again: Again = False, csv: Csv = None, report: Report = None,
) -> None:  # fmt: skip
    """Compare schemes and files with MODEL's unquantized weights; repeating it resumes."""
    from edgelm.evaluation.comparison.candidates import split

    tasks = task_files(task or [])
    files = open_files(model, source, output)
    with console.progress_bars(output) as bar:
        found = edgelm.compare(
            files, split(candidates), text=text, tasks=tasks, limit=limit, window=window,
            baseline=baseline, margin=margin, again=again, csv=csv, report=report, progress=bar,
            announce=announcing(output), threads=run.threads, **load.settings(),
        )  # fmt: skip
    if output.json:
        console.print_json(found.to_dict())
    else:
        show(found)


def announcing(output: OutputOptions) -> Callable[[str], None]:
    """Tells on stderr how long it will take, and how far it is."""
    return (lambda text: None) if output.quiet else tell


def show(found: Comparison) -> None:
    """The table with a column for each candidate: terminals are narrow, and figures many."""
    from edgelm.evaluation.comparison.page import COLUMNS, shown

    out, rows = console.stdout(), found.table()
    out.print(f"{found.protocol}.")
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row["candidate"], justify="right")
    for name, title in COLUMNS.items():
        cells = [shown(row, name).replace(" ± ", "\n±") for row in rows]
        if name != "candidate" and any(cells):
            table.add_row(title, *cells)
    out.print(table)
    for own in found.rows:
        if own.tasks:
            out.print(f"\n{own.candidate}")
            out.print(pairs_table({name: s.paired for name, s in own.tasks.items() if s.paired}))
