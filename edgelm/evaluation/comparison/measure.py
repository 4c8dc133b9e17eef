"""Measuring a candidate: it is loaded, timed, read over the text, asked the tasks and closed."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

from edgelm.checkpoint.packed import PackedCheckpoint
from edgelm.evaluation.baseline import Baseline
from edgelm.evaluation.comparison.candidates import Candidate
from edgelm.evaluation.comparison.measured import MatrixError, Measured
from edgelm.evaluation.comparison.slices import slices, worst_tokens
from edgelm.evaluation.divergence import read_text, text_score
from edgelm.evaluation.evaluate import task_score
from edgelm.evaluation.inputs import Work, right
from edgelm.machine import hardware
from edgelm.model import LanguageModel
from edgelm.reports.benchmark import Workload, backends_run, run_round

ROUNDS = 3
_PROMPT, _ANSWER = 128, 32  # tokens of a timed round, less where the context is short


def measure(
    candidate: Candidate, work: Work, baseline: Baseline, *, timed: bool = True
) -> Measured:
    """The candidate's figures; its tasks are not compared to the baseline's yet.

    timed: without it speeds and peaks are left out, which other processes beside it would falsify.
    """
    alone = timed and hardware.forget_peak()
    start, label = time.perf_counter(), candidate.label
    with work.load(candidate.files, f"loading {label}", quant=candidate.quant) as lm:
        load_s = time.perf_counter() - start
        prefill, decode = _speeds(lm) if timed else (None, None)
        found = Measured(
            label, lm.plan.scheme, lm.plan.bits_per_weight, lm.plan.weight_bytes,
            backends_run(lm.plan), lm.plan.device, lm.plan.context,
            lm.plan.predicted_peak_bytes if timed else None,
            hardware.peak_resident_bytes() if alone else None, load_s, prefill, decode,
            matrices=_matrices(candidate, lm),
        )  # fmt: skip
        found = _with_text(found, lm, work, baseline)
        picks = work.picks(lm, f"{label} answering")
    tasks = {n: task_score(n, picks[n], items, baseline.facts) for n, items in work.items.items()}
    rights = {name: right(picks[name].plain, items) for name, items in work.items.items()}
    return replace(found, tasks=tasks, rights=rights)


def _with_text(found: Measured, lm: LanguageModel, work: Work, baseline: Baseline) -> Measured:
    if work.passage is None:
        return found
    bar = work.bars(f"{found.candidate} reading the text")
    figures = read_text(lm, work.passage, baseline, bar)
    return replace(
        found,
        text=text_score(figures, work.passage),
        slices=slices(figures, work.passage),
        worst=worst_tokens(figures, work.passage, lm.tokenizer),
    )


def _speeds(lm: LanguageModel) -> tuple[float, float]:
    """Median tokens per second of prompts and of answers, after a warm-up."""
    context = lm.plan.context
    answer = max(1, min(_ANSWER, context // 4))
    workload = Workload(max(1, min(_PROMPT, context - answer - 1)), answer)
    rounds = [run_round(lm, workload) for _ in range(ROUNDS + 1)][1:]
    return median(s.prefill_tok_s for s in rounds), median(s.decode_tok_s for s in rounds)


def _matrices(candidate: Candidate, lm: LanguageModel) -> list[MatrixError]:
    """The errors of the matrices; of a folder of ours, those it was written with."""
    stored: dict[str, float | None] = {}
    if isinstance(candidate.files.checkpoint, PackedCheckpoint):
        for name, written in candidate.files.checkpoint.manifest.modules.items():
            stored |= dict.fromkeys(written.parts or (name,), written.error_db)
    found = []
    for module in lm.report.modules:
        layer, kind = _place(module.name)
        error = module.error_db if module.error_db is not None else stored.get(module.name)
        found.append(MatrixError(layer, kind, str(module.scheme), error))
    return found


def _place(name: str) -> tuple[int | None, str]:
    """Layer and kind of a matrix by its canonical name, such as layers.3.attn.q."""
    first, _, rest = name.partition(".")
    if first != "layers":
        return None, name
    layer, _, kind = rest.partition(".")
    return int(layer), kind
