"""``edgelm verify``: measure the certificate of a quantized model again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgelm.cli import console
from edgelm.cli.options import Model, OutputOptions
from edgelm.errors import EdgeLMError

if TYPE_CHECKING:
    from edgelm.evaluation.verify import Check, Verified

Original = Annotated[
    str | None,
    typer.Option(
        help="The model it was made of (default: the one of the certificate, if it is on this "
        "machine; without it perplexity alone is measured)."
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(help="The certificate's text, if it was not the built-in one."),
]


def verify(
    output: OutputOptions, model: Model, original: Original = None, text: Text = None
) -> None:
    """Measure the certificate of MODEL again: the same (exit code 0) or not (1)."""
    from edgelm.evaluation.verify import verify as measure_again

    console.set_verbosity(output)
    with console.progress_bars(output) as bar:
        found = measure_again(
            model, original=original, text=text, progress=bar("measuring the certificate again")
        )
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show(found)
    if not found.same:
        raise typer.Exit(EdgeLMError.exit_code)


def _show(found: Verified) -> None:
    out = console.stdout()
    out.print(found.certificate.figures(), found.certificate.protocol(), "", sep="\n")
    table = Table("", "certificate", "now", "", box=None)
    for check in found.checks:
        table.add_row(check.name, _shown(check.stated), _shown(check.found), _verdict(check))
    out.print(table, "")
    if found.original is None:
        out.print(
            f"{found.certificate.source}, the original, is not at hand: what was not measured is "
            "neither the same nor different; --original measures it"
        )
    if found.kernels != found.certificate.kernels:
        out.print(f"other kernels ran: {found.kernels}")
    out.print(f"{found.path} is {'the same' if found.same else 'not the same'}")


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value[:16] if isinstance(value, str) else f"{value:.6g}"


def _verdict(check: Check) -> str:
    if check.found is None:
        return "not measured"
    return "same" if check.same else "differs"
