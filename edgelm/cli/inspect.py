"""``edgelm inspect``: what a model's files hold."""

from __future__ import annotations

from rich.table import Table

from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import Model, OutputOptions, SourceOptions
from edgelm.inspection import Inspection, inspect_files
from edgelm.memory import human


def inspect(model: Model, source: SourceOptions, output: OutputOptions) -> None:
    """Show tensors, numbers, tokenizer and licence of MODEL; loads no weights."""
    found = inspect_files(open_files(model, source, output))
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show(found, output)


def _show(found: Inspection, output: OutputOptions) -> None:
    out = console.stdout()
    out.print(
        f"{found.model}: {found.format}, {found.parameters:,} parameters, {human(found.nbytes)}, "
        f"{found.bits_per_weight:.2f} bits per weight, licence {found.licence or 'not stated'}\n"
    )
    types = Table("dtype", box=None)
    for column in ("tensors", "parameters", "size"):
        types.add_column(column, justify="right")
    for stored in found.types:
        count, numbers = str(stored.tensors), f"{stored.parameters:,}"
        types.add_row(stored.dtype, count, numbers, human(stored.nbytes))
    out.print(types, "")
    facts = Table("config", "", box=None)
    told = (("", found.config), ("tokenizer ", found.tokenizer), ("", found.quantization or {}))
    for title, values in told:
        for key, value in values.items():
            facts.add_row(f"{title}{key}", str(value))
    out.print(facts, "")
    if not output.verbose:
        out.print(f"{len(found.tensors)} tensors; -v or --json lists them")
        return
    tensors = Table("tensor", "shape", "dtype", box=None)
    tensors.add_column("size", justify="right")
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape))
        tensors.add_row(tensor.name, shape, tensor.dtype, human(tensor.nbytes))
    out.print(tensors)
