"""README.md of a quantized folder: what it is, how it was made, what opens it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from edgelm.checkpoint import bitsandbytes_layout, packed_layout
from edgelm.checkpoint.certificate import LIMITS, Certificate
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
            f"# {shown_name(source)}, quantized",
            _facts(folder, manifest, source),
            *_lost(manifest.certificate),
            "## How it was made",
            _command(manifest, calibration),
            "## What opens it",
            _openers(layout),
        )
    )
    (folder / README).write_text(text + "\n", encoding="utf-8")


def shown_name(source: str) -> str:
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
    if manifest.certificate is not None:
        lines += _model_index(f"{shown_name(source)}, quantized", manifest.certificate)
    return "\n".join(["---", *lines, "---\n"]) if lines else ""


def _model_index(name: str, told: Certificate) -> list[str]:
    """The certificate as the Hub reads results: YAML, of which JSON is a part."""
    text = {"type": "edgelm-certificate", "name": told.text, "revision": told.text_sha256}
    metrics = [
        {"type": kind, "name": title, "value": value}
        for kind, title, value in (
            ("kl_divergence", "KL divergence from the original, nats per token", told.kld_mean),
            ("same_top_token", "same likeliest token as the original", told.top1_agreement),
            ("perplexity", "perplexity per token", told.ppl),
            ("perplexity_original", "perplexity per token of the original", told.ppl_baseline),
        )
    ]
    result = {"task": {"type": "text-generation"}, "dataset": text, "metrics": metrics}
    index = [{"name": name, "results": [result]}]
    return ["model-index: " + json.dumps(index, ensure_ascii=False)]


def _lost(certificate: Certificate | None) -> list[str]:
    """What the certificate says, where there is one."""
    if certificate is None:
        return []
    hashes = {
        name: getattr(certificate, f"{name}_sha256")
        for name in ("text", "tokenizer", "source", "weights")
    }
    rows = [f"| sha256 of {name} | `{digest}` |" for name, digest in hashes.items()]
    return [
        "## What quantizing cost",
        certificate.figures() + ".",
        f"Measured on {certificate.protocol()}. {LIMITS} `edgelm verify FOLDER` measures it again.",
        "\n".join(("| | |", "|---|---|", *rows)),
    ]


def _facts(folder: Path, manifest: Manifest, source: str) -> str:
    schemes = Counter(str(module.scheme) for module in manifest.modules.values())
    told = [f"{count} matrices in {scheme}" for scheme, count in schemes.most_common()]
    told += [f"{len(manifest.floats)} left in floats"] if manifest.floats else []
    licence = re.sub(r"[^\w./ +-]", "_", manifest.licence or "not stated by the source")
    rows = {
        "source": shown_name(source),
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
