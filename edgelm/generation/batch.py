"""Requests -> token ids -> pieces of text: one loop for one answer or many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

from edgelm.engine.engine import RowTokens
from edgelm.generation.answer import Answer
from edgelm.generation.request import Chunk, Request, Result, Stats, collect
from edgelm.generation.session import Session
from edgelm.generation.speculation import Speculation
from edgelm.generation.writer import Writer
from edgelm.text.tokenizer import Tokenizer


class Batch:
    """Requests on the rows of a cache: as many at once as there are rows, the others after them.

    Args:
        end_ids: tokens that end an answer. cancelled: asked before every token.

    Raises:
        UsageError, ContextLengthError: a request that cannot be run; none is started then.
    """

    def __init__(
        self, session: Session, requests: Sequence[Request], end_ids: frozenset[int],
        cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.engine, self.cache, self.held = session.engine, session.cache, session.held
        self.points, self.speculation = session.points, session.speculation
        self.end_ids, self.cancelled = end_ids, cancelled
        context, vocab_size = self.cache.context, self.engine.config.vocab_size
        self.answers = [
            Answer(index, request, request.limit(context, vocab_size), end_ids)
            for index, request in enumerate(requests)
        ]
        self._waiting = list(self.answers)
        self._running: list[Answer] = []
        self._guided: Answer | None = None

    def tokens(self) -> Generator[tuple[Answer, int], None, None]:
        """Each answer's ids as they come, end tokens included: the one generation loop."""
        while self._fill_rows() and not self.cancelled():
            guide = self._guide()
            start = time.perf_counter()
            guessed = guide.guess(self._running[0]) if guide else []
            if guide and guessed:
                yield from self._verify(guide, guessed, start)
            else:
                yield from self._step(guide, start)

    def _step(
        self, guide: Speculation | None, start: float
    ) -> Generator[tuple[Answer, int], None, None]:
        """Run the pending ids of all running answers in one step; yield the ids that follow."""
        pieces = list(self._pieces())
        hidden = self.engine.run(self.cache, [RowTokens(own.row, ids) for own, ids in pieces])
        ready, at = [], -1
        for answer, ids in pieces:
            self.held[answer.row].extend(ids)
            del answer.pending[: len(ids)]
            at += len(ids)
            if not answer.pending:
                ready.append((answer, at))
                if answer.in_prompt and answer.request.keep_prefix:
                    self.points.mark(answer.row, self.held[answer.row])
        if not ready:
            return
        logits, best = self.engine.judge(hidden, [at for _, at in ready])
        if guide:
            guide.stepped(time.perf_counter() - start)
        for (answer, _), own, likeliest in zip(ready, logits, best, strict=True):
            yield answer, answer.choose(own, likeliest)

    def _guide(self) -> Speculation | None:
        """The speculation, if exactly one answer runs, has begun its text and allows guesses."""
        answer, guide = self._running[0], self.speculation
        if guide is None or len(self._running) > 1 or len(answer.pending) != 1:
            return None
        if not answer.new_tokens or not guide.serves(answer.request):
            return None
        if self._guided is not answer:
            self._guided = answer
            guide.begin(answer)
        return guide

    def _verify(
        self, guide: Speculation, guessed: list[int], start: float
    ) -> Generator[tuple[Answer, int], None, None]:
        """One step over the pending id and guesses after it; the ids as far as guesses are right.

        Each id is chosen from its own logits as in a step of its own. The row is cut back to the
        pending id first and grows again with every right guess, so that it holds what ``held``
        says whenever the caller stops.
        """
        answer = self._running[0]
        row, ids = answer.row, [*answer.pending, *guessed]
        length = self.cache.lengths[row]
        hidden = self.engine.run(self.cache, [RowTokens(row, ids)])
        undone = self.cache.truncate(row, length + 1)
        assert undone, "a ring holds what a step of one chunk overwrote"
        logits, best = self.engine.judge(hidden)
        spent = time.perf_counter() - start
        self.held[row].extend(answer.pending)
        answer.drafted += len(guessed)
        right = 0
        try:
            for own, likeliest, guess in zip(logits, best, [*guessed, None], strict=True):
                token = answer.choose(own, likeliest)
                agreed = token == guess and answer.finish_reason is None
                if agreed:
                    self.cache.advance(row, 1)
                    self.held[row].append(token)
                    answer.pending.clear()
                    answer.accepted += 1
                    right += 1
                yield answer, token
                if not agreed or answer.finish_reason is not None or self.cancelled():
                    break
        finally:
            guide.verified(len(guessed), right, spent)

    def stats(self, index: int) -> Stats:
        return self.answers[index].stats(self.engine.plan.kernels)

    def _fill_rows(self) -> bool:
        """Give rows of finished answers to waiting ones; False when nothing is left to run."""
        self._running = [answer for answer in self._running if answer.finish_reason is None]
        busy = {answer.row for answer in self._running}
        free = [row for row in range(self.cache.rows) if row not in busy]
        for row in free:
            answer = next((own for own in self._waiting if not self._twin_in_prompt(own)), None)
            if answer is None:
                break
            self._waiting.remove(answer)
            self._share_prompt(answer.request, row)
            answer.begin(row, self._keep_prefix(answer.request, row))
            self._running.append(answer)
        return bool(self._running)

    def _twin_in_prompt(self, answer: Answer) -> bool:
        """True if another answer is still running the prompt that this one shares."""
        if not answer.request.shares_prompt:
            return False
        asked = answer.request.prompt_ids
        return any(o.in_prompt and o.request.prompt_ids == asked for o in self._running)

    def _share_prompt(self, request: Request, row: int) -> None:
        """Copy the prompt from the row of an earlier answer to the same prompt, if there is one."""
        if not request.shares_prompt:
            return
        for other in self.answers:
            ran = other.row >= 0 and other.request.prompt_ids == request.prompt_ids
            if ran and tuple(self.held[other.row][: len(request.prompt_ids)]) == request.prompt_ids:
                if other.row != row:
                    self.cache.copy_row(other.row, row)
                    self.held[row][:] = self.held[other.row]
                return
        del self.held[row][:]

    def _pieces(self) -> Iterator[tuple[Answer, list[int]]]:
        """Ids of each running answer for the next step; single tokens come first."""
        room = self.engine.plan.chunk
        for answer in sorted(self._running, key=lambda a: len(a.pending)):
            ids = answer.pending[:room]
            room -= len(ids)
            if ids:
                yield answer, ids

    def _keep_prefix(self, request: Request, row: int) -> int:
        """Cut a row to what it shares with the prompt; the last token is always run again."""
        held, shared = self.held[row], 0
        if request.keep_prefix or request.shares_prompt:
            prompt = request.prompt_ids[:-1]
            while shared < min(len(prompt), len(held)) and prompt[shared] == held[shared]:
                shared += 1
        if not self.cache.truncate(row, shared):
            shared = self.points.go_back(row, held, shared)
        del held[shared:]
        return shared


def stream_text(batch: Batch, tokenizer: Tokenizer) -> Iterator[tuple[int, Chunk]]:
    """Pieces of each answer's text as they become final, with the number of its request."""
    writers = [Writer(answer.request, tokenizer) for answer in batch.answers]
    for answer, token in batch.tokens():
        writer = writers[answer.index]
        text = writer.push(token, answer.request.ends(token, batch.end_ids))
        if writer.stopped:
            answer.finish_reason = "stop"
        if answer.finish_reason is not None:
            yield answer.index, _last_chunk(batch, answer, writer, text)
        elif text:
            yield answer.index, Chunk(text, writer.take_ids(), logprobs=answer.take_logprobs())
    for answer in batch.answers:
        if answer.finish_reason is None:
            answer.finish_reason = "cancelled"
            yield answer.index, _last_chunk(batch, answer, writers[answer.index], "")


def whole_answers(batch: Batch, tokenizer: Tokenizer) -> list[Result]:
    """The answers to all requests of a batch, in their order."""
    chunks: list[list[Chunk]] = [[] for _ in batch.answers]
    for index, chunk in stream_text(batch, tokenizer):
        chunks[index].append(chunk)
    return [collect(own) for own in chunks]


def _last_chunk(batch: Batch, answer: Answer, writer: Writer, text: str) -> Chunk:
    text += writer.finish()
    stats = batch.stats(answer.index)
    return Chunk(text, writer.take_ids(), answer.finish_reason, stats, answer.take_logprobs())
