"""Attention masks, drawn in the terminal and as a picture; or as a JSON document."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import set_cell_size
from torch import Tensor
from torch.nn.functional import avg_pool2d

from edgelm.cli import console
from edgelm.errors import UsageError
from edgelm.reports.masks import Cell, LayerMask
from edgelm.text.tokenizer import Tokenizer

_LABEL_WIDTH = 12
_LABELLED_TOKENS = 48  # more labels than this cannot be read in a picture
_MARKS = {Cell.SEEN: "█", Cell.LATER: "·", Cell.BEYOND: "░", Cell.PADDING: "╳"}
_MEANINGS = {
    Cell.SEEN: "seen",
    Cell.LATER: "comes later",
    Cell.BEYOND: "beyond the window",
    Cell.PADDING: "padding",
}
_SHADES = "·░▒▓█"
_COLOURS = {
    Cell.SEEN: "#1f5fa8",
    Cell.LATER: "#f2f2f2",
    Cell.BEYOND: "#f0b429",
    Cell.PADDING: "#b8b8b8",
}


@dataclass(frozen=True)
class Row:
    """One text: its ids and a label for each position, padding included."""

    text: str
    token_ids: list[int]
    labels: list[str]


def labels(tokenizer: Tokenizer, ids: list[int], total: int, padding: str) -> list[str]:
    """Each token as text with visible spaces; padding as ``<pad>``."""
    labels = []
    for one in ids:
        special = tokenizer.token_of(one) if tokenizer.is_special(one) else None
        text = special or tokenizer.decode([one], skip_special=False, continues=True)
        text = text.replace(" ", "␣").replace("\n", "⏎")
        labels.append(text if text.isprintable() and text else f"#{one}")
    pads = ["<pad>"] * (total - len(ids))
    return pads + labels if padding == "left" else labels + pads


def document(
    name: str, masks: Sequence[LayerMask], rows: Sequence[Row], padding: str, chunk: int
) -> dict[str, Any]:
    """JSON document; ``seen`` holds for each query the ranges [first, stop) of visible keys."""
    return {
        "model": name,
        "padding": padding,
        "chunk": chunk,
        "rows": [{"text": r.text, "token_ids": r.token_ids, "tokens": r.labels} for r in rows],
        "masks": [
            {
                "kind": "full" if own.window is None else "window",
                "window": own.window,
                "slots": own.slots,
                "layers": own.layers,
                "seen": [own.seen(row) for row in range(len(rows))],
            }
            for own in masks
        ],
    }


def _title(own: LayerMask) -> str:
    ring = "" if own.window is None else f", a ring of {own.slots} slots"
    noun = "layer" if len(own.layers) == 1 else "layers"
    return f"{own.kind}{ring}: {noun} {', '.join(str(layer) for layer in own.layers)}"


def draw(masks: Sequence[LayerMask], rows: Sequence[Row]) -> None:
    terminal = console.stdout()
    room = terminal.width - _LABEL_WIDTH - 1
    width = min(2, room // len(rows[0].labels))
    for own in masks:
        terminal.print(_title(own))
        for row, cells in zip(rows, own.rows, strict=True):
            lines = _labelled(cells, row.labels, width) if width else _shaded(cells, room)
            terminal.print("\n".join(lines) + "\n")
    shown = {int(cell) for own in masks for cells in own.rows for cell in cells.unique()}
    meanings = [f"{_MARKS[cell]} {_MEANINGS[cell]}" for cell in Cell if cell in shown]
    shades = f"from {_SHADES[0]} to {_SHADES[-1]}: the share of keys seen"
    terminal.print("   ".join(meanings) if width else shades)


def _labelled(cells: Tensor, labels: list[str], width: int) -> list[str]:
    """Draw a line for each query with its token, keys numbered from the left."""
    count = len(labels)
    tens = "".join(f"{key // 10 % 10 if key % 10 == 0 else ' ':<{width}}" for key in range(count))
    ones = "".join(f"{key % 10:<{width}}" for key in range(count))
    margin = " " * (_LABEL_WIDTH + 1)
    lines = [margin + line for line in (tens, ones) if line.strip()]
    for number, (label, own) in enumerate(zip(labels, cells.tolist(), strict=True)):
        name = set_cell_size(f"{number} {label}", _LABEL_WIDTH)
        marks = "".join(_MARKS[Cell(cell)] * width for cell in own)
        lines.append(f"{name} {marks}")
    return lines


def _shaded(cells: Tensor, room: int) -> list[str]:
    """Draw many tokens as squares of several, shaded by the share of visible keys."""
    side = math.ceil(cells.shape[0] / room)
    seen = (cells == Cell.SEEN).float()
    shares = avg_pool2d(seen[None], (2 * side, side), ceil_mode=True)[0]
    steps = (shares * (len(_SHADES) - 1)).ceil().long().tolist()
    return [
        f"{2 * side * number:<{_LABEL_WIDTH}} {''.join(_SHADES[step] for step in line)}"
        for number, line in enumerate(steps)
    ]


def write_picture(masks: Sequence[LayerMask], rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a square for each kind of layer (across) and text (down)."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UsageError(
            "--out draws with Matplotlib, which is not installed: pip install 'edgelm[plot]'."
        ) from error
    colours = ListedColormap([_COLOURS[cell] for cell in Cell])
    side = min(9.0, 4.0 + 0.12 * len(rows[0].labels))
    figure = Figure(figsize=(side * len(masks), side * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots(len(rows), len(masks), squeeze=False)
    for across, own in enumerate(masks):
        axes[0][across].set_title(_title(own), fontsize=9, wrap=True)
        for down, row in enumerate(rows):
            axis = axes[down][across]
            axis.imshow(own.rows[down].numpy(), cmap=colours, vmin=0, vmax=len(Cell) - 1)
            axis.set_xlabel("key")
            axis.set_ylabel("query")
            _label(axis, row.labels)
    keys = [Patch(facecolor=_COLOURS[c], edgecolor="grey", label=_MEANINGS[c]) for c in Cell]
    columns = 2 if len(masks) == 1 else len(keys)
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, fontsize=8)
    try:
        with warnings.catch_warnings(action="ignore"):  # a glyph the font lacks becomes a box
            figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror or error}.") from error


def _label(axis: Any, labels: list[str]) -> None:
    """Label both sides with tokens and separate neighbours by lines, if there is room."""
    if len(labels) > _LABELLED_TOKENS:
        return
    # A dollar sign would start a Matplotlib formula.
    names = [label.replace("$", r"\$") for label in labels]
    places = range(len(labels))
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    axis.set_yticks(places, names, fontsize=7)
    axis.set_xticks([place - 0.5 for place in places], minor=True)
    axis.set_yticks([place - 0.5 for place in places], minor=True)
    axis.grid(which="minor", color="white", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
