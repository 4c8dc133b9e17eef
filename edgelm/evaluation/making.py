"""Making a baseline file: the unquantized weights run over the work, exactly and in bfloat16.

A text takes one layer's weights at a time (``layerwise``); tasks take the whole model.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm import hardware
from edgelm.evaluation.baseline import Baseline, Facts, write_footer, writing
from edgelm.evaluation.divergence import BLOCK_BYTES, block_tokens, compare
from edgelm.evaluation.layerwise import write_hidden
from edgelm.evaluation.rows import Rows
from edgelm.evaluation.work import Work, flipped, right
from edgelm.files import ModelFiles
from edgelm.memory import parse_budget

EXACT = {"quant": "none", "dtype": "float32", "kv": "float32", "method": "rtn"}
NOISY = EXACT | {"dtype": "bfloat16"}
NOISE_WINDOWS = 4
NOISE_ITEMS = 100


def make_baseline(work: Work, files: ModelFiles, facts: Facts, path: Path) -> None:
    """Run the weights of ``files`` over the work and write what they say to ``path``.

    Raises:
        DoesNotFitError: one layer, or with tasks the whole model, exceeds the budget.
    """
    with writing(path) as file:
        baseline = Baseline(file, facts)
        if work.passage is not None:
            title = work.bars("reading with the baseline")
            write_hidden(files, work.passage.ids, baseline.hidden, work.planned(**EXACT), title)
        tasks = {
            name: facts.tasks[name] | {"right": own}
            for name, own in _answers(work, files, "baseline", EXACT).items()
        }
        baseline.write_head(files)
        facts = replace(facts, tasks=tasks)
        noise = measure_noise(work.first(NOISE_WINDOWS, NOISE_ITEMS), files, baseline, facts)
        write_footer(file, replace(facts, noise=noise))


def measure_noise(
    work: Work, files: ModelFiles, baseline: Baseline, facts: Facts
) -> dict[str, Any]:
    """Figures of the same weights with bfloat16 activations: what a 16-bit run costs already.

    Returns:
        The fields of ``TextScore`` where there is a text; ``tasks``: name -> n, accuracy,
        accuracy_baseline and flips over the first items.
    """
    noise: dict[str, Any] = {"tasks": {}}
    if work.passage is not None:
        noise |= _text_noise(work, files, baseline)
    for name, after in _answers(work, files, "bfloat16", NOISY).items():
        before = facts.tasks[name]["right"][: len(after)]
        count = len(after)
        noise["tasks"][name] = {
            "n": count, "accuracy": sum(after) / count, "accuracy_baseline": sum(before) / count,
            "flips": flipped(before, after),
        }  # fmt: skip
    return noise


def _answers(
    work: Work, files: ModelFiles, title: str, settings: dict[str, Any]
) -> dict[str, list[bool]]:
    """Task -> which items the whole model gets right."""
    if not work.items:
        return {}
    with work.load(files, f"loading {files.name} ({title})", **settings) as lm:
        picks = work.picks(lm, f"{title} answering")
    return {name: right(own.plain, work.items[name]) for name, own in picks.items()}


def _text_noise(work: Work, files: ModelFiles, baseline: Baseline) -> dict[str, Any]:
    """The fields of ``TextScore`` for the work's windows."""
    assert work.passage is not None
    resident = hardware.resident_bytes()
    budget = parse_budget(work.settings.get("budget"), hardware.available_memory_bytes() + resident)
    room = budget - resident - BLOCK_BYTES
    block = block_tokens(files.config.vocab_size, work.passage.ids.shape[1], room)
    with tempfile.TemporaryFile() as file, torch.inference_mode():
        hidden = Rows(file, 0, files.config.hidden_size)
        bar = work.bars("measuring the noise floor")
        write_hidden(files, work.passage.ids, hidden, work.planned(**NOISY), bar)

        def mine(start: int, count: int) -> Tensor:
            return baseline.head(hidden.read(start, count).bfloat16())

        return vars(compare(work.passage, block, mine, baseline.logits, None))
