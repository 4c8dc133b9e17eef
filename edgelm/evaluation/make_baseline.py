"""Creation of a baseline file: runs the unquantized weights over the work, in float32 and bfloat16.

They run layer by layer (``layerwise``), so a baseline needs only the memory of one layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm.budget.units import BLOCK_BYTES, parse_budget
from edgelm.evaluation.baseline import Baseline, Facts, baseline_errors, write_footer, writing
from edgelm.evaluation.choices import picks_of
from edgelm.evaluation.divergence import block_tokens, compare
from edgelm.evaluation.inputs import Work, flipped, right
from edgelm.evaluation.layerwise import Stretch, write_hidden
from edgelm.evaluation.rows import Rows
from edgelm.machine import hardware
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import DTYPES
from edgelm.text.continuation import Encoded, split_shared

EXACT: dict[str, Any] = {"quant": "none", "dtype": "float32", "kv": "float32", "method": "rtn"}
NOISY = EXACT | {"dtype": "bfloat16"}
NOISE_WINDOWS = 4
NOISE_ITEMS = 100


def make_baseline(
    work: Work, files: ModelFiles, facts: Facts, path: Path, noisy: Work | None = None
) -> None:
    """Run the weights of ``files`` over the work and write the results to ``path``.

    Args:
        noisy: the part of the work that the noise floor is measured on; by default the first
            ``NOISE_WINDOWS`` and ``NOISE_ITEMS``.

    Raises:
        DoesNotFitError: one layer exceeds the budget.
        EdgeLMError: no place for the file, or for what is kept aside meanwhile.
    """
    with baseline_errors(), writing(path) as file, torch.inference_mode():
        baseline = Baseline(file, facts)
        if work.passage is not None:
            windows = [Stretch(ids) for ids in work.passage.ids]
            bar = work.bars("reading with the baseline")
            write_hidden(files, windows, baseline.hidden, work.planned(**EXACT), bar)
        baseline.write_head(files)
        answers = _answers(work, files, baseline, "baseline", EXACT)
        tasks = {name: facts.tasks[name] | {"right": own} for name, own in answers.items()}
        noisy = noisy or work.first(NOISE_WINDOWS, NOISE_ITEMS)
        noise = _noise(noisy, files, baseline, answers)
        write_footer(file, replace(facts, tasks=tasks, noise=noise))


def _noise(
    work: Work, files: ModelFiles, baseline: Baseline, exact: dict[str, list[bool]]
) -> dict[str, Any]:
    """Figures of the same weights with bfloat16 activations: the error of a 16-bit run.

    Returns:
        The fields of ``TextScore`` if there is a text; ``tasks``: name -> n, accuracy,
        accuracy_baseline and flips over the first items.
    """
    noise: dict[str, Any] = {"tasks": {}}
    if work.passage is not None:
        noise |= _text_noise(work, files, baseline)
    for name, after in _answers(work, files, baseline, "bfloat16", NOISY).items():
        count = len(after)
        before = exact[name][:count]
        noise["tasks"][name] = {
            "n": count, "accuracy": sum(after) / count, "accuracy_baseline": sum(before) / count,
            "flips": flipped(before, after),
        }  # fmt: skip
    return noise


def _text_noise(work: Work, files: ModelFiles, baseline: Baseline) -> dict[str, Any]:
    """The fields of ``TextScore`` for the work's windows."""
    assert work.passage is not None
    with tempfile.TemporaryFile() as file:
        hidden = Rows(file, 0, files.config.hidden_size)
        windows = [Stretch(ids) for ids in work.passage.ids]
        bar = work.bars("measuring the noise floor")
        write_hidden(files, windows, hidden, work.planned(**NOISY), bar)

        def mine(start: int, count: int) -> Tensor:
            return baseline.head(hidden.read(start, count).bfloat16())

        block = _block(work, files, work.passage.ids.shape[1])
        return vars(compare(work.passage, block, mine, baseline.logits, None))


def _answers(
    work: Work, files: ModelFiles, baseline: Baseline, title: str, settings: dict[str, Any]
) -> dict[str, list[bool]]:
    """Task -> flags of the items answered correctly."""
    found = {}
    for name, items in work.items.items():
        bar = work.bars(f"{title} answering {name}")
        scores = log_likelihoods(work, work.encoded[name], files, baseline, settings, bar)
        found[name] = right(picks_of(items, scores).plain, items)
    return found


def log_likelihoods(
    work: Work, items: list[list[Encoded]], files: ModelFiles, baseline: Baseline,
    settings: dict[str, Any], bar: Callable[..., None] | None,
) -> list[list[float]]:  # fmt: skip
    """Natural log-likelihood of each choice of each item; as ``tasks.scoring``, layer by layer."""
    planned = work.planned(**settings)
    split = [split_shared(item) for item in items]
    stretches = [
        Stretch(_ids(shared), tuple(_ids(tail) for tail in tails)) for shared, tails in split
    ]
    with tempfile.TemporaryFile() as file:
        hidden = Rows(file, 0, files.config.hidden_size)
        write_hidden(files, stretches, hidden, planned, bar)
        places: list[int] = []  # in the file, of the tokens that predict a continuation
        end = 0
        for item, stretch in zip(items, stretches, strict=True):
            end += len(stretch.ids)
            for choice, tail in zip(item, stretch.tails, strict=True):
                end += len(tail)
                places += range(end - choice.count, end)
        choices = [choice for item in items for choice in item]
        wanted = _ids([token for choice in choices for token in choice.ids[-choice.count :]])
        found = []
        block = _block(work, files, len(places))
        for start in range(0, len(places), block):
            rows = [hidden.read(place, 1) for place in places[start : start + block]]
            logits = baseline.head(torch.cat(rows).to(DTYPES[settings["dtype"]]))
            own = wanted[start : start + block, None]
            found.append(logits.log_softmax(-1).gather(1, own)[:, 0])
    sums = iter(part.sum().item() for part in torch.cat(found).split([c.count for c in choices]))
    return [[next(sums) for _ in item] for item in items]


def _ids(ids: tuple[int, ...] | list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long)


def _block(work: Work, files: ModelFiles, count: int) -> int:
    """Number of tokens, up to ``count``, that the budget allows to compare at once."""
    resident = hardware.resident_bytes()
    budget = parse_budget(work.settings.get("budget"), hardware.available_memory_bytes() + resident)
    return block_tokens(files.config.vocab_size, count, budget - resident - BLOCK_BYTES)
