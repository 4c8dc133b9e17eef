"""Written tasks asked of a loaded model: prompts with examples, greedy answers, scores."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.evaluation.answer_scores import bleu
from edgelm.evaluation.few_shot import BETWEEN, drawn
from edgelm.evaluation.written_tasks import WRITTEN_TASKS, Question, read_questions, wordings
from edgelm.model import LanguageModel
from edgelm.progress import Count
from edgelm.text.tokenizer import Tokenizer

logger = logging.getLogger("edgelm")


@dataclass(frozen=True)
class WrittenScore:
    """Score of a task in percent if ``metric`` is BLEU, else the share of right answers.

    n: questions, each asked in every wording. score: mean over the wordings; ``by_prompt`` has
    each, ``spread`` is the largest less the smallest. stderr: of the mean over questions; None for
    one, and for BLEU, which no single answer has. by_language: of the questions of each.
    """

    metric: str
    n: int
    score: float
    stderr: float | None
    spread: float
    by_prompt: tuple[float, ...]
    by_language: dict[str, float]


@dataclass(frozen=True)
class Asked:
    """One task's questions as prompts.

    prompts: by wording, ids of each question's prompt.
    """

    name: str
    questions: list[Question]
    prompts: tuple[list[list[int]], ...]

    @classmethod
    def read(
        cls, name: str, path: str | Path, tokenizer: Tokenizer, *, limit: int | None = None,
        shots: int = 0, prompts: int = 1, seed: int = 0,
    ) -> Asked:  # fmt: skip
        """Read a task's file; examples are drawn of all of it, then ``limit`` questions are asked.

        Raises:
            ModelFileError: the file is not in the task's format.
            UsageError: fewer questions than examples need, or fewer wordings than asked for.
        """
        every = read_questions(name, path)
        examples, left = drawn(every, shots, seed, lambda q: q.language, str(path))
        left = left[:limit]
        encoded = tuple(
            [tokenizer.encode(_prompt(wording, own, examples)) for own in left]
            for wording in wordings(name, prompts)
        )
        return cls(name, left, encoded)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and its answer."""
        longest = max(len(ids) for own in self.prompts for ids in own)
        return longest + WRITTEN_TASKS[self.name].max_new_tokens

    def answers(self, lm: LanguageModel, progress: Count | None) -> list[list[str]]:
        """The model's answers by wording, greedy, up to the task's stop strings.

        First ids of a prompt that the context has no room for are left out, with a warning.
        """
        task = WRITTEN_TASKS[self.name]
        room = lm.plan.context - task.max_new_tokens
        cut = sum(len(ids) > room for own in self.prompts for ids in own)
        if cut:
            logger.warning(
                "%s: %d prompts do not fit the context of %d tokens: their first tokens are left "
                "out.", self.name, cut, lm.plan.context,
            )  # fmt: skip
        found: list[list[str]] = []
        done, total = 0, len(self.questions) * len(self.prompts)
        for own in self.prompts:
            found.append([])
            for start in range(0, len(own), lm.plan.rows):
                batch = [ids[-room:] for ids in own[start : start + lm.plan.rows]]
                results = lm.generate(
                    batch, temperature=0.0, max_new_tokens=task.max_new_tokens,
                    stop=list(task.stop),
                )  # fmt: skip
                found[-1] += [result.text.strip() for result in results]
                done += len(batch)
                if progress:
                    progress(done, total)
        return found

    def score(self, answers: Sequence[Sequence[str]]) -> WrittenScore:
        """Scores of the answers, by wording."""
        by_prompt = tuple(self._scored(own, self.questions) for own in answers)
        languages: dict[str, list[int]] = {}
        for place, question in enumerate(self.questions):
            languages.setdefault(question.language, []).append(place)
        by_language = {
            language: _mean(
                self._scored([own[i] for i in places], [self.questions[i] for i in places])
                for own in answers
            )
            for language, places in languages.items()
        }
        return WrittenScore(
            WRITTEN_TASKS[self.name].metric, len(self.questions), _mean(by_prompt),
            self._stderr(answers), max(by_prompt) - min(by_prompt), by_prompt, by_language,
        )  # fmt: skip

    def rows(self, answers: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """What was answered to each question in each wording, as JSON-able data."""
        score = WRITTEN_TASKS[self.name].score
        return [
            {
                "task": self.name, "item": place, "prompt": wording, "language": question.language,
                **question.fields, "answer": answer, "accepted": list(question.accepted),
                "score": score and score(answer, question.accepted, question.language),
            }
            for wording, own in enumerate(answers)
            for place, (question, answer) in enumerate(zip(self.questions, own, strict=True))
        ]  # fmt: skip

    def _scored(self, answers: Sequence[str], questions: Sequence[Question]) -> float:
        score = WRITTEN_TASKS[self.name].score
        if score is None:
            return bleu(answers, [question.accepted for question in questions])
        pairs = zip(answers, questions, strict=True)
        return _mean(score(answer, own.accepted, own.language) for answer, own in pairs)

    def _stderr(self, answers: Sequence[Sequence[str]]) -> float | None:
        """Of a sample of questions, whose wordings are averaged first."""
        score, n = WRITTEN_TASKS[self.name].score, len(self.questions)
        if score is None or n < 2:
            return None
        means = [
            _mean(score(answer, own.accepted, own.language) for answer in each)
            for own, each in zip(self.questions, zip(*answers, strict=True), strict=True)
        ]
        mean = _mean(means)
        return math.sqrt(sum((value - mean) ** 2 for value in means) / (n - 1) / n)


def _prompt(wording: str, asked: Question, examples: Mapping[str, Sequence[Question]]) -> str:
    """A question after answered ones of its language."""
    shown = (
        f"{wording.format(**own.fields)} {own.shown}{BETWEEN}"
        for own in examples.get(asked.language, ())
    )
    return "".join(shown) + wording.format(**asked.fields)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
