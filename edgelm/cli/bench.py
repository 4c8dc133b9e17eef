"""``edgelm bench``: speed and memory of a model, or of a shape with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.opening import open_files_or_shape
from edgelm.cli.options import (
    LoadOptions,
    ModelIfNoShape,
    OutputOptions,
    RunOptions,
    Shape,
    SourceOptions,
    counted,
)

if TYPE_CHECKING:
    from edgelm.reports.benchmark import Measurement

PromptTokens = Annotated[int, counted("Length of the random prompt.")]
DecodeTokens = Annotated[int, counted("Number of decode steps after the first token.")]
Repeat = Annotated[int, typer.Option(help="Number of rounds; results are medians.")]


def bench(
    source: SourceOptions, load: LoadOptions, run: RunOptions, output: OutputOptions,
    model: ModelIfNoShape = None, shape: Shape = None, prompt_tokens: PromptTokens = 512,
    decode_tokens: DecodeTokens = 64, repeat: Repeat = 3,
) -> None:  # fmt: skip
    """Measure prefill and decode speed, bytes per token and peak memory."""
    from edgelm.reports.benchmark import Workload, measure

    files, load = open_files_or_shape(model, shape, source, load, run, output)
    workload = Workload(prompt_tokens, decode_tokens, repeat, run.seed or 0)
    with console.progress_bars(output) as bar:
        measured = measure(
            files,
            workload,
            threads=run.threads,
            progress=bar(f"loading {files.name}"),
            on_round=bar("measuring"),
            **load.settings(),
        )
    if output.json:
        console.print_json(measured.to_dict())
    else:
        _show(measured)


def _show(row: Measurement) -> None:
    table = Table(title=row.model, show_header=False, box=None, title_justify="left")
    for name, text in (
        ("weights", f"{row.scheme}, {row.bits_per_weight:.2f} bits, {human(row.weight_bytes)}"),
        ("run by", f"{row.backend} on {row.device}, {row.threads} threads"),
        ("load", f"{row.load_s:.2f} s, then {row.first_token_s:.2f} s to the first token"),
        ("prefill", f"{row.prefill_tok_s:.1f} tok/s over {row.prompt_tokens} tokens"),
        ("decode", f"{row.decode_tok_s:.1f} tok/s over {row.decode_tokens} tokens"),
        ("per token", human(row.bytes_per_token)),
        ("bandwidth", f"decode {row.decode_gb_s:.1f} GB/s, plain reading {row.read_gb_s:.1f} GB/s"),
        ("peak", f"{human(row.peak_rss_bytes)}, planned {human(row.predicted_peak_bytes)}"),
    ):
        table.add_row(name, text)
    console.stdout().print(table)
