"""``edgelm plan``: what would be loaded and what each part weighs."""

from __future__ import annotations

from rich.bar import Bar
from rich.table import Table

import edgelm
from edgelm import hardware
from edgelm.cli import console
from edgelm.cli.opening import open_files_or_shape
from edgelm.cli.options import (
    Draft,
    LoadOptions,
    ModelIfNoShape,
    OutputOptions,
    Shape,
    SourceOptions,
)
from edgelm.errors import DoesNotFitError
from edgelm.hub import cache_dir
from edgelm.inspection import tensor_classes
from edgelm.memory import Plan, human


def plan(
    source: SourceOptions, load: LoadOptions, output: OutputOptions,
    model: ModelIfNoShape = None, shape: Shape = None, draft: Draft = None,
) -> int:  # fmt: skip
    """Say what MODEL would take, from headers alone; exit code 3 when it does not fit."""
    files, load = open_files_or_shape(model, shape, source, load, output)
    if hardware.recorded_read_gb_s(cache_dir()) is None:
        hardware.record_read_gb_s(cache_dir())
    made = edgelm.plan(files, draft=draft, **load.settings())
    if output.json:
        console.print_json(made.to_dict())
    else:
        _show(files.name, made)
    return 0 if made.fits else DoesNotFitError.exit_code


def _show(name: str, made: Plan) -> None:
    out = console.stdout()
    out.print(
        f"{name}: {made.scheme}, {made.bits_per_weight:.2f} bits per weight, {made.dtype} "
        f"activations, {made.kv} cache for {made.context} tokens, chunks of {made.chunk}\n"
    )
    parts = Table("part", "where", box=None)
    parts.add_column("size", justify="right")
    parts.add_column("share", min_width=30)
    for part in made.parts:
        bar = Bar(made.steady_peak_bytes, 0, part.bytes, width=30)
        parts.add_row(part.name, part.where, human(part.bytes), bar)
    out.print(parts, "")
    kernels = Table("tensors", "count", "scheme", "kernel", box=None)
    kernels.add_column("size", justify="right")
    for kind in tensor_classes(made):
        count, size = str(kind.count), human(kind.nbytes)
        kernels.add_row(kind.name, count, kind.scheme, kind.kernel, size)
    out.print(kernels, "")
    verdict = "fits" if made.fits else "DOES NOT FIT"
    out.print(
        f"peak while loading {human(made.load_peak_bytes)}, while generating "
        f"{human(made.steady_peak_bytes)}; budget {human(made.budget_bytes)}: {verdict}"
    )
    if made.expected_tok_s is not None:
        out.print(f"at most {made.expected_tok_s:.0f} tok/s by this machine's read bandwidth")
