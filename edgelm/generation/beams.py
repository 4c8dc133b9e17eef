"""Beam search: the likeliest whole answers rather than the likeliest next tokens.

The rows of the cache are the beams. Scores, candidates and the end of the search are those of
``transformers`` (generation/utils.py: ``_beam_search`` with ``early_stopping=False``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from edgelm.engine.engine import RowTokens
from edgelm.errors import UsageError
from edgelm.generation.processors import SoFar
from edgelm.generation.request import Request, Result, Stats
from edgelm.generation.session import Session
from edgelm.generation.writer import write
from edgelm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Beam:
    """One way to continue: its row, its ids and their summed log-probability.

    ``finish_reason`` is set once it is finished; ``score`` is then divided by its length's power.
    """

    row: int
    ids: tuple[int, ...]
    score: float
    finish_reason: str | None = None


class BeamSearch:
    """A search for one request.

    Args:
        width: how many beams run side by side, on rows 0 to ``width``.
        length_penalty: a finished beam's score is divided by length to this power.
        tokenizer: asked for where there are stop strings.

    Raises:
        UsageError: fewer rows than beams; a request that samples or follows a grammar.
    """

    def __init__(
        self, session: Session, request: Request, width: int, length_penalty: float,
        end_ids: frozenset[int], tokenizer: Callable[[], Tokenizer],
    ) -> None:  # fmt: skip
        self.engine, self.cache, self.held = session.engine, session.cache, session.held
        _check(request, width, min(self.cache.rows, self.engine.plan.chunk))
        self.request, self.width = request, width
        self.end_ids = end_ids | frozenset(request.stop_token_ids)
        self._tokenizer = tokenizer
        self.limit = request.limit(self.cache.context, self.engine.config.vocab_size)
        self._penalty = length_penalty
        self._adjustments = request.sampling.adjustments()
        self._finished: list[Beam] = []
        self._start = self._first = time.perf_counter()

    def run(self, cancelled: Callable[[], bool] = bool) -> list[Beam]:
        """The finished beams, best first; what was running where ``cancelled`` said stop."""
        logits = self._prefill(cancelled)
        running = [Beam(0, (), 0.0)]
        self._first = time.perf_counter()
        while logits is not None:
            running = self._settle(self._candidates(running, logits))
            if self._done(running):
                return self._finished
            if cancelled():
                break
            logits = self._step(running)
        cut = [Beam(b.row, b.ids, self._scaled(b), "cancelled") for b in running]
        return self._best([*self._finished, *cut])

    def stats(self, beam: Beam) -> Stats:
        """Of the search, with the beam's own count of tokens."""
        return Stats(
            prompt_tokens=len(self.request.prompt_ids),
            kept_tokens=0,
            new_tokens=len(beam.ids),
            prefill_s=self._first - self._start,
            decode_s=time.perf_counter() - self._first,
            seed=self.request.sampling.seed,
            kernels=self.engine.plan.kernels,
        )

    def _prefill(self, cancelled: Callable[[], bool]) -> Tensor | None:
        """Run the prompt on row 0; logits [1, V] after it, None when cancelled."""
        for row in range(self.width):
            self.cache.truncate(row, 0)
            self.held[row].clear()
        prompt, chunk = self.request.prompt_ids, self.engine.plan.chunk
        for start in range(0, len(prompt), chunk):
            if cancelled():
                return None
            piece = prompt[start : start + chunk]
            hidden = self.engine.run(self.cache, [RowTokens(0, list(piece))]).states
            self.held[0].extend(piece)
        return self.engine.logits(hidden[-1:])

    def _step(self, running: list[Beam]) -> Tensor:
        """Run each beam's newest id on its row; logits [beams, V]."""
        entries = [RowTokens(beam.row, [beam.ids[-1]]) for beam in running]
        hidden = self.engine.run(self.cache, entries).states
        for beam in running:
            self.held[beam.row].append(beam.ids[-1])
        return self.engine.logits(hidden)

    def _candidates(self, running: list[Beam], logits: Tensor) -> list[Beam]:
        """The likeliest continuations of all beams, best first, on their parents' rows.

        So many that ``width`` of them go on even if every end token is among the likeliest.
        """
        scores = logits.log_softmax(-1)
        for own, beam in zip(scores, running, strict=True):
            ids = SoFar(self.request.prompt_ids, list(beam.ids), self.end_ids, self.limit)
            for process in self._adjustments:
                process(own, ids)
            own += beam.score
        count = min(max(2, 1 + len(self.end_ids)) * self.width, scores.numel())
        top = scores.flatten().topk(count)
        found = []
        for at, score in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            parent, token = running[at // scores.shape[1]], at % scores.shape[1]
            found.append(Beam(parent.row, (*parent.ids, token), score))
        return found

    def _settle(self, candidates: list[Beam]) -> list[Beam]:
        """Put ends among the first ``width`` aside; give those that go on rows of their own."""
        going: list[Beam] = []
        for rank, beam in enumerate(candidates):
            reason = self._reason(beam)
            if reason is None:
                going.append(beam)
            elif rank < self.width:
                ended = Beam(beam.row, beam.ids, self._scaled(beam), reason)
                self._finished = self._best([*self._finished, ended])
        return self._on_rows(going[: self.width])

    def _on_rows(self, beams: list[Beam]) -> list[Beam]:
        """A parent's first child keeps its row; the others get copies in rows without children."""
        parents = {beam.row for beam in beams}
        free = [row for row in range(self.width) if row not in parents]
        placed: list[Beam] = []
        kept: set[int] = set()
        for beam in beams:
            row = beam.row
            if row in kept:
                row = free.pop()
                self.cache.copy_row(beam.row, row)
                self.held[row][:] = self.held[beam.row]
            kept.add(row)
            placed.append(Beam(row, beam.ids, beam.score))
        return placed

    def _reason(self, beam: Beam) -> str | None:
        if beam.ids[-1] in self.end_ids or self._stopped(beam):
            return "stop"
        return "length" if len(beam.ids) == self.limit else None

    def _stopped(self, beam: Beam) -> bool:
        if not self.request.stop:
            return False
        return write(self.request, self._tokenizer(), beam.ids, self.end_ids)[1]

    def _done(self, running: list[Beam]) -> bool:
        """True if no beam continues, or the best one would not get among the finished."""
        if not running:
            return True
        full = len(self._finished) == self.width
        return full and self._scaled(running[0]) <= self._finished[-1].score

    def _scaled(self, beam: Beam) -> float:
        return beam.score / max(1, len(beam.ids)) ** self._penalty

    def _best(self, beams: list[Beam]) -> list[Beam]:
        return sorted(beams, key=lambda beam: -beam.score)[: self.width]


def beam_result(search: BeamSearch, beam: Beam, tokenizer: Tokenizer) -> Result:
    """A finished beam as an answer with its text and score."""
    assert beam.finish_reason is not None
    text, _ = write(search.request, tokenizer, beam.ids, search.end_ids)
    stats = search.stats(beam)
    return Result(text, beam.ids, beam.finish_reason, stats, score=beam.score)


def check_kept(n: int, width: int) -> None:
    """Raise UsageError unless a search of ``width`` has n answers to give."""
    if not 0 < n <= width:
        raise UsageError(f"n is {n} for {width} beams; allowed: 1-{width}.")


def _check(request: Request, width: int, rows: int) -> None:
    if not 1 < width <= rows:
        raise UsageError(
            f"A beam search of width {width} needs as many rows; this model was loaded with "
            f"{rows}. Allowed: 2 to the number of rows; load with rows={max(2, width)}."
        )
    if request.sampling.temperature or request.constraint:
        raise UsageError(
            "Beam search takes the likeliest answers: leave out temperature, schema and grammar, "
            "or leave out beams."
        )
    if request.logprobs is not None:
        raise UsageError("Beam search gives a score for each answer; leave out logprobs.")
