"""Requests -> token ids -> pieces of text: one loop for one answer or many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor

from edgelm.cache import KVCache
from edgelm.engine import Engine, RowTokens
from edgelm.processors import SoFar
from edgelm.request import Chunk, Request, Result, Stats, TokenLogprob, collect
from edgelm.sampling import Sampler
from edgelm.tokenizer import Tokenizer


class Answer:
    """One request while it is being answered: what its row still has to run, what it has said.

    Args:
        limit: how many tokens may be generated.
    """

    def __init__(self, index: int, request: Request, limit: int) -> None:
        self.index, self.request, self.limit = index, request, limit
        self.ids = SoFar(request.prompt_ids)
        self.match = request.constraint.start() if request.constraint else None
        self.sample = Sampler(request.sampling, self.match)
        self.logprobs: list[TokenLogprob] = []
        self.pending: list[int] = []
        self.finish_reason: str | None = None
        self.row = -1
        self.kept_tokens = 0
        self._start = self._first = self._last = 0.0

    def begin(self, row: int, kept_tokens: int) -> None:
        """Start on a row that holds the first ``kept_tokens`` of the prompt already."""
        self.row, self.kept_tokens = row, kept_tokens
        self.pending = list(self.request.prompt_ids[kept_tokens:])
        self._start = self._first = self._last = time.perf_counter()

    @property
    def new_tokens(self) -> int:
        return len(self.ids.new)

    @property
    def in_prompt(self) -> bool:
        """Whether its row still has to run a part of the prompt."""
        return self.row >= 0 and not self.ids.new and self.finish_reason is None

    def choose(self, logits: Tensor, end_ids: frozenset[int]) -> int:
        """The next token from ``logits`` [V], which are changed in place."""
        count = self.request.logprobs
        own = None if count is None else logits.double().log_softmax(0)
        token = self.sample(logits, self.ids)
        if own is not None and count is not None:
            self.logprobs.append(_logprob(own, token, count))
        self._last = time.perf_counter()
        if self.new_tokens == 0:
            self._first = self._last
        self.ids.new.append(token)
        complete = self.match is not None and self.match.accept(token)
        if token in end_ids or complete:
            self.finish_reason = "stop"
        elif self.new_tokens == self.limit:
            self.finish_reason = "length"
        else:
            self.pending = [token]
        return token

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those since the last call, one for each id; none where nobody asked."""
        taken, self.logprobs = tuple(self.logprobs), []
        return taken

    def stats(self, kernels: dict[str, str]) -> Stats:
        """Of what has been generated so far."""
        return Stats(
            prompt_tokens=len(self.request.prompt_ids),
            kept_tokens=self.kept_tokens,
            new_tokens=self.new_tokens,
            prefill_s=self._first - self._start,
            decode_s=self._last - self._first,
            seed=self.request.sampling.seed,
            kernels=kernels,
        )


def _logprob(own: Tensor, token: int, count: int) -> TokenLogprob:
    top = own.topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprob(token, float(own[token]), tuple(pairs))


class Batch:
    """Requests on the rows of a cache: as many at once as there are rows, the others after them.

    Args:
        held: the ids that each row of the cache holds, kept up to date token by token.
        end_ids: tokens that end an answer. cancelled: asked before every step.
        kernels: for the statistics.

    Raises:
        UsageError, ContextLengthError: a request that cannot be run; none is started then.
    """

    def __init__(
        self, engine: Engine, cache: KVCache, held: list[list[int]], requests: Sequence[Request],
        end_ids: frozenset[int], cancelled: Callable[[], bool], kernels: dict[str, str],
    ) -> None:  # fmt: skip
        self.engine, self.cache, self.held = engine, cache, held
        self.end_ids, self.cancelled, self._kernels = end_ids, cancelled, kernels
        self.answers = [
            Answer(index, request, request.limit(cache.context, engine.config.vocab_size))
            for index, request in enumerate(requests)
        ]
        self._waiting = list(self.answers)
        self._running: list[Answer] = []

    def tokens(self) -> Generator[tuple[Answer, int], None, None]:
        """Each answer's ids as they come, end tokens included: the one generation loop."""
        while self._fill_rows() and not self.cancelled():
            pieces = list(self._pieces())
            hidden = self.engine.run(
                self.cache, [RowTokens(answer.row, torch.tensor(ids)) for answer, ids in pieces]
            )
            ready, at = [], -1
            for answer, ids in pieces:
                self.held[answer.row].extend(ids)
                del answer.pending[: len(ids)]
                at += len(ids)
                if not answer.pending:
                    ready.append((answer, at))
            if not ready:
                continue
            logits = self.engine.logits(hidden[[last for _, last in ready]])
            for (answer, _), own in zip(ready, logits, strict=True):
                yield answer, answer.choose(own, self.end_ids)

    def stats(self, index: int) -> Stats:
        return self.answers[index].stats(self._kernels)

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
        """Whether another answer is about to have run the prompt that this one shares."""
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
        """What each running answer contributes to the next step; single tokens come first."""
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
            shared = 0
            self.cache.truncate(row, 0)
        del held[shared:]
        return shared


def stream_text(batch: Batch, tokenizer: Tokenizer) -> Iterator[tuple[int, Chunk]]:
    """Pieces of each answer's text as they become final, with the number of its request."""
    writers = [Writer(answer.request, tokenizer) for answer in batch.answers]
    for answer, token in batch.tokens():
        writer = writers[answer.index]
        text = writer.push(token, token in batch.end_ids)
        if writer.stops.found:
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


class Writer:
    """Turns one answer's ids into text: whole characters, nothing of a stop string."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        # A completion continues the prompt's text; a chat reply begins a text of its own.
        self.decoder = tokenizer.stream(continues=not request.keep_prefix)
        self.stops = StopStrings(request.stop)
        self._ids: list[int] = []

    def push(self, token: int, ends: bool) -> str:
        """The text that is certain after a token; an end token has none."""
        self._ids.append(token)
        return "" if ends else self.stops.push(self.decoder.push(token))

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        text = "" if self.stops.found else self.stops.push(self.decoder.finish())
        return text + self.stops.finish()

    def take_ids(self) -> tuple[int, ...]:
        """The ids since the last call."""
        ids, self._ids = tuple(self._ids), []
        return ids


class StopStrings:
    """Holds text back while it could still become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain now; everything before a stop string once one is found."""
        self._held += text
        positions = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if positions:
            self.found = True
            self._held = self._held[: min(positions)]
            return ""
        keep = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain

    def finish(self) -> str:
        """What was held back, once nothing more comes."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
