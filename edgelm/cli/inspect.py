"""``edgelm inspect``: report on the content of a model's files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import Model, OutputOptions, SourceOptions
from edgelm.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from edgelm.reports.inspection import Inspection, Loading
    from edgelm.reports.verification import Verification

Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Only hash the files of a folder that quantize wrote, and compare (exit code 4).",
    ),
]


def inspect(
    model: Model, source: SourceOptions, output: OutputOptions, verify: Verify = False
) -> None:
    """Show tensors, limits and licence of MODEL and what loading converts; loads no weights."""
    if verify:
        _verify(model, source, output)
        return
    from edgelm.reports.inspection import inspect_files

    found = inspect_files(open_files(model, source, output))
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show(found, output)


def _verify(model: str, source: SourceOptions, output: OutputOptions) -> None:
    """Compare a folder with its hashes; typer.Exit with the code of damaged files if it differs."""
    from edgelm.hub.references import hub_reference, is_local, resolve
    from edgelm.reports.verification import verify_folder

    console.set_verbosity(output)
    fetched = not is_local(model) and hub_reference(model, source.revision)
    if model == "demo" or fetched:
        raise UsageError(
            f"--verify compares the files of a folder on this machine, and {model!r} is a model "
            "that is fetched, of which only some files are. Give the folder that edgelm quantize "
            "wrote."
        )
    path = resolve(model, **asdict(source))
    with console.progress_bars(output) as bar:
        found = verify_folder(path, bar("hashing files"))
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show_verification(found)
    if found.damaged:
        raise typer.Exit(ModelFileError.exit_code)


def _show_verification(found: Verification) -> None:
    out = console.stdout()
    table = Table("file", "", box=None)
    for told, names in (
        ("differs", found.differ),
        ("is missing", found.missing),
        ("was added, no hash is known", found.extra),
        ("as it was written", found.same),
    ):
        for name in names:
            table.add_row(name, told)
    out.print(table, "")
    advice = "damaged: copy or quantize it again" if found.damaged else "as it was written"
    out.print(f"{found.path} is {advice}")


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
    certificate = found.certificate or {"": "none: not written by edgelm quantize"}
    if "measured" in certificate:
        known = "see below" if certificate["measured"] else "nothing"
        certificate = certificate | {"measured": known}
    told = (
        ("", found.config),
        ("limit ", found.limits),
        ("tokenizer ", found.tokenizer),
        ("certificate ", certificate),
    )
    for title, values in told:
        for key, value in values.items():
            facts.add_row(f"{title}{key}", str(value))
    out.print(facts, "")
    _show_certificate(found.certificate)
    _show_loading(found.loading, output)
    if not output.verbose:
        out.print(f"{len(found.tensors)} tensors; -v or --json lists them")
        return
    tensors = Table("tensor", "shape", "dtype", box=None)
    tensors.add_column("size", justify="right")
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape))
        tensors.add_row(tensor.name, shape, tensor.dtype, human(tensor.nbytes))
    out.print(tensors)


def _show_certificate(told: dict[str, Any] | None) -> None:
    """What quantizing cost, in two lines that no table wraps."""
    from edgelm.checkpoint.certificate import Certificate

    measured = told and told["measured"]
    if measured:
        certificate = Certificate.of(measured)
        console.stdout().print(certificate.figures(), f"on {certificate.protocol()}", "", sep="\n")


def _show_loading(loading: Loading, output: OutputOptions) -> None:
    """Show the conversions of loading with default settings; -v names the matrices."""
    out = console.stdout()
    if loading.error is not None:
        out.print(f"cannot be loaded: {loading.error}\n", markup=False)
        return
    out.print(f"loading keeps the integers of {loading.kept} matrices and converts:")
    changes = Table("stored", "in memory", box=None)
    for column in ("matrices", "parameters"):
        changes.add_column(column, justify="right")
    for change in loading.changes:
        count, numbers = str(len(change.names)), f"{change.parameters:,}"
        changes.add_row(change.stored, change.loaded, count, numbers)
        if output.verbose:
            for name in change.names:
                changes.add_row("", name)
    out.print(changes if loading.changes else "nothing", "")
