"""Scheduler: the rows of a cache, shared by the answers of all calls; the one generation loop.

Answers join and leave between steps. A step carries one id of every answer that runs, and pieces
of the prompts of those that came last. Whoever waits for an id runs the next step, for all: there
is no thread of the scheduler's own, and nothing runs while nobody waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from edgelm.budget.admission import memory_reported
from edgelm.call_lock import WAITED, Call, refuse_nesting
from edgelm.engine.engine import Hidden, RowTokens
from edgelm.errors import CancelledError, EdgeLMError
from edgelm.generation.answer import Answer, Arrival
from edgelm.generation.row_choice import RowChoice
from edgelm.generation.session import Session
from edgelm.generation.speculation import Speculation

_LOOK_S = 0.02  # interval at which a waiting reader checks whether it was cancelled
AHEAD = 16
"""Ids that an answer may be ahead of its reader: others' steps carry it no further."""
LEAST_BESIDE = 64  # ids of prompts in a step beside running answers, where a chunk has as many
_SHARE_BESIDE = 8  # else this part of a chunk: nobody waits long for the next id


class Scheduler:
    """Answers on the rows of one session.

    A row gives an answer the same ids whatever runs in the others.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._rows = RowChoice(session)
        self._changed = threading.Condition()
        self._stepper: int | None = None  # the thread that runs a step, and alone touches rows
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._guided: Answer | None = None
        self._closed = False

    @property
    def load(self) -> tuple[int, int]:
        """How many answers run, and how many wait for a row."""
        return len(self._running), len(self._waiting)

    def join(self, answers: Iterable[Answer]) -> None:
        """Put answers into the line for rows."""
        with self._changed:
            self._waiting.extend(answers)

    def leave(self, call: Call) -> None:
        """Give up all answers of a call; their rows are free after the step that may still run."""
        with self._changed:
            self._waiting = deque(own for own in self._waiting if own.call is not call)
            self._running = [own for own in self._running if own.call is not call]
            self._changed.notify_all()

    def close(self) -> None:
        """Run no step any more, and wait for the one that runs."""
        with self._changed:
            self._closed = True
            while self._stepper not in (None, threading.get_ident()):
                self._changed.wait()

    def next_arrival(
        self, own: Sequence[Answer], arrived: deque[Arrival], cancelled: Callable[[], bool]
    ) -> Arrival | None:
        """What comes next for the answers of a call; None where all are finished or cancelled.

        Runs steps as long as nobody else does.

        Raises:
            CancelledError: cancelled while none of them had a row.
            UsageError: the rows are held by a stream that waits for this call.
        """
        waited = False
        while not cancelled():
            try:
                with self._changed:
                    if arrived:
                        return arrived.popleft()
                    if self._closed or all(answer.finish_reason is not None for answer in own):
                        return None
                    if self._stepper is not None:
                        waited = True
                        self._changed.wait(_LOOK_S)
                        continue
                    self._stepper = threading.get_ident()
                advanced = self._advanced(own[0].call)
            finally:
                self._hand_over()
            if not advanced:
                waited = True
                self._wait_for_a_row()
        if waited and not self._closed and all(answer.row < 0 for answer in own):
            raise CancelledError(WAITED)
        return None

    def _advanced(self, call: Call) -> bool:
        """Fill the rows, and run a step if an answer of the call runs."""
        engine = self.session.engine
        try:
            with memory_reported(engine.plan, engine.forget):
                self._fill_rows()
                if not any(answer.call is call for answer in self._running):
                    return False
                self._step()
                return True
        except BaseException:
            self._broke_off()
            raise

    def _hand_over(self) -> None:
        """Let another thread run the next step, if this one ran the last."""
        with self._changed:
            if self._stepper == threading.get_ident():
                self._stepper = None
                self._changed.notify_all()

    def _wait_for_a_row(self) -> None:
        """Raises UsageError where none comes free before this thread reads a stream on."""
        holders, own = [answer.call for answer in self._running], threading.get_ident()
        refuse_nesting(holders, at_once=all(call.belongs_to(own) for call in holders))
        with self._changed:
            self._changed.wait(_LOOK_S)

    def _broke_off(self) -> None:
        """A step broke off, perhaps within, and left rows half written: run what they hold again.

        A failing answer that caused it leaves with its call, which the error ends.
        """
        self.session.forget_rows()
        for answer in self._running:
            self.session.cache.truncate(answer.row, 0)
            answer.run_again()

    def _fill_rows(self) -> None:
        """Give the rows of answers that ended to those that wait, by arrival."""
        with self._changed:
            self._running = [own for own in self._running if own.runs]
        while (answer := self._next_waiting()) is not None:
            kept = self._rows.prepare(answer)
            answer.begin(kept)

    def _next_waiting(self) -> Answer | None:
        """The first answer in line, now with a row, if there is one for it."""
        with self._changed:
            busy = {answer.row for answer in self._running}
            free = [row for row in range(self.session.cache.rows) if row not in busy]
            ready = (own for own in self._waiting if not self._twin_in_prompt(own))
            if not free or (answer := next(ready, None)) is None:
                return None
            self._waiting.remove(answer)
            answer.row = self._rows.choose(answer, free)
            self._running.append(answer)
            return answer

    def _twin_in_prompt(self, answer: Answer) -> bool:
        """True if another answer is still running the prompt that this one shares."""
        return any(other.in_prompt and answer.is_twin_of(other) for other in self._running)

    def _step(self) -> None:
        """One step of all answers whose readers keep up."""
        carried = [own for own in list(self._running) if own.ahead < AHEAD]
        guide = self._guide(carried)
        start = time.perf_counter()
        guessed = guide.guess(carried[0]) if guide else []
        if guide and guessed:
            self._verify(carried[0], guide, guessed, start)
        else:
            self._run(carried, guide, start)

    def _run(self, carried: list[Answer], guide: Speculation | None, start: float) -> None:
        """Run the pending ids of answers in one step, and choose the ids that follow."""
        engine, held = self.session.engine, self.session.held
        pieces = self._pieces(carried)
        hidden = engine.run(self.session.cache, [RowTokens(own.row, ids) for own, ids in pieces])
        ready, end = [], 0
        for answer, ids in pieces:
            first, end = end, end + len(ids)
            if answer.request.reads_prompt:
                answer.read_prompt(engine, hidden.states[first:end], len(held[answer.row]))
            held[answer.row].extend(ids)
            del answer.pending[: len(ids)]
            if answer.pending:
                continue
            if answer.in_prompt and answer.request.keep_prefix:
                self.session.points.mark(answer.row, held[answer.row])
            if answer.request.prompt_only:
                answer.end("length")
            else:
                ready.append((answer, end - 1))
        if ready:
            self._judge(hidden, ready)
            if guide:
                guide.stepped(time.perf_counter() - start)

    def _judge(self, hidden: Hidden, ready: list[tuple[Answer, int]]) -> None:
        logits, best = self.session.engine.judge(hidden, [at for _, at in ready])
        for (answer, _), own, likeliest in zip(ready, logits, best, strict=True):
            _choose(answer, own, likeliest)

    def _pieces(self, carried: list[Answer]) -> list[tuple[Answer, list[int]]]:
        """Ids of each answer for the next step: single ones first, then prompts by arrival."""
        single = [own for own in carried if len(own.pending) == 1]
        longer = [own for own in carried if len(own.pending) > 1]
        room = chunk = self.session.engine.plan.chunk
        if single:
            room = min(chunk, len(single) + max(LEAST_BESIDE, chunk // _SHARE_BESIDE))
        pieces = []
        for answer in [*single, *longer]:
            ids = answer.pending[:room]
            room -= len(ids)
            if ids:
                pieces.append((answer, ids))
        return pieces

    def _guide(self, carried: list[Answer]) -> Speculation | None:
        """The speculation, if exactly one answer runs, has begun its text and allows guesses."""
        answer, guide = carried[0], self.session.speculation
        if guide is None or len(carried) > 1 or len(answer.pending) != 1:
            return None
        if not answer.ids.new or not guide.serves(answer.request):
            return None
        if self._guided is not answer:
            self._guided = answer
            guide.begin(answer)
        return guide

    def _verify(self, answer: Answer, guide: Speculation, guessed: list[int], start: float) -> None:
        """One step over the pending id and guesses after it; the ids as far as guesses are right.

        Each id is chosen from its own logits as in a step of its own. The row is cut back to the
        pending id first and grows again with every right guess.
        """
        row, ids = answer.row, [*answer.pending, *guessed]
        engine, cache, held = self.session.engine, self.session.cache, self.session.held[row]
        length = cache.lengths[row]
        hidden = engine.run(cache, [RowTokens(row, ids)])
        undone = cache.truncate(row, length + 1)
        assert undone, "a ring holds what a step of one chunk overwrote"
        logits, best = engine.judge(hidden)
        spent = time.perf_counter() - start
        held.extend(answer.pending)
        answer.drafted += len(guessed)
        right = 0
        for own, likeliest, guess in zip(logits, best, [*guessed, None], strict=True):
            token = _choose(answer, own, likeliest)
            if token != guess or not answer.runs:
                break
            cache.advance(row, 1)
            held.append(token)
            answer.pending.clear()
            answer.accepted += 1
            right += 1
        guide.verified(len(guessed), right, spent)


def _choose(answer: Answer, logits: Tensor, best: int) -> int:
    """Choose an answer's next id; -1 where its own settings leave none, which its call is told."""
    try:
        return answer.choose(logits, best)
    except EdgeLMError as error:
        answer.fail(error)
    except BaseException:
        answer.fail(EdgeLMError("The step that chose this answer's next token was interrupted."))
        raise
    return -1
