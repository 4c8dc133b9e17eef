"""What recipes and methods cost a real model of half a billion parameters, beside the nano models.

    python benches/real_model.py [WORD ...]    writes results/real_model.json

The model is fetched once (``real_weights.py``: 0.5 GB, and 1.3 GB as a folder in the cache). Its
divergence is over 10 windows of 512 tokens of wiki.test.raw from its own weights in float32, that
of a nano model over 40 windows of 256 tokens of its held-out text. Rows that
results/real_model.json holds are not run again (delete the file to begin anew); WORDs pick rows by
model, recipe or method. No row starts after 15 minutes: run it again to go on.

The real model's weights had 5 to 8 bits before: what 5 bits or more cost it is flattered, most of
all in q, k, o, gate and up, whose numbers lie on a grid of 32 already.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy import NANO
from backends import ASSETS
from provenance import announce
from real_weights import real_folder
from results_file import complete

import edgelm
from edgelm.errors import EdgeLMError
from edgelm.models.model_files import ModelFiles

REAL = "real"
RECIPES: dict[str, str | dict[str, str]] = {
    "int8": "int8",
    "int4": "int4",
    "int4-g32": "int4-g32",
    "int4-g32-zfloat": "int4-g32-zfloat",
    "nf4": "nf4",
    "int4-g32, tables int8": {"": "int4-g32", "table": "int8"},
    "iq4, tables 6 bits": {"": "iq4-g32-coded", "table": "int6-g32-coded"},
    "q4_k, v 5 bits, tables 6": {
        "": "q4_k", "table": "int6-g32-coded", **dict.fromkeys(("v", "qkv"), "q5_k"),
    },
}  # fmt: skip
"""Named recipes and schemes, or the scheme by the kind of matrix, "" for all others."""
FUSED = ("bloom", "persimmon")
TIED = ("bloom", "gemma2")
METHODS = ("rtn", "mse")
EXACT = ("int8",)
"""Recipes of so many bits that the method decides nothing."""
CALIBRATED = ("int4",)
"""Recipes that gptq is measured with, on its built-in text."""
HALF_QUADRATIC = ("int4-g32", "int4-g32-zfloat")
"""Recipes that hqq is measured with: one whose zeros it cannot move, and one whose it can."""


@dataclass(frozen=True)
class Text:
    """What a model is measured over."""

    file: str
    window: int
    windows: int


NANO_TEXT = Text("nano/heldout.txt", 256, 40)
REAL_TEXT = Text("text/wiki.test.raw", 512, 10)


def main(words: list[str]) -> int:
    chosen = (key for key in cases() if all(any(word in part for part in key) for word in words))
    with tempfile.TemporaryDirectory() as scratch:
        return complete(
            "real_model", chosen, ("model", "recipe", "method"),
            lambda *key: measured(*key, Path(scratch)),
        )  # fmt: skip


def cases() -> list[tuple[str, str, str]]:
    """Model, recipe and method of every row, the real model first."""
    return [
        (model, recipe, method)
        for model in (REAL, *NANO)
        for recipe in RECIPES
        for method in methods_of(recipe)
    ]


def methods_of(recipe: str) -> tuple[str, ...]:
    if recipe in EXACT:
        return METHODS[:1]
    further = {"gptq": CALIBRATED, "hqq": HALF_QUADRATIC}
    return (*METHODS, *(method for method, recipes in further.items() if recipe in recipes))


def quant_of(recipe: str, model: str) -> str | dict[str, Any]:
    """The recipe as data that names only matrices which the model has."""
    given = RECIPES[recipe]
    if isinstance(given, str):
        return given
    apart = {"qkv"} if model not in FUSED else {"q", "k", "v"}
    overrides = {f"*.{kind}": s for kind, s in given.items() if kind not in {"", "table", *apart}}
    tables = ("embed",) if model in TIED else ("embed", "head")
    return {
        "default": given[""],
        "overrides": dict.fromkeys(tables, given["table"]) | overrides,
    }


def measured(model: str, recipe: str, method: str, scratch: Path) -> dict[str, Any] | None:
    """One row; None, said on stderr, where the recipe does not run."""
    files = ModelFiles.open(real_folder() if model == REAL else ASSETS / "nano" / model)
    of = REAL_TEXT if model == REAL else NANO_TEXT
    text = {"text": ASSETS / of.file, "window": of.window, "limit": of.windows}
    kept = scratch / f"{model}.baseline"
    given: dict[str, Any] = {"quant": quant_of(recipe, model), "method": method}
    try:
        source: ModelFiles | Path = files
        if method == "gptq":
            source = scratch / f"{model}-{recipe}"
            edgelm.evaluate(files, baseline=kept, quant="none", **text)
            edgelm.quantize(files, source, certificate=False, **given)
            given = {"quant": "auto"}
        found = edgelm.evaluate(source, baseline=kept, **given, **text).to_dict()
    except EdgeLMError as error:
        print(f"{model} {recipe} {method}: {error}", file=sys.stderr)
        return None
    row = found | {"model": model, "recipe": recipe, "method": method}
    print(f"{model} {recipe} {method}: KLD {row['kld_mean']:.6f}", file=sys.stderr)
    return row


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
