"""``evaluate``: accuracy of a model on a text and tasks, against the unquantized weights.

The baseline runs first (quant none, float32), leaves a file and is closed; then the model runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from edgelm import values
from edgelm.errors import UsageError
from edgelm.evaluation.answering import WrittenScore
from edgelm.evaluation.baseline import Baseline, Facts, baseline_errors
from edgelm.evaluation.choices import Picks, accuracy
from edgelm.evaluation.divergence import TextScore, score_text
from edgelm.evaluation.inputs import Bars, Work, flipped, read_work, right
from edgelm.evaluation.item_lines import choice_rows, opened
from edgelm.evaluation.make_baseline import make_baseline
from edgelm.evaluation.statistics.pairs import PairedScore, Pairs, paired_scores
from edgelm.evaluation.statistics.proportions import wilson
from edgelm.evaluation.tasks import TASKS, Item
from edgelm.loading import plan, use_threads
from edgelm.models.model_files import ModelFiles
from edgelm.option import PATH, Call, Option
from edgelm.planning.setting_table import LOAD, MODEL, PROGRESS, LoadSettings
from edgelm.planning.settings import read_settings

BASELINE_SUFFIX = ".baseline"


def _tasks(given: Any) -> dict[str, str | os.PathLike[str]]:
    if not isinstance(given, Mapping):
        raise TypeError
    return {values.text(name): values.path(file) for name, file in given.items()}


MARGIN = Option(
    "Points of accuracy: a task whose loss is surely smaller is called not worse.",
    "a number above 0 and below 100",
    lambda points: 0 < points < 100,
    kind=values.number,
)
_FILE = replace(PATH, allowed="the path of a file, or None", optional=True)
EVALUATE = Call(
    "evaluate()",
    LoadSettings,
    {
        "text": _FILE,
        "tasks": Option(
            "Tasks.", "a dict of files by the names of tasks, or None", kind=_tasks, optional=True
        ),
        "limit": Option(
            "Most windows and items.",
            "1 or more, or None",
            lambda count: count >= 1,
            kind=values.whole,
            optional=True,
        ),
        "window": Option("Tokens of a window.", "a count of tokens", kind=values.whole),
        "baseline": _FILE,
        "shots": Option("Examples.", "0 or more", lambda n: n >= 0, kind=values.whole),
        "prompts": Option("Wordings.", "1 or more", lambda n: n >= 1, kind=values.whole),
        "example_seed": Option("Of the examples.", "a whole number", kind=values.whole),
        "details": _FILE,
        "margin": MARGIN,
        "progress": PROGRESS,
    },
)


@dataclass(frozen=True)
class TaskScore:
    """Accuracy with its standard error; ``_norm`` is by log-likelihood per character.

    ``low`` and ``high`` hold the accuracy in 95 % of all samples (Wilson).
    ``flips``: share of items that are correct in one of model and baseline and wrong in the other;
    ``paired`` has more of them.
    """

    n: int
    accuracy: float
    stderr: float | None
    accuracy_norm: float | None
    stderr_norm: float | None
    accuracy_baseline: float | None
    flips: float | None
    low: float
    high: float
    paired: PairedScore | None = None


@dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``; ``written`` are the tasks whose answers the model writes.

    ``noise_floor``: the same figures for the baseline's weights with bfloat16 activations, over
    the first windows and items (see ``make_baseline``). Differences below this are lost in
    any 16-bit run too.
    """

    model: str
    scheme: str
    bits_per_weight: float
    text: TextScore | None
    noise_floor: dict[str, Any] | None
    tasks: dict[str, TaskScore]
    written: dict[str, WrittenScore] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the text's figures are at the top level, null without a text."""
        data = asdict(self)
        del data["text"]
        data["tasks"] |= data.pop("written")
        names = TextScore.__dataclass_fields__
        return data | (asdict(self.text) if self.text else dict.fromkeys(names))


def evaluate(
    model: str | Path | ModelFiles, *, text: str | Path | None = None,
    tasks: Mapping[str, str | Path] | None = None, limit: int | None = None, window: int = 512,
    baseline: str | Path | None = None, margin: float = 1.0, shots: int = 0, prompts: int = 1,
    example_seed: int = 0, details: str | Path | None = None, revision: str | None = None,
    offline: bool = False, allow_pickle: bool = False, threads: int | None = None,
    progress: Bars | None = None, **settings: Unpack[LoadSettings],
) -> Evaluation:  # fmt: skip
    """Perplexity, divergence from the unquantized weights, and tasks.

    Args:
        text: a UTF-8 file or a folder of them, read in windows of ``window`` tokens; see
            ``texts.read_texts``.
        tasks: name -> local file; the names are those of ``tasks.TASKS`` (multiple choice) and of
            ``written_tasks.WRITTEN_TASKS``, which have no baseline.
        limit: maximum number of windows of each text and of items of each task.
        baseline: a model reference, or a file ``*.baseline`` that is used, or created if it is
            missing. By default the baseline of the same weights is made and discarded; a model
            that is quantized already has none then.
        shots: examples before each question, drawn with ``example_seed`` from the task's own file;
            they are not asked.
        prompts: wordings in which questions of written tasks are asked; multiple choice has one.
        details: a file for JSON lines with what was made of each item.
        margin: points of accuracy; see ``PairedScore.verdict``.
        progress: makes callbacks (..., done, all) from titles.
        threads, settings: as for ``load``.

    Raises:
        UsageError: nothing to do, wrong options, or a baseline that does not match.
        DoesNotFitError: the model, or a layer of its baseline (with tasks all of it), exceeds the
            budget.
    """
    chosen = read_settings(settings)
    LOAD.require(revision=revision, offline=offline, allow_pickle=allow_pickle, threads=threads)
    MODEL.require("model", model)
    text, tasks, limit, window, baseline, margin, progress = EVALUATE.require(
        text=text, tasks=tasks, limit=limit, window=window, baseline=baseline, margin=margin,
        progress=progress,
    )  # fmt: skip
    shots, prompts, seed, details = EVALUATE.require(
        shots=shots, prompts=prompts, example_seed=example_seed, details=details
    )
    if text is None and not tasks:
        raise UsageError("Give a text or a task.")
    files = ModelFiles.of(model, revision=revision, offline=offline, allow_pickle=allow_pickle)
    use_threads(threads)
    work = read_work(
        files, text, tasks or {}, limit, window, chosen, {**settings, "threads": threads}, progress,
        shots=shots, prompts=prompts, seed=seed,
    )  # fmt: skip
    passage, items = work.passage, work.items
    with opened(details) as write, _baseline(work, baseline) as reference:
        with work.load(files, f"loading {files.name}") as lm:
            score = None
            if passage is not None:
                score = score_text(lm, passage, reference, work.bars("reading the text"))
            picks = work.picks(lm, "answering")
            answers = work.answers(lm)
        facts = None if reference is None else reference.facts
        write(row for name, own in items.items() for row in choice_rows(name, own, picks[name]))
        write(row for name, own in work.asked.items() for row in own.rows(answers[name]))
    found = {name: task_score(name, picks[name], items[name], facts) for name in items}
    if facts is not None:
        rights = {name: right(picks[name].plain, items[name]) for name in items}
        found = with_pairs(found, rights, items, facts, margin)
    noise = None if facts is None else facts.noise
    replies = {name: own.score(answers[name]) for name, own in work.asked.items()}
    return Evaluation(
        files.name, lm.plan.scheme, lm.plan.bits_per_weight, score, noise, found, replies
    )


@contextmanager
def _baseline(work: Work, given: str | Path | None) -> Iterator[Baseline | None]:
    """Open and check the baseline file; it is created first if there is none."""
    files, kept = work.files, None
    if work.passage is None and not work.items:
        yield None
        return
    if given is not None and str(given).endswith(BASELINE_SUFFIX):
        kept = Path(given)
    elif given is not None:
        files = ModelFiles.open(given)
    stored = is_quantized(work)
    if stored and (given is None or (kept and not kept.exists())):
        if kept:
            raise UsageError(
                f"{kept} does not exist and {work.files.name} is quantized already: make it with "
                f"edgelm eval ORIGINAL --baseline {kept}, or give the original as --baseline."
            )
        yield None
        return
    with baseline_errors():
        aside = tempfile.TemporaryDirectory()
    with aside as scratch:
        path = kept or Path(scratch) / f"own{BASELINE_SUFFIX}"
        wanted = work.facts(work.files)
        if not path.exists():
            made = work.facts(files)
            made.require(wanted, path, weights=None)
            make_baseline(work, files, made, path)
        baseline = Baseline.open(path)
        try:
            baseline.facts.require(wanted, path, weights=_weights(work.files, stored, kept))
            yield baseline
        finally:
            baseline.close()


def _weights(files: ModelFiles, stored: bool, kept: Path | None) -> str | None:
    """sha256 of the weights a baseline file must come from; None if the user chose the baseline,
    or for a quantized folder that does not record its source."""
    if kept is None:
        return None
    return files.source_sha256 if stored else files.sha256


def is_quantized(work: Work) -> bool:
    """True if the file holds the integers that would run, so its floats are not a baseline."""
    return any(product.stored for product in plan(work.files, **work.planned()).products)


def task_score(name: str, picks: Picks, items: list[Item], facts: Facts | None) -> TaskScore:
    share, stderr = accuracy(picks.plain, items)
    norm, norm_stderr = accuracy(picks.by_length, items) if TASKS[name].by_length else (None, None)
    accuracy_before = flips = None
    if facts is not None:
        before = facts.tasks[name]["right"]
        accuracy_before = sum(before) / len(items)
        flips = flipped(before, right(picks.plain, items))
    low, high = wilson(round(share * len(items)), len(items))
    return TaskScore(
        len(items), share, stderr, norm, norm_stderr, accuracy_before, flips, low, high
    )


def with_pairs(
    scores: Mapping[str, TaskScore], rights: Mapping[str, list[bool]],
    items: Mapping[str, list[Item]], facts: Facts, margin: float,
) -> dict[str, TaskScore]:  # fmt: skip
    """The scores with ``paired``, from which items are right and which were; margin in points."""
    pairs = {}
    for name, own in items.items():
        # An item without a passage stands for itself.
        passages = [i.passage or f"item {number}" for number, i in enumerate(own)]
        pairs[name] = Pairs(facts.tasks[name]["right"], rights[name], passages)
    paired = paired_scores(pairs, margin / 100)
    return {name: replace(score, paired=paired[name]) for name, score in scores.items()}
