"""Evaluation inputs: a text and tasks, read and encoded before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgelm.errors import UsageError
from edgelm.evaluation.answering import Asked
from edgelm.evaluation.baseline import Facts, tokenizer_sha256
from edgelm.evaluation.choices import Picks, cut_to_context, encode_item, pick
from edgelm.evaluation.few_shot import shown_items
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.tasks import TASKS, Item
from edgelm.evaluation.texts import read_texts
from edgelm.evaluation.written_tasks import WRITTEN_TASKS
from edgelm.loading import load
from edgelm.model import LanguageModel
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import Settings, given_context
from edgelm.text.continuation import Encoded

Bars = Callable[[str], Callable[..., None] | None]


@dataclass(frozen=True)
class Work:
    """Inputs evaluated with a model and its baseline. ``settings`` are those of ``load``; ``asked``
    are questions that the baseline, which runs layer by layer, cannot answer."""

    files: ModelFiles
    passage: Passage | None
    items: Mapping[str, list[Item]]
    encoded: Mapping[str, list[list[Encoded]]]
    settings: dict[str, Any]
    bars: Bars
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Length of the longest input, at most the model's context."""
        longest = [len(c.ids) for items in self.encoded.values() for item in items for c in item]
        window = [] if self.passage is None else [self.passage.ids.shape[1]]
        asked = [own.context for own in self.asked.values()]
        return min(self.files.config.max_context, max(longest + window + asked))

    def first(self, windows: int, items: int) -> Work:
        """A copy with at most this number of windows and items of each task."""
        passage = self.passage
        return replace(
            self,
            passage=None if passage is None else passage.first(windows),
            items={name: own[:items] for name, own in self.items.items()},
            encoded={name: own[:items] for name, own in self.encoded.items()},
        )

    def load(self, files: ModelFiles, title: str, **changes: Any) -> LanguageModel:
        settings = {"context": self.context} | self.settings | changes
        return load(files, progress=self.bars(title), **settings)

    def planned(self, **changes: Any) -> dict[str, Any]:
        """The settings for a plan."""
        settings = {"context": self.context} | self.settings | changes
        return {name: value for name, value in settings.items() if name != "threads"}

    def facts(self, files: ModelFiles) -> Facts:
        """Facts that a baseline of ``files`` must state for this work, without results."""
        decoder = files.assemble("causal-lm").decoder
        assert decoder.head is not None
        shape = (0, 0) if self.passage is None else tuple(self.passage.ids.shape)
        return Facts(
            files.sha256, tokenizer_sha256(files.tokenizer),
            None if self.passage is None else self.passage.sha256, (shape[0], shape[1]),
            files.config.hidden_size, files.config.vocab_size, decoder.head.softcap,
            {name: {"sha256": _digest(items)} for name, items in self.items.items()},
            bos=self.passage is not None and self.passage.bos,
        )  # fmt: skip

    def answers(self, lm: LanguageModel) -> dict[str, list[list[str]]]:
        """Written answers to the questions of each task, by wording."""
        return {
            name: own.answers(lm, self.bars(f"answering {name}"))
            for name, own in self.asked.items()
        }

    def picks(self, lm: LanguageModel, title: str) -> dict[str, Picks]:
        return {
            name: pick(lm, items, self.encoded[name], self.bars(f"{title} {name}"))
            for name, items in self.items.items()
        }


def read_work(
    files: ModelFiles, text: str | Path | None, tasks: Mapping[str, str | Path],
    limit: int | None, window: int, chosen: Settings, settings: Mapping[str, Any],
    progress: Bars | None, *, shots: int = 0, prompts: int = 1, seed: int = 0,
) -> Work:  # fmt: skip
    """Read and encode a text or a folder of texts, and the files of tasks.

    Args:
        chosen: ``settings`` as they were read.
        shots, prompts, seed: examples before each question, wordings, and which examples.

    Raises:
        UsageError, ModelFileError: as ``read_texts`` and ``read_items``.
    """
    tokenizer = files.tokenizer
    passage = None if text is None else read_texts(text, tokenizer, window, limit)
    chosen_from, written = _by_kind(tasks)
    items = {name: shown_items(name, f, limit, shots, seed) for name, f in chosen_from.items()}
    questions = {
        name: Asked.read(name, f, tokenizer, limit=limit, shots=shots, prompts=prompts, seed=seed)
        for name, f in written.items()
    }
    asked = dict(settings)
    if chosen.context == "auto":
        asked.pop("context", None)
    context = given_context(chosen, files.config) or files.config.max_context
    encoded = {
        name: cut_to_context(name, [encode_item(tokenizer, i) for i in own], context)
        for name, own in items.items()
    }
    bars = progress or (lambda title: None)
    return Work(files, passage, items, encoded, asked, bars, questions)


def _by_kind(
    tasks: Mapping[str, str | Path],
) -> tuple[dict[str, str | Path], dict[str, str | Path]]:
    """(multiple choice, written answers); UsageError for a name that is neither."""
    for name in tasks:
        if name not in (known := [*TASKS, *WRITTEN_TASKS]):
            raise UsageError(f"{name!r} is not a task; allowed: {', '.join(known)}.")
    written = {name: path for name, path in tasks.items() if name in WRITTEN_TASKS}
    return {n: path for n, path in tasks.items() if n not in written}, written


def right(picks: tuple[int, ...], items: list[Item]) -> list[bool]:
    """Flags of the items answered correctly."""
    return [p == item.gold for p, item in zip(picks, items, strict=True)]


def flipped(before: list[bool], after: list[bool]) -> float:
    """Share of items that are correct in one and wrong in the other."""
    return sum(a != b for a, b in zip(after, before, strict=True)) / len(after)


def _digest(items: list[Item]) -> str:
    return hashlib.sha256(json.dumps([asdict(i) for i in items]).encode()).hexdigest()
