"""Which row an answer runs in, and what of its prompt is there already: the prefix cache.

A row keeps what it holds when its answer has ended. The next prompt that begins alike goes on from
there, or from a copy where others may still want the rest. So the prefixes take no memory beside
the rows, and what was used longest ago makes room.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.call_lock import Call
from edgelm.generation.answer import Answer
from edgelm.generation.session import Session


class RowChoice:
    """Rows of one session for answers, one after the other."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._used = [0] * session.cache.rows  # when a row was chosen last, in choices
        self._choices = 0
        self._prompts: list[tuple[Call, tuple[int, ...]] | None] = [None] * session.cache.rows
        self._source: int | None = None  # row with the prefix of the answer that is being placed

    def choose(self, answer: Answer, free: Sequence[int]) -> int:
        """The row for an answer among those that are free; ``prepare`` makes it ready."""
        oldest = min(free, key=lambda row: (self._used[row], row))
        row = self._source = self._nearest(answer)
        if row is None or row not in free or self._wastes(answer, row, oldest):
            row = oldest
        self._choices += 1
        self._used[row] = self._choices
        self._prompts[row] = answer.call, answer.request.prompt_ids
        return row

    def prepare(self, answer: Answer) -> int:
        """Let the chosen row hold what is known of the prompt, but for its last id; how much."""
        session, row, source = self._session, answer.row, self._source
        held = session.held[row]
        if source is None:
            shared = 0
        else:
            if source != row:
                session.copy_row(source, row)
            shared = self._shared(answer, row)
        if not session.cache.truncate(row, shared):
            shared = session.points.go_back(row, held, shared)
        del held[shared:]
        session.last_row = row
        return shared

    def _nearest(self, answer: Answer) -> int | None:
        """The row, also of a running answer, that holds most of the prompt's beginning."""
        rows = [row for row in range(self._session.cache.rows) if self._may_share(answer, row)]
        best = max(rows, key=lambda row: self._shared(answer, row), default=None)
        return None if best is None or not self._shared(answer, best) else best

    def _may_share(self, answer: Answer, row: int) -> bool:
        request, held = answer.request, self._session.held[row]
        if request.reads_prompt:  # wants something of every id
            return False
        if request.keep_prefix:
            return True
        prompt = request.prompt_ids
        twins = request.shares_prompt and self._prompts[row] == (answer.call, prompt)
        return twins and tuple(held[: len(prompt)]) == prompt

    def _shared(self, answer: Answer, row: int) -> int:
        """How many ids of the prompt a row holds; the last one is always run again."""
        held, prompt = self._session.held[row], answer.request.prompt_ids[:-1]
        shared, most = 0, min(len(prompt), len(held))
        while shared < most and prompt[shared] == held[shared]:
            shared += 1
        return shared

    def _wastes(self, answer: Answer, row: int, oldest: int) -> bool:
        """True if going on in a row would lose most of another text, and more than a copy does."""
        held, shared = self._session.held, self._shared(answer, row)
        lost = len(held[row]) - shared
        return lost > shared and lost > len(held[oldest])
