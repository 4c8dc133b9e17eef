"""``edgelm quantize``: write a model as a folder of packed weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import edgelm
from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import LOADING, SOURCE, Model, OutputOptions, SourceOptions, flag
from edgelm.planning.setting_table import SCHEMES, LoadSettings
from edgelm.quantization.readers import READERS
from quant.names import CALIBRATED_NAMES, DEFAULT_METHOD, METHOD_NAMES

if TYPE_CHECKING:
    from edgelm.quantization.quantize import Quantized

WORTH_SAYING_S = 60
Out = Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")]
AUTO = f"auto (keeps what is quantized already, else int4), {SCHEMES}"
Quant = Annotated[str, flag(LoadSettings, "quant", LOADING, allowed=AUTO)]
Method = Annotated[
    str,
    flag(LoadSettings, "method", LOADING, allowed=", ".join((*METHOD_NAMES, *CALIBRATED_NAMES))),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help=f"UTF-8 text for {', '.join(CALIBRATED_NAMES)}, or generated: the model writes it "
        "(default: one in the package).",
        rich_help_panel=SOURCE,
    ),
]
BitsPerWeight = Annotated[
    float | None,
    typer.Option(
        help="Maximum number of bits per weight, instead of --quant: the recipe with the least "
        "expected divergence within it is used. Not for .gguf files.",
        rich_help_panel=LOADING,
    ),
]
Sensitivity = Annotated[
    Path | None,
    typer.Option(
        help="UTF-8 text on which --bpw measures what each kind of matrix of this model adds to "
        "its divergence (default: values measured on other models).",
        rich_help_panel=SOURCE,
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        help="A program that shall read OUT too, instead of --quant: the best recipe in about 4 "
        f"bits that it reads is used. {', '.join(READERS)}.",
        rich_help_panel=LOADING,
    ),
]
Certify = Annotated[
    bool,
    typer.Option(
        "--certificate/--no-certificate",
        help="Measure the result's divergence from MODEL over 4,096 tokens, into OUT.",
    ),
]
CertificateText = Annotated[
    Path | None,
    typer.Option(
        help="UTF-8 text for the certificate (default: one in the package, which is no "
        "calibration text).",
        rich_help_panel=SOURCE,
    ),
]
MaxKLD = Annotated[
    float | None,
    typer.Option(
        "--max-kld",
        help="Largest mean divergence in nats per token: a worse result is refused (exit code 1).",
    ),
]


def quantize(
    source: SourceOptions, output: OutputOptions, model: Model, out: Out, quant: Quant = "auto",
    method: Method = DEFAULT_METHOD, calibration: Calibration = None, bpw: BitsPerWeight = None,
    sensitivity: Sensitivity = None, reader: For = None, certificate: Certify = True,
    certificate_text: CertificateText = None, max_kld: MaxKLD = None,
) -> None:  # fmt: skip
    """Write a quantized MODEL to OUT; repeating the command resumes after an interruption."""
    files = open_files(model, source, output)

    def promise(parts: dict[str, int]) -> None:
        if not output.json and not output.quiet:
            named = ", ".join(f"{name} {human(nbytes)}" for name, nbytes in parts.items())
            print(f"promised peak memory: {human(sum(parts.values()))} ({named})", flush=True)
            from edgelm.evaluation.certify import expected_s
            from edgelm.evaluation.duration import spoken

            seconds = expected_s(files) if certificate else 0.0
            if seconds > WORTH_SAYING_S:
                print(
                    f"the certificate will take about {spoken(seconds)}; --no-certificate "
                    "leaves it out",
                    flush=True,
                )

    with console.progress_bars(output) as bar:
        done = edgelm.quantize(
            files, out, quant=quant, method=method, calibration=calibration, bpw=bpw,
            sensitivity=sensitivity, reader=reader, certificate=certificate,
            certificate_text=certificate_text, max_kld=max_kld, announce=promise,
            progress=bar(f"quantizing {files.name}"),
        )  # fmt: skip
    if output.json:
        console.print_json(done.to_dict())
    elif not output.quiet:
        _show(done, output)


def _show(done: Quantized, output: OutputOptions) -> None:
    out, manifest = console.stdout(), done.manifest
    table = Table("scheme", box=None)
    table.add_column("matrices", justify="right")
    for scheme, count in Counter(str(m.scheme) for m in manifest.modules.values()).items():
        table.add_row(scheme, str(count))
    out.print(table)
    if output.verbose:
        for name, module in manifest.modules.items():
            db = "exact" if module.error_db is None else f"{module.error_db:.1f} dB"
            out.print(f"{name}: {module.scheme}, {db} {module.note}".rstrip())
    if manifest.floats:
        out.print(f"{len(manifest.floats)} matrices left in floats")
    for note, count in Counter(m.note for m in manifest.modules.values() if m.note).items():
        out.print(f"{count} matrices: {note}")
    if done.cost:
        out.print(done.cost)
    if done.calibration:
        told = done.calibration
        out.print(
            f"calibrated on {told['sequences']} x {told['tokens_each']} tokens of {told['text']}"
        )
    if manifest.certificate is not None:
        out.print(manifest.certificate.figures(), manifest.certificate.protocol(), sep="\n")
    out.print(
        f"{done.path}: {human(done.nbytes)}, {manifest.bits_per_weight:.2f} bits per weight, "
        f"verified; peak memory {human(done.peak_rss_bytes)} of {human(done.promised_peak_bytes)} "
        "promised"
    )
