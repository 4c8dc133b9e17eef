"""``evaluate``: what quantizing cost, on a text and on tasks, against the baseline of the weights.

The baseline runs first (quant none, float32), leaves a file and is closed; then the model runs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgelm.entry import load, plan
from edgelm.errors import UsageError
from edgelm.evaluation.baseline import (
    Baseline,
    Facts,
    tokenizer_sha256,
    write_footer,
    write_head,
    writing,
)
from edgelm.evaluation.choices import Encoded, Picks, accuracy, encode_item, pick
from edgelm.evaluation.divergence import TextScore, score_text
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.tasks import TASKS, Item, read_items
from edgelm.files import ModelFiles
from edgelm.model import LanguageModel

BASELINE_SUFFIX = ".baseline"
NOISE_WINDOWS = 4
_EXACT = {"quant": "none", "dtype": "float32", "kv": "float32", "method": "rtn"}
_BLOCK_TOKENS = 256

Bars = Callable[[str], Callable[..., None] | None]


@dataclass(frozen=True)
class TaskScore:
    """Shares of right answers with their standard error; ``_norm`` by log-likelihood per character.

    ``flips``: share of items that are right in one of model and baseline and wrong in the other.
    """

    n: int
    accuracy: float
    stderr: float | None
    accuracy_norm: float | None
    stderr_norm: float | None
    accuracy_baseline: float | None
    flips: float | None


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    ``noise_floor``: the text's figures for the baseline's own weights with bfloat16 activations,
    over its first windows. What quantizing adds below this no 16-bit run would keep either.
    """

    model: str
    scheme: str
    bits_per_weight: float
    text: TextScore | None
    noise_floor: dict[str, float] | None
    tasks: dict[str, TaskScore]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the text's figures stand at the top, null without a text."""
        data = asdict(self)
        del data["text"]
        names = TextScore.__dataclass_fields__
        return data | (asdict(self.text) if self.text else dict.fromkeys(names))


@dataclass(frozen=True)
class Work:
    """Everything that is read before a model is loaded."""

    files: ModelFiles
    passage: Passage | None
    items: Mapping[str, list[Item]]
    encoded: Mapping[str, list[list[Encoded]]]
    settings: dict[str, Any]
    bars: Bars

    @property
    def context(self) -> int:
        """The longest input, at most what the model knows."""
        longest = [len(c.ids) for items in self.encoded.values() for item in items for c in item]
        window = [] if self.passage is None else [self.passage.ids.shape[1]]
        return min(self.files.config.max_context, max(longest + window))

    def load(self, files: ModelFiles, title: str, **changes: Any) -> LanguageModel:
        settings = {"context": self.context} | self.settings | changes
        return load(files, progress=self.bars(title), **settings)

    def facts(self, files: ModelFiles) -> Facts:
        """What a baseline of ``files`` for this work must say, without results."""
        decoder, _ = files.assemble("causal-lm")
        assert decoder.head is not None
        shape = (0, 0) if self.passage is None else tuple(self.passage.ids.shape)
        return Facts(
            files.sha256, tokenizer_sha256(files.tokenizer),
            None if self.passage is None else self.passage.sha256, (shape[0], shape[1]),
            files.config.hidden_size, files.config.vocab_size, decoder.head.softcap,
            {name: {"sha256": _digest(items)} for name, items in self.items.items()},
        )  # fmt: skip

    def picks(self, lm: LanguageModel, title: str) -> dict[str, Picks]:
        return {
            name: pick(lm, items, self.encoded[name], self.bars(f"{title} {name}"))
            for name, items in self.items.items()
        }


def evaluate(
    model: str | Path | ModelFiles, *, text: str | Path | None = None,
    tasks: Mapping[str, str | Path] | None = None, limit: int | None = None, window: int = 512,
    baseline: str | Path | None = None, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, progress: Bars | None = None, **settings: Any,
) -> Evaluation:  # fmt: skip
    """Perplexity, divergence from the unquantized weights, and multiple-choice tasks.

    Args:
        text: a UTF-8 file, read in windows of ``window`` tokens.
        tasks: name -> local file; the names are those of ``tasks.TASKS``.
        limit: at most so many windows of the text and items of each task.
        baseline: a model reference, or a file ``*.baseline`` that is used, or made where it is
            missing. By default the baseline of the same weights is made and thrown away; a model
            that was quantized already has none then.
        progress: makes callbacks (..., done, all) from titles.
        settings: as for ``load``.

    Raises:
        UsageError: nothing to do, wrong options, or a baseline of something else.
        DoesNotFitError: the model or its baseline exceeds the budget.
    """
    if (limit is not None and limit < 1) or (text is None and not tasks):
        raise UsageError("Give a text or a task, and a limit of at least 1.")
    files = model if isinstance(model, ModelFiles) else ModelFiles.open(
        model, revision=revision, offline=offline, allow_pickle=allow_pickle
    )  # fmt: skip
    tokenizer = files.tokenizer
    passage = None if text is None else Passage.read(text, tokenizer, window, limit)
    items = {name: read_items(name, path, limit) for name, path in (tasks or {}).items()}
    encoded = {name: [encode_item(tokenizer, i) for i in own] for name, own in items.items()}
    if settings.get("context", "auto") == "auto":
        settings.pop("context", None)
    work = Work(files, passage, items, encoded, settings, progress or (lambda title: None))
    with _baseline(work, baseline) as reference:
        with work.load(files, f"loading {files.name}") as lm:
            score = None
            if passage is not None:
                score = score_text(lm, passage, reference, work.bars("reading the text"))
            picks = work.picks(lm, "answering")
        facts = None if reference is None else reference.facts
    found = {name: task_score(name, picks[name], items[name], facts) for name in items}
    noise = None if facts is None else facts.noise
    return Evaluation(files.name, lm.plan.scheme, lm.plan.bits_per_weight, score, noise, found)


@contextmanager
def _baseline(work: Work, given: str | Path | None) -> Iterator[Baseline | None]:
    """The open baseline file, checked; made first where there is none."""
    files, kept = work.files, None
    if given is not None and str(given).endswith(BASELINE_SUFFIX):
        kept = Path(given)
    elif given is not None:
        files = ModelFiles.open(given)
    stored = _is_quantized(work)
    if stored and (given is None or (kept and not kept.exists())):
        if kept:
            raise UsageError(
                f"{kept} does not exist and {files.name} is quantized already: make it with "
                f"edgelm eval ORIGINAL --baseline {kept}, or give the original as --baseline."
            )
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = kept or Path(scratch) / f"own{BASELINE_SUFFIX}"
        wanted = work.facts(work.files)
        if not path.exists():
            made = work.facts(files)
            made.require(wanted, path, same_weights=False)
            make_baseline(work, files, made, path)
        baseline = Baseline(path)
        try:
            baseline.facts.require(wanted, path, same_weights=not stored and files is work.files)
            yield baseline
        finally:
            baseline.close()


def _is_quantized(work: Work) -> bool:
    """The file holds the integers that would run, so its own floats are no baseline."""
    products = plan(work.files, **{"context": work.context} | _planned(work.settings)).products
    return any(product.stored for product in products)


def _planned(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "threads"}


def make_baseline(work: Work, files: ModelFiles, facts: Facts, path: Path) -> None:
    """Run the unquantized weights over the work and write what they say to ``path``."""
    with writing(path) as file:
        with work.load(files, "loading the baseline", **_EXACT) as lm:
            if work.passage is not None:
                _write_hidden(lm, work.passage, file, work.bars("reading with the baseline"))
            picks = work.picks(lm, "baseline answering")
        write_head(file, files)
        tasks = {
            name: facts.tasks[name] | {"right": _right(picks[name].plain, items)}
            for name, items in work.items.items()
        }
        write_footer(file, replace(facts, tasks=tasks))
    if work.passage is not None:
        _add_noise(work, files, path)


def _write_hidden(
    lm: LanguageModel, passage: Passage, file: Any, progress: Callable[..., None] | None
) -> None:
    """Last hidden states [tokens, N] float32 of all windows."""
    window = passage.ids.shape[1]
    cache = lm.new_cache(1, window)
    last = torch.tensor([0])
    for number, ids in enumerate(passage.ids):
        cache.truncate(0, 0)
        for piece in ids.split(_BLOCK_TOKENS):
            out = lm.forward(
                piece[None], cache=cache, output_hidden_states=True, logits_to_keep=last
            )
            assert out.hidden_states is not None
            file.write(out.hidden_states[-1][0].float().contiguous().numpy().data)
        if progress:
            progress(number + 1, len(passage.ids))


def _add_noise(work: Work, files: ModelFiles, path: Path) -> None:
    """Measure bfloat16 activations of the same weights against the file, and write it there."""
    assert work.passage is not None
    first = replace(work.passage, ids=work.passage.ids[:NOISE_WINDOWS])
    bars = work.bars("measuring the noise floor")
    changes = _EXACT | {"dtype": "bfloat16"}
    baseline = Baseline(path)
    try:
        with work.load(files, "loading in bfloat16", **changes) as lm:
            score = score_text(lm, first, baseline, bars)
    finally:
        baseline.close()
    shown = ("ppl", "ppl_baseline", "kld_mean", "kld_p99", "kld_max", "top1_agreement")
    noise = {"tokens": score.tokens} | {name: getattr(score, name) for name in shown}
    baseline.replace_facts(replace(baseline.facts, noise=noise))


def _right(picks: tuple[int, ...], items: list[Item]) -> list[bool]:
    return [p == item.gold for p, item in zip(picks, items, strict=True)]


def _digest(items: list[Item]) -> str:
    return hashlib.sha256(json.dumps([asdict(i) for i in items]).encode()).hexdigest()


def task_score(name: str, picks: Picks, items: list[Item], facts: Facts | None) -> TaskScore:
    share, stderr = accuracy(picks.plain, items)
    norm, norm_stderr = accuracy(picks.by_length, items) if TASKS[name].by_length else (None, None)
    accuracy_before = flips = None
    if facts is not None:
        before, after = facts.tasks[name]["right"], _right(picks.plain, items)
        accuracy_before = sum(before) / len(items)
        flips = sum(a != b for a, b in zip(after, before, strict=True)) / len(items)
    return TaskScore(len(items), share, stderr, norm, norm_stderr, accuracy_before, flips)
