"""Multiple-choice tasks: readers of their local files, and lm-eval's prompts.

Prompts, choices and scores follow lm-eval 0.4 (lm_eval/tasks), zero-shot. A choice is scored as
a space and its text after the prompt.
"""

from __future__ import annotations

import bz2
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError, UsageError
from edgelm.text.lines import UTF8, open_text, without_ends

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question: (prompt, choice) pairs; ``gold`` is the index of the correct one.

    ``passage`` names what questions share that are not independent of each other, such as a text
    that they all are about; a row of any file may name it.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int
    passage: str | None = None


@dataclass(frozen=True)
class Task:
    """``rows`` reads a file, ``item`` formats one row; ``by_length``: lm-eval has acc_norm too."""

    rows: Callable[[Path], Iterable[Row]]
    item: Callable[[Row], Item]
    by_length: bool = False


def read_items(name: str, path: str | Path, limit: int | None = None) -> list[Item]:
    """Read the first ``limit`` items of a task's file.

    Raises:
        UsageError: no such task of this kind.
        ModelFileError: the file is missing or not in the task's format.
    """
    if name not in TASKS:
        raise UsageError(f"{name!r} is not a task; allowed: {', '.join(TASKS)}.")
    task, items = TASKS[name], []
    try:
        for row in task.rows(Path(path)):
            items.append(_in_passage(task.item(row), row))
            if not 0 <= items[-1].gold < len(items[-1].pairs):
                raise ValueError(f"answer {items[-1].gold} of {len(items[-1].pairs)} choices")
            if len(items) == limit:
                break
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        csv.Error,
    ) as error:
        raise ModelFileError(
            f"{path} cannot be read as {name}, item {len(items) + 1}: {type(error).__name__}: "
            f"{error}. Give a file in this task's format."
        ) from error
    if not items:
        raise ModelFileError(f"{path} holds no items of {name}.")
    return items


def _in_passage(item: Item, row: Row) -> Item:
    passage = row.get("passage")
    if not isinstance(passage, str | int | None):
        raise ValueError(f"passage is {passage!r:.40}; allowed: a name, or none")
    return item if passage is None else replace(item, passage=str(passage))


def _json_lines(path: Path) -> Iterator[Row]:
    with open_text(path) as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _json_list(path: Path) -> Iterator[Row]:
    yield from json.loads(path.read_text(encoding=UTF8))


def _six_lines(path: Path) -> Iterator[Row]:
    """Rows of six lines: context, answer and four endings; plain or bz2."""
    opened = bz2.open if path.suffix == ".bz2" else open
    with opened(path, "rt", encoding=UTF8, newline="\n") as file:
        lines = [*without_ends(file)]
    for start in range(0, len(lines) - 5, 6):
        query, gold, *choices = lines[start : start + 6]
        yield {"query": query, "gold": int(gold), "choices": choices}


def _subjects(path: Path) -> Iterator[Row]:
    """CSV of one subject, or a folder of them; the subject is the file's name."""
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        subject = re.sub("_(test|dev|val)$", "", file.stem).replace("_", " ")
        with open_text(file) as lines:
            yield from ({"subject": subject} | row for row in csv.DictReader(lines))


def _one_prompt(prompt: str, choices: Iterable[str], gold: int) -> Item:
    return Item(tuple((prompt, choice) for choice in choices), gold)


def _answered(row: Row) -> Item:
    return _one_prompt(f"{row['query'].rstrip()}\nAnswer:", row["choices"], row["gold"])


def _continued(row: Row) -> Item:
    return _one_prompt(row["query"], row["choices"], row["gold"])


def _partial(row: Row) -> Item:
    """WinoGrande's partial scoring: the prompts differ, the continuation is the same."""
    return Item(tuple((p, row["continuation"]) for p in row["context_options"]), row["gold"])


_SIQA = re.compile(
    r"to the question: (.*?)\n\nAnswer1: (.*?) Answer2: (.*?) Answer3: (.*?)\n\n", re.S
)


def _social(row: Row) -> Item:
    found = _SIQA.search(row["instruction"])
    if found is None:
        raise ValueError("no question with Answer1 to Answer3")
    question, *choices = found.groups()
    return _one_prompt(f"Q: {question}\nA:", choices, int(row["answer"][-1]) - 1)


def _lettered(row: Row) -> Item:
    choices = "\n".join(f"{'ABCD'[i]}. {row[f'choice{i}']}" for i in range(4))
    prompt = (
        "The following are multiple choice questions (with answers) about "
        f"{row['subject']}.\n\n{row['question'].strip()}\n{choices}\nAnswer:"
    )
    return _one_prompt(prompt, "ABCD", int(row["answer"]))


TASKS: dict[str, Task] = {
    "arc_easy": Task(_json_lines, _answered, by_length=True),
    "arc_challenge": Task(_json_lines, _answered, by_length=True),
    "piqa": Task(_json_lines, _answered, by_length=True),
    "openbook_qa": Task(_json_lines, _continued, by_length=True),
    "commonsense_qa": Task(_json_lines, _continued),
    "social_iqa": Task(_json_list, _social),
    "hellaswag": Task(_six_lines, _continued, by_length=True),
    "winogrande": Task(_json_lines, _partial),
    "mmlu": Task(_subjects, _lettered),
}
