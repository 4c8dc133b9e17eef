"""Request -> token ids -> text -> result: three nested generators, one loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from edgelm.cache import KVCache
from edgelm.engine import Engine, RowTokens
from edgelm.errors import ContextLengthError, UsageError
from edgelm.sampling import Sampler, SamplingSettings
from edgelm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """One answer to be made; the command line, Python and evaluation all build this.

    ``max_new_tokens`` None means until the context is full. ``keep_prefix`` continues from what
    the cache still holds of an earlier prompt instead of starting anew.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    keep_prefix: bool = False

    def limit(self, context: int, vocab_size: int) -> int:
        """How many tokens may be generated.

        Raises:
            UsageError: an empty prompt, ids out of range, a limit below 1, an empty stop string.
            ContextLengthError: prompt and answer do not fit the context.
        """
        if not self.prompt_ids:
            raise UsageError("The prompt is empty; give at least one token.")
        for token in self.prompt_ids:
            if not 0 <= token < vocab_size:
                raise UsageError(f"Token id {token} is out of range; allowed: 0-{vocab_size - 1}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if "" in self.stop:
            raise UsageError("A stop string is empty; leave it out to stop only at end tokens.")
        prompt, wanted = len(self.prompt_ids), self.max_new_tokens or 1
        if prompt + wanted > context:
            raise ContextLengthError(
                f"The prompt has {prompt} tokens and {wanted} are to be generated; the context "
                f"holds {context}. Shorten the prompt or load with a larger context.",
                prompt + wanted,
                context,
            )
        return self.max_new_tokens or context - prompt


@dataclass(frozen=True)
class Stats:
    """Counts, seconds and tokens per second of one answer.

    ``decode_tok_s`` counts the steps after the first token; ``kept_tokens`` of the prompt were in
    the cache already. ``kernels`` names the kernel of every tensor class.
    """

    prompt_tokens: int
    kept_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    seed: int
    kernels: dict[str, str] = field(default_factory=dict)

    @property
    def prefill_tok_s(self) -> float:
        return (self.prompt_tokens - self.kept_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        return (self.new_tokens - 1) / self.decode_s if self.decode_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        rates = {"prefill_tok_s": self.prefill_tok_s, "decode_tok_s": self.decode_tok_s}
        return asdict(self) | rates


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: whole characters, the ids since the last piece.

    ``finish_reason`` and ``stats`` are set in the last one: ``stop`` (end token or stop string),
    ``length`` or ``cancelled``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Result:
    """A whole answer; ``token_ids`` include the end token that stopped it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: Stats

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_dict(),
        }


class Generation:
    """One request on row 0 of a cache.

    Args:
        held: the ids that the cache's row holds, kept up to date token by token.
        cancelled: asked before every step.
    """

    def __init__(
        self, engine: Engine, cache: KVCache, held: list[int], request: Request,
        end_ids: frozenset[int], cancelled: Callable[[], bool], kernels: dict[str, str],
    ) -> None:  # fmt: skip
        self.engine, self.cache, self.held = engine, cache, held
        self.request, self.end_ids, self.cancelled = request, end_ids, cancelled
        self.limit = request.limit(cache.context, engine.config.vocab_size)
        self.finish_reason = "cancelled"
        self._kernels = kernels
        self._new_tokens = 0
        self._start = self._prefilled = self._last = time.perf_counter()
        self._kept = self._keep_prefix()

    def tokens(self) -> Generator[int, None, None]:
        """The generated ids, the end token included: the one generation loop."""
        sample = Sampler(self.request.sampling)
        pending = list(self.request.prompt_ids[self._kept :])
        while pending:
            if self.cancelled():
                return
            piece, pending = pending[: self.engine.plan.chunk], pending[self.engine.plan.chunk :]
            hidden = self._run(piece)
            if pending:
                continue
            token = sample(self.engine.logits(hidden[-1:])[0], self._new_tokens)
            self._count()
            yield token
            if token in self.end_ids:
                self.finish_reason = "stop"
            elif self._new_tokens == self.limit:
                self.finish_reason = "length"
            else:
                pending = [token]

    def stats(self) -> Stats:
        """Of what has been generated so far."""
        return Stats(
            prompt_tokens=len(self.request.prompt_ids),
            kept_tokens=self._kept,
            new_tokens=self._new_tokens,
            prefill_s=self._prefilled - self._start,
            decode_s=self._last - self._prefilled,
            seed=self.request.sampling.seed,
            kernels=self._kernels,
        )

    def _run(self, ids: list[int]) -> torch.Tensor:
        hidden = self.engine.run(self.cache, [RowTokens(0, torch.tensor(ids))])
        self.held.extend(ids)
        return hidden

    def _count(self) -> None:
        self._last = time.perf_counter()
        if self._new_tokens == 0:
            self._prefilled = self._last
        self._new_tokens += 1

    def _keep_prefix(self) -> int:
        """Cut the row to what it shares with the prompt; the last token is always run again."""
        shared = 0
        if self.request.keep_prefix:
            prompt = self.request.prompt_ids[:-1]
            while shared < min(len(prompt), len(self.held)) and (
                prompt[shared] == self.held[shared]
            ):
                shared += 1
        if not self.cache.truncate(0, shared):
            shared = 0
            self.cache.truncate(0, 0)
        del self.held[shared:]
        return shared


def stream_text(generation: Generation, tokenizer: Tokenizer) -> Iterator[Chunk]:
    """Pieces of text as they become final: whole characters, nothing of a stop string."""
    # A completion continues the prompt's text; a chat reply begins a text of its own.
    decoder = tokenizer.stream(continues=not generation.request.keep_prefix)
    stops = StopStrings(generation.request.stop)
    waiting: list[int] = []
    tokens = generation.tokens()
    for token in tokens:
        waiting.append(token)
        text = "" if token in generation.end_ids else stops.push(decoder.push(token))
        if stops.found:
            generation.finish_reason = "stop"
            tokens.close()
            break
        if text:
            yield Chunk(text, tuple(waiting))
            waiting.clear()
    text = "" if stops.found else stops.push(decoder.finish())
    text += stops.finish()
    yield Chunk(text, tuple(waiting), generation.finish_reason, generation.stats())


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


def collect(chunks: Iterator[Chunk]) -> Result:
    """Fold a stream into one result."""
    texts: list[str] = []
    ids: list[int] = []
    for chunk in chunks:
        texts.append(chunk.text)
        ids.extend(chunk.token_ids)
        last = chunk
    assert last.finish_reason is not None and last.stats is not None
    return Result("".join(texts), tuple(ids), last.finish_reason, last.stats)
