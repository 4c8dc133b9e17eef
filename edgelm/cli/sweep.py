"""``edgelm sweep``: a grid of models, candidates and settings, here or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelm.cli import console
from edgelm.cli.compare import Csv, announcing, show
from edgelm.cli.eval import Margin
from edgelm.cli.options import OUTPUT, OutputOptions

GridFile = Annotated[
    Path,
    typer.Argument(
        help="A JSON file: models, candidates, settings (of a load), text, tasks, window, limit "
        "and threads of a cell.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for what is found of each cell, and for the baselines; a stopped sweep goes "
        "on from it.",
        rich_help_panel=OUTPUT,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Run the cells on a Ray cluster that sees the same files: auto, local or its address "
        "(needs edgelm\\[sweep])."
    ),
]


def sweep(
    output: OutputOptions, grid: GridFile, out: Out, ray: Ray = None, margin: Margin = 1.0,
    csv: Csv = None,
) -> None:  # fmt: skip
    """Compare many candidates of several models, cell by cell; repeating it resumes."""
    from edgelm.evaluation.comparison import outputs
    from edgelm.evaluation.sweep.merged import csv_of
    from edgelm.evaluation.sweep.sweep import sweep as measure

    console.set_verbosity(output)
    if csv is not None:
        outputs.require_writable("csv", csv)
    found = measure(grid, out, ray=ray, margin=margin, announce=announcing(output))
    if csv is not None:
        outputs.write(csv, csv_of(found))
    if output.json:
        console.print_json([own.to_dict() for own in found])
    else:
        for own in found:
            show(own)
