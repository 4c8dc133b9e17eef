"""4 bits, as they are and calibrated, and int8 against llama.cpp's Q4_K_M and Q8_0.

    python benches/four_bits.py    writes results/four_bits.json

Every engine predicts the same tokens: the first 40 windows of 256 of each nano model's held-out
text, each beginning with BOS, against the same weights in float32. llama.cpp quantizes and runs
its own types, and runs the files that `edgelm quantize MODEL OUT.gguf` writes. "int4 gptq" is
calibrated on the built-in text. Families that
llama.cpp does not know are measured without it. Rows that results/four_bits.json holds are not run
again; delete the file to begin anew. Needs the extra `peers`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accuracy import NANO
from backends import ASSETS
from comparison.gguf_models import gguf_sizes, quantize
from comparison.llama_cpp_engine import LlamaCpp
from provenance import announce
from results_file import complete

import edgelm
from edgelm.evaluation.baseline import Baseline
from edgelm.evaluation.divergence import compare
from edgelm.evaluation.passage import Passage
from edgelm.models.model_files import ModelFiles
from quant import DEFAULT_METHOD

TEXT, WINDOW, WINDOWS = ASSETS / "nano" / "heldout.txt", 256, 40
GGUF_FAMILIES = ("llama", "gemma2", "bloom")
CALIBRATED = " gptq"
OURS = ("int4", "int8", f"int4{CALIBRATED}")
THEIRS = ("Q4_K_M", "Q8_0")
THREADS = 2


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        return complete(
            "four_bits", cases(), ("model", "weights", "engine"),
            lambda *key: measured(*key, Path(scratch)),
        )  # fmt: skip


def cases() -> list[tuple[str, str, str]]:
    """Model, weights and engine of every row."""
    rows = [(model, weights, "edgelm") for model in NANO for weights in OURS]
    for model in GGUF_FAMILIES:
        rows += [(model, f"{weights}.gguf", "edgelm") for weights in OURS if weights != "int8"]
        rows += [(model, f"{weights}.gguf", "llama.cpp") for weights in OURS]
        rows += [(model, weights, "llama.cpp") for weights in THEIRS]
    return sorted(rows, key=lambda row: NANO.index(row[0]))


def measured(model: str, weights: str, engine: str, scratch: Path) -> dict[str, Any]:
    files = ModelFiles.open(ASSETS / "nano" / model)
    kept = scratch / f"{model}.baseline"
    text: dict[str, Any] = {"text": TEXT, "window": WINDOW, "limit": WINDOWS, "baseline": kept}
    if not kept.exists():
        edgelm.evaluate(files, quant="none", **text)
    if engine == "edgelm":
        given = stored(files, weights, scratch) if needs_file(weights) else files
        quant = "auto" if needs_file(weights) else weights
        found = edgelm.evaluate(given, quant=quant, threads=THREADS, **text).to_dict()
    else:
        file = stored(files, weights, scratch)
        found = by_llama_cpp(file, files, kept)
    row = found | {"model": model, "weights": weights, "engine": engine}
    print(
        f"{model} {weights} {engine}: KLD {row['kld_mean']:.6f} at {row['bits_per_weight']:.3f}",
        file=sys.stderr,
    )
    return row


def needs_file(weights: str) -> bool:
    return weights.endswith((".gguf", CALIBRATED))


def stored(files: ModelFiles, weights: str, scratch: Path) -> Path:
    """The folder or .gguf file that we write of such weights, or llama.cpp's from float32."""
    path = scratch / f"{Path(files.name).name}-{weights}"
    if path.exists():
        return path
    if needs_file(weights):
        quant, _, method = weights.removesuffix(".gguf").partition(" ")
        edgelm.quantize(
            files, path, quant=quant, method=method or DEFAULT_METHOD, certificate=False
        )
        return path
    path = path.with_name(path.name + ".gguf")
    if not path.exists():
        quantize(stored(files, "none.gguf", scratch), path, weights, THREADS)
    return path


def by_llama_cpp(file: Path, files: ModelFiles, kept: Path) -> dict[str, Any]:
    """llama.cpp's figures over the passage that the baseline was made of."""
    passage = Passage.read(TEXT, files.tokenizer, WINDOW, WINDOWS)
    engine = LlamaCpp(str(file), THREADS, context=WINDOW, flash=False)
    baseline = Baseline.open(kept)
    ids = passage.ids.flatten().tolist()

    def mine(start: int, count: int) -> torch.Tensor:
        assert start % WINDOW == 0, "a window in one block"
        return torch.from_numpy(engine.logits(ids[start : start + count]))

    try:
        score = compare(passage, WINDOW, mine, baseline.logits, None)
    finally:
        baseline.close()
    bits = gguf_sizes(file)["bits_per_weight"]
    return vars(score) | {"bits_per_weight": bits, "version": engine.about["version"]}


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
