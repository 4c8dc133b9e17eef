"""What each step of calibration gains: divergence of the default recipe, by family.

    python benches/calibration.py [WORD ...]    writes results/calibration.json

Each row adds a step to the row before: rounding to nearest, the grid search, GPTQ from left to
right on the search's grids, its order, the head, sweeps. All are over the same windows: 40 of 256
tokens of the held-out text, each beginning with BOS. `gain` is the mean over the windows of what
the step took off, `gain_stderr` its standard error. WORDs pick rows by
model or step. Rows that results/calibration.json holds are not run again; delete the file to begin
anew. No row starts after 15 minutes: run it again to go on.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accuracy import NANO
from backends import ASSETS
from provenance import announce
from results_file import complete, stored_rows

import edgelm
from edgelm.evaluation.baseline import Baseline
from edgelm.evaluation.divergence import token_figures
from edgelm.evaluation.passage import Passage
from edgelm.models.model_files import ModelFiles
from edgelm.quantization.calibration import Calibration
from quant import hessian

TEXT, WINDOW, WINDOWS = ASSETS / "nano" / "heldout.txt", 256, 40
GPTQ = import_module("quant.methods.gptq")  # the package has the function by this name
LEFT_OUT: dict[str, tuple[Any, str, Any]] = {
    "order": (hessian, "_order", lambda strengths: torch.arange(len(strengths))),
    "head": (Calibration, "_head_inputs", lambda self: ()),
    "sweeps": (GPTQ, "SWEEPS", 0),
}
"""What stands for each step of GPTQ's where it is not taken yet, in their order."""
STEPS = ("rtn", "mse", "gptq", *LEFT_OUT)


def main(words: list[str]) -> int:
    keys = [(model, step) for model in NANO for step in STEPS]
    chosen = [key for key in keys if all(any(word in part for part in key) for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        return complete(
            "calibration", chosen, ("model", "step"), lambda *key: measured(*key, Path(scratch))
        )


def measured(model: str, step: str, scratch: Path) -> dict[str, Any]:
    """One row, with the divergence of every window."""
    files, out = ModelFiles.open(ASSETS / "nano" / model), scratch / f"{model}-{step}"
    method = step if step in STEPS[:3] else "gptq"
    with steps_up_to(step):
        done = edgelm.quantize(files, out, quant="int4", method=method, certificate=False)
    windows = divergences(files, out, scratch / f"{model}.baseline")
    row = {
        "model": model, "step": step, "bits_per_weight": done.manifest.bits_per_weight,
        "kld_mean": statistics.mean(windows), "windows": windows, **gain(model, step, windows),
    }  # fmt: skip
    print(f"{model} {step}: KLD {row['kld_mean']:.6f}", file=sys.stderr)
    return row


@contextmanager
def steps_up_to(step: str) -> Iterator[None]:
    """Leave out the steps behind one."""
    taken = STEPS[: STEPS.index(step) + 1]
    with ExitStack() as stack:
        for name, (place, attribute, instead) in LEFT_OUT.items():
            if name not in taken:
                stack.enter_context(patch.object(place, attribute, instead))
        yield


def divergences(files: ModelFiles, folder: Path, kept: Path) -> list[float]:
    """Mean KL divergence of each window from the unquantized model."""
    if not kept.exists():
        text: dict[str, Any] = {"text": TEXT, "window": WINDOW, "limit": WINDOWS}
        edgelm.evaluate(files, quant="none", baseline=kept, **text)
    passage, baseline = Passage.read(TEXT, files.tokenizer, WINDOW, WINDOWS), Baseline.open(kept)
    found = []
    try:
        with edgelm.load(folder, context=WINDOW, chunk=WINDOW) as lm:
            for number, ids in enumerate(passage.ids):
                logits = lm.forward(ids[None]).logits
                figures = token_figures(
                    replace(passage, ids=ids[None]), WINDOW,
                    lambda _, count, logits=logits: logits[0, :count],
                    lambda _, count, start=number * WINDOW: baseline.logits(start, count), None,
                )  # fmt: skip
                found.append(float(figures.kld.mean()))
    finally:
        baseline.close()
    return found


def gain(model: str, step: str, windows: list[float]) -> dict[str, float]:
    """What the step took off the one before, if that was measured."""
    before = STEPS[max(0, STEPS.index(step) - 1)]
    for row in stored_rows("calibration"):
        if step != before and (row["model"], row["step"]) == (model, before):
            gains = [old - new for old, new in zip(row["windows"], windows, strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5
            return {"gain": statistics.mean(gains), "gain_stderr": error}
    return {}


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
