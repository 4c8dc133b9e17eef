"""Requests -> token ids -> pieces of text: the answers of one call, one or many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from edgelm.call_lock import Call
from edgelm.generation.answer import Answer, Arrival
from edgelm.generation.request import Chunk, Request, Result, Stats, collect
from edgelm.generation.scheduler import Scheduler
from edgelm.generation.writer import Writer
from edgelm.text.tokenizer import Tokenizer


class Batch:
    """Requests of one call: as many run at once as there are rows for, the others after them.

    Args:
        call: its turn. end_ids: tokens that end an answer. cancelled: asked before every token.

    Raises:
        UsageError, ContextLengthError: a request that cannot be run; none is started then.
    """

    def __init__(
        self, scheduler: Scheduler, call: Call, requests: Sequence[Request],
        end_ids: frozenset[int], cancelled: Callable[[], bool],
    ) -> None:  # fmt: skip
        session = scheduler.session
        self.end_ids, self.paused = end_ids, call.paused
        self._scheduler, self._cancelled = scheduler, cancelled
        self._kernels = session.engine.plan.kernels
        self._arrived: deque[Arrival] = deque()
        context, vocab_size = session.cache.context, session.engine.config.vocab_size
        self.answers = [
            Answer(index, request, request.limit(context, vocab_size), end_ids, call, self._arrived)
            for index, request in enumerate(requests)
        ]

    def tokens(self) -> Generator[tuple[Answer, int], None, None]:
        """Each answer's ids as they come, end tokens included."""
        self._scheduler.join(self.answers)
        while (came := self._next()) is not None:
            answer = came.answer
            if answer.finish_reason is not None:
                continue  # its reader has found a stop string meanwhile
            if came.error is not None:
                raise came.error
            answer.finish_reason = came.finish_reason
            if came.token is not None:
                answer.read += 1
                yield answer, came.token

    def _next(self) -> Arrival | None:
        return self._scheduler.next_arrival(self.answers, self._arrived, self._cancelled)

    def stats(self, index: int) -> Stats:
        return self.answers[index].stats(self._kernels)


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
            yield answer.index, _chunk(answer, writer, text)
    for answer in batch.answers:
        if answer.finish_reason is None or answer.request.prompt_only:
            answer.finish_reason = answer.finish_reason or "cancelled"
            yield answer.index, _last_chunk(batch, answer, writers[answer.index], "")


def whole_answers(batch: Batch, tokenizer: Tokenizer) -> list[Result]:
    """The answers to all requests of a batch, in their order."""
    chunks: list[list[Chunk]] = [[] for _ in batch.answers]
    for index, chunk in stream_text(batch, tokenizer):
        chunks[index].append(chunk)
    return [collect(own) for own in chunks]


def _last_chunk(batch: Batch, answer: Answer, writer: Writer, text: str) -> Chunk:
    last = _chunk(answer, writer, text + writer.finish())
    return replace(last, finish_reason=answer.finish_reason, stats=batch.stats(answer.index))


def _chunk(answer: Answer, writer: Writer, text: str) -> Chunk:
    return Chunk(
        text, writer.take_ids(), logprobs=answer.take_logprobs(),
        prompt_logprobs=answer.take_prompt_logprobs(),
    )  # fmt: skip
