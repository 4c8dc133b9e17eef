"""``edgelm mask``: who may attend to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import Model, OutputOptions, SourceOptions, counted
from edgelm.planning.setting_table import DEFAULT_CHUNK

Texts = Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts; one row each.")]
Padding = Annotated[
    Literal["left", "right"], typer.Option(help="Side on which shorter texts are padded.")
]
Layer = Annotated[
    int | None, typer.Option(help="Show only this layer (default: each kind of layer once).")
]
Chunk = Annotated[int, counted("Number of tokens processed at once.")]
Out = Annotated[Path | None, typer.Option(help="PNG file to write (needs edgelm\\[plot]).")]


def mask(
    model: Model, texts: Texts, source: SourceOptions, output: OutputOptions,
    padding: Padding = "right", layer: Layer = None, chunk: Chunk = DEFAULT_CHUNK, out: Out = None,
) -> None:  # fmt: skip
    """Draw which tokens of TEXT attend to which, by kind of layer; loads no weights."""
    from edgelm.cli import mask_drawing
    from edgelm.reports.masks import layer_masks, mask_of_layer

    files = open_files(model, source, output)
    ids = [files.tokenizer.encode(text) for text in texts]
    masks = layer_masks(files.config, [len(own) for own in ids], chunk, padding)
    if layer is not None:
        masks = [mask_of_layer(masks, layer)]
    total = max(len(own) for own in ids)
    rows = [
        mask_drawing.Row(text, own, mask_drawing.labels(files.tokenizer, own, total, padding))
        for text, own in zip(texts, ids, strict=True)
    ]
    if out is not None:
        mask_drawing.write_picture(masks, rows, out)
    if output.json:
        console.print_json(mask_drawing.document(files.name, masks, rows, padding, chunk))
    else:
        mask_drawing.draw(masks, rows)
