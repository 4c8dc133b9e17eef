"""README.md of a quantized folder: what it is, how it was made, what opens it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from edgelm.checkpoint import bitsandbytes_layout, packed_layout
from edgelm.checkpoint.manifest import MANIFEST, Manifest
from edgelm.hub.references import is_local
from edgelm.quantization.companions import README, SOURCE_README, WRITTEN_HERE
from edgelm.quantization.folder_layout import FolderLayout
from quant.errors import QuantError
from quant.recipe import Recipe

_LICENCE = re.compile(r"[\w.+-]{1,40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")


def write_readme(
    folder: Path, manifest: Manifest, layout: FolderLayout, source: str, calibration: str | None
) -> None:
    """Write it; paths of this machine stay out of it.

    Args:
        source: the reference that the model was opened with.
        calibration: name of the calibration text, None where the method reads none.
    """
    text = "\n\n".join(
        (
            _front_matter(folder, manifest, source) + WRITTEN_HERE,
            f"# {_name(source)}, quantized",
            _facts(folder, manifest, source),
            "## How it was made",
            _command(manifest, calibration),
            "## What opens it",
            _openers(layout),
        )
    )
    (folder / README).write_text(text + "\n", encoding="utf-8")


def _name(source: str) -> str:
    """The Hub id, or the last part of a path, on one line without markup."""
    shown = Path(source).name if is_local(source) else source
    return re.sub(r"[^\w./@ +-]", "_", shown) or "model"


def _front_matter(folder: Path, manifest: Manifest, source: str) -> str:
    """What the Hub reads: the licence, and the original if it is there."""
    lines = []
    if manifest.licence and _LICENCE.fullmatch(manifest.licence):
        named = not (folder / manifest.licence).exists()  # else a licence file's name
        lines.append(f"license: {manifest.licence if named else 'other'}")
    if not is_local(source) and _HUB_ID.fullmatch(source):
        lines.append(f"base_model: {source.partition('@')[0]}")
    return "\n".join(["---", *lines, "---\n"]) if lines else ""


def _facts(folder: Path, manifest: Manifest, source: str) -> str:
    schemes = Counter(str(module.scheme) for module in manifest.modules.values())
    told = [f"{count} matrices in {scheme}" for scheme, count in schemes.most_common()]
    told += [f"{len(manifest.floats)} left in floats"] if manifest.floats else []
    licence = re.sub(r"[^\w./ +-]", "_", manifest.licence or "not stated by the source")
    rows = {
        "source": _name(source),
        "licence": licence,
        "recipe": _recipe_name(manifest),
        "schemes": ", ".join(told) or "none",
        "bits per weight": f"{manifest.bits_per_weight:.2f}",
        "method": manifest.method,
        "written by": f"{manifest.writer}, folder format {manifest.format_version}",
    }
    notes = Counter(module.note for module in manifest.modules.values() if module.note)
    if notes:
        rows["notes"] = "; ".join(f"{count} matrices: {note}" for note, count in notes.items())
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    rest = f"`{MANIFEST}` has the scheme and the error of each matrix, and the sha256 of each file."
    if (folder / SOURCE_README).exists():
        rest += f" The model card of the source is in `{SOURCE_README}`."
    return "\n".join((*table, "", rest))


def _recipe_name(manifest: Manifest) -> str:
    """A scheme's or a recipe's name; "custom" for a file or data of somebody's own."""
    name = str(manifest.recipe.get("name"))
    try:
        if name != "auto" and (name.endswith(".json") or not Recipe.parse(name)):
            return "custom"
    except QuantError:
        return "custom"
    return name


def _command(manifest: Manifest, calibration: str | None) -> str:
    name = _recipe_name(manifest)
    quant = "RECIPE.json" if name == "custom" else name
    text = " --calibration TEXT" if calibration and not calibration.startswith("the ") else ""
    lines = [
        "```bash",
        f"edgelm quantize MODEL OUT --quant {quant} --method {manifest.method}{text}",
        "```",
    ]
    if calibration:
        lines += ["", f"calibrated on {'a text of the user' if text else calibration}"]
    if name == "custom":
        recipe = {key: manifest.recipe[key] for key in ("default", "overrides")}
        lines += ["", "with RECIPE.json:", "", "```json", json.dumps(recipe, indent=1), "```"]
    return "\n".join(lines)


def _openers(layout: FolderLayout) -> str:
    ours = "- edgelm: `edgelm chat FOLDER`, in Python `edgelm.load(path)`"
    if layout.peer_note:
        theirs = f"- nothing else: {layout.peer_note}"
    elif layout.method == bitsandbytes_layout.METHOD:
        theirs = "- transformers, where bitsandbytes is installed"
    elif layout.method == packed_layout.METHOD and layout.config:
        theirs = "- transformers, where compressed-tensors is installed"
    else:
        theirs = "- transformers: nothing in it is quantized"
    return f"{ours}\n{theirs}"
