"""Task heads: the table of tasks, and the labels that a config gives them.

Heads other than the language model's stay in float: they are small and come last. The reference
implementations are the ``For...`` classes of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelm.config import ConfigReader, ModelConfig
from edgelm.errors import ModelFileError, UnsupportedModelError, UsageError
from edgelm.models import FAMILIES
from edgelm.models.layers import Head

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class HeadKind:
    """A task's head. names: its tensor in the file by family; absent families have no such head."""

    names: Mapping[str, str]
    bias: bool = False


KINDS: dict[str, HeadKind] = {
    "causal-lm": HeadKind(dict.fromkeys(FAMILIES, "lm_head")),
    "sequence-classification": HeadKind(dict.fromkeys(FAMILIES, "score")),
    "token-classification": HeadKind(
        dict.fromkeys(FAMILIES, "score") | {"bloom": "classifier"}, bias=True
    ),
    "question-answering": HeadKind(dict.fromkeys(("bloom", "llama"), "qa_outputs"), bias=True),
}
TASKS = (*KINDS, "base")


def head_for(
    config: ModelConfig, task: str, data: Mapping[str, Any] | None = None,
    num_labels: int | None = None, problem_type: str | None = None,
) -> Head | None:  # fmt: skip
    """Build the head of ``task``, without weights; None for ``base``.

    Args:
        data: the config.json, for labels and problem_type.
        num_labels, problem_type: given by the user, see ``load``.

    Raises:
        UsageError: an unknown task or problem, or labels for a task without labels.
        UnsupportedModelError: the family has no such head.
    """
    if task not in TASKS:
        raise UsageError(f"task {task!r} is not known; allowed: {', '.join(TASKS)}.")
    classifies = task.endswith("-classification")
    _check_options(task, classifies, num_labels, problem_type)
    if task == "base":
        return None
    kind = KINDS[task]
    if config.model_type not in kind.names:
        raise UnsupportedModelError(
            f"{config.model_type} has no head for {task}; {' and '.join(kind.names)} have one."
        )
    source = kind.names[config.model_type]
    if task == "causal-lm":
        rows, softcap = config.vocab_size, config.final_softcap
        return Head(task, source, rows, config.hidden_size, softcap=softcap, tied=config.tied)
    labels = _labels(data or {}, num_labels) if classifies else ("start", "end")
    problem = problem_type or (_problem(data or {}) if classifies else None)
    return Head(
        task, source, len(labels), config.hidden_size, kind.bias, labels=labels, problem=problem
    )


def _check_options(
    task: str, classifies: bool, num_labels: int | None, problem_type: str | None
) -> None:
    if num_labels is not None:
        allowed = "1 or more" if classifies else "2" if task == "question-answering" else "none"
        if allowed == "none" or num_labels < 1 or (allowed == "2" and num_labels != 2):
            raise UsageError(f"num_labels is {num_labels}; task {task!r} takes {allowed}.")
    if problem_type is None:
        return
    if task != "sequence-classification":
        raise UsageError(f"problem_type belongs to sequence-classification, not to task {task!r}.")
    if problem_type not in PROBLEMS:
        raise UsageError(f"problem_type {problem_type!r} is not known; allowed: {PROBLEMS}.")


def _problem(data: Mapping[str, Any]) -> str | None:
    if data.get("problem_type") is None:
        return None
    return ConfigReader(data).choice("problem_type", allowed=PROBLEMS)


def _labels(data: Mapping[str, Any], wanted: int | None) -> tuple[str, ...]:
    """The config's labels in order; LABEL_0, LABEL_1, ... if it has none or another number."""
    named = data.get("id2label")
    if named is None and isinstance(data.get("label2id"), Mapping):
        named = {index: label for label, index in data["label2id"].items()}
    if named is None:
        count = wanted or ConfigReader(data).integer("num_labels", default=2)
        return _default_labels(count)
    entries = named.items() if isinstance(named, Mapping) else ()
    by_id = {str(key): str(label) for key, label in entries}
    labels = [by_id.get(str(index)) for index in range(len(by_id))]
    if not labels or None in labels or len(set(labels)) != len(labels):
        raise ModelFileError(
            f"config.json: id2label is {named!r}; expected names, all different, for 0, 1, 2, ..."
        )
    found = tuple(label for label in labels if label is not None)
    return found if wanted in (None, len(found)) else _default_labels(wanted or 0)


def _default_labels(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))
