"""Tasks whose answers are written by the model: readers of their JSON lines, prompts and scores.

A line is one question. Beside its task's fields it may have ``language`` (ISO 639-1; "en" unless
told), by which scores are listed and examples are drawn:

    triviaqa            {"question": TEXT, "answer": {"value": TEXT, "aliases": [TEXT, ...]}}
    natural_questions   {"question": TEXT, "answer": [TEXT, ...]}
    mkqa                {"language": "de", "question": TEXT, "answers": [TEXT, ...]}
    flores              {"from": "English", "to": "German", "source": TEXT, "target": TEXT}
    gsm8k               {"question": TEXT, "answer": "... #### 42"}

TriviaQA, NaturalQuestions and GSM8K have these fields as they are published (rc.nocontext,
nq_open, main). Question answering is scored by exact match with any accepted answer after SQuAD's
normalisation (MKQA's articles in other languages), GSM8K by the last number, FLORES by sacrebleu's
BLEU with 13a.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError, UsageError
from edgelm.evaluation.answer_scores import exact_match, same_number
from edgelm.evaluation.tasks import Row
from edgelm.text.lines import open_text


@dataclass(frozen=True)
class Question:
    """``fields`` fill a prompt; ``shown`` is the answer that an example has."""

    fields: dict[str, str]
    accepted: tuple[str, ...]
    shown: str
    language: str


Score = Callable[[str, Sequence[str], str], float]


@dataclass(frozen=True)
class WrittenTask:
    """prompts: wordings, each ending where the answer begins. score: of one answer; None where only
    all answers together have one (BLEU)."""

    question: Callable[[Row], Question]
    prompts: tuple[str, ...]
    score: Score | None
    max_new_tokens: int
    stop: tuple[str, ...] = ("\n",)

    @property
    def metric(self) -> str:
        return _METRICS[self.score]


_METRICS: dict[Score | None, str] = {
    exact_match: "exact match", same_number: "last number", None: "BLEU",
}  # fmt: skip


def read_questions(name: str, path: str | Path) -> list[Question]:
    """Every question of a task's file.

    Raises ModelFileError: the file is missing, empty or not in the task's format.
    """
    found: list[Question] = []
    read = 0
    try:
        with open_text(Path(path)) as lines:
            for line in lines:
                read += 1
                if line.strip():
                    found.append(_question(WRITTEN_TASKS[name], json.loads(line)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"no field {error}" if isinstance(error, KeyError) else error
        raise ModelFileError(
            f"{path} cannot be read as {name}, line {read}: {told}. {_format(name)}"
        ) from error
    if not found:
        raise ModelFileError(f"{path} holds no questions of {name}. {_format(name)}")
    return found


def _format(name: str) -> str:
    lines = (line.strip() for line in (__doc__ or "").splitlines())
    shown = next(line for line in lines if line.startswith(f"{name} "))
    return f"A line of it is {shown.removeprefix(name).strip()}."


def _question(task: WrittenTask, row: Row) -> Question:
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    found = task.question(row)
    if not found.accepted:
        raise ValueError("no answer is accepted")
    return found


def _text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r:.60}, not a text")
    return value.strip()


def _texts(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{name} is {values!r:.60}, not a list of texts")
    return tuple(_text({name: value}, name) for value in values)


def _language(row: Row) -> str:
    return _text(row, "language") if "language" in row else "en"


def _asked(row: Row, accepted: tuple[str, ...]) -> Question:
    fields = {"question": _text(row, "question")}
    return Question(fields, accepted, accepted[0] if accepted else "", _language(row))


def _trivia(row: Row) -> Question:
    answer = row["answer"]
    value = _text(answer, "value")
    return _asked(row, tuple(dict.fromkeys((value, *_texts(answer["aliases"], "aliases")))))


def _natural(row: Row) -> Question:
    return _asked(row, _texts(row["answer"], "answer"))


def _mkqa(row: Row) -> Question:
    _ = row["language"]  # which is not English where it is left out
    return _asked(row, _texts(row["answers"], "answers"))


def _flores(row: Row) -> Question:
    fields = {name: _text(row, name) for name in ("from", "to", "source")}
    target = _text(row, "target")
    language = _text(row, "language") if "language" in row else fields["to"]
    return Question(fields, (target,), target, language)


def _gsm8k(row: Row) -> Question:
    worked = _text(row, "answer")
    _, mark, result = worked.rpartition("####")
    if not mark:
        raise ValueError("answer has no '####' before its result")
    return Question({"question": _text(row, "question")}, (result.strip(),), worked, _language(row))


_QUESTION = ("Question: {question}\nAnswer:", "Q: {question}\nA:", "{question}\nThe answer is")
WRITTEN_TASKS: dict[str, WrittenTask] = {
    "triviaqa": WrittenTask(_trivia, _QUESTION, exact_match, 24),
    "natural_questions": WrittenTask(_natural, _QUESTION, exact_match, 24),
    "mkqa": WrittenTask(_mkqa, _QUESTION[:2], exact_match, 32),
    "flores": WrittenTask(
        _flores,
        ("{from}: {source}\n{to}:", "Translate from {from} to {to}.\n{source}\nTranslation:"),
        None,
        160,
    ),
    "gsm8k": WrittenTask(
        _gsm8k,
        ("Question: {question}\nAnswer:", "Q: {question}\nA: Let's think step by step."),
        same_number,
        256,
        ("\nQuestion:", "\nQ:", "\n\n"),
    ),
}


def wordings(name: str, count: int) -> tuple[str, ...]:
    """The first ``count`` prompts of a task; UsageError if it has fewer."""
    known = WRITTEN_TASKS[name].prompts
    if count > len(known):
        raise UsageError(f"prompts is {count}; {name} has {len(known)}.")
    return known[:count]
