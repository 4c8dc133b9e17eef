"""Answer: the state of one request during generation."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from edgelm.call_lock import Call
from edgelm.errors import EdgeLMError
from edgelm.generation.processors import SoFar
from edgelm.generation.request import Request, Stats, TokenLogprob
from edgelm.generation.sampling import Sampler

if TYPE_CHECKING:
    from edgelm.engine.engine import Engine


class Arrival(NamedTuple):
    """What a step has brought for an answer: an id, its end or both; or what failed it alone."""

    answer: Answer
    token: int | None
    finish_reason: str | None = None
    error: EdgeLMError | None = None


class Answer:
    """State of one request during generation: the prompt left to run, the tokens generated.

    Steps may be ahead of its reader: what concerns ``read``, ``finish_reason`` and statistics is
    as the reader knows it.

    Args:
        limit: maximum number of tokens to generate.
        end_ids: tokens that end the answer.
        call, arrived: that asked, and where it finds the tokens.
    """

    def __init__(
        self, index: int, request: Request, limit: int, end_ids: frozenset[int], call: Call,
        arrived: deque[Arrival],
    ) -> None:  # fmt: skip
        self.index, self.request, self.limit = index, request, limit
        self.call, self._arrived = call, arrived
        self.ids = SoFar(request.prompt_ids, ends=end_ids, limit=limit)
        self.match = request.constraint.start() if request.constraint else None
        self.sample = Sampler(request.sampling, self.match)
        self.pending: list[int] = []
        self.finish_reason: str | None = None
        self.row = -1
        self.read = self.kept_tokens = 0
        self.drafted = self.accepted = 0
        self._ended = False
        self._logprobs: list[TokenLogprob] = []
        self._told = 0  # of the log-probabilities
        self._prompt_logprobs: list[TokenLogprob] = []
        self._pooled: Tensor | None = None
        self._start = self._first = self._last = 0.0

    def begin(self, kept_tokens: int) -> None:
        """Start on its row, which holds the first ``kept_tokens`` of the prompt already."""
        self.kept_tokens = kept_tokens
        self.pending = list(self.request.prompt_ids[kept_tokens:])
        self._start = self._first = self._last = time.perf_counter()

    def run_again(self) -> None:
        """Its row holds nothing any more: run all that it held."""
        self.pending = [*self.request.prompt_ids, *self.ids.new]
        self._pooled = None
        self._prompt_logprobs.clear()

    @property
    def new_tokens(self) -> int:
        """How many tokens its reader has."""
        return self.read

    @property
    def ahead(self) -> int:
        """How many tokens its reader has not taken."""
        return len(self.ids.new) - self.read

    @property
    def runs(self) -> bool:
        """False once it has its last token, or its reader wants no more."""
        return not self._ended and self.finish_reason is None

    @property
    def in_prompt(self) -> bool:
        """True if a part of the prompt has not been run yet."""
        return self.row >= 0 and not self.ids.new and self.runs

    def is_twin_of(self, other: Answer) -> bool:
        """True if it takes its prompt from the row of another answer of its call."""
        alike = self.call is other.call and self.request.prompt_ids == other.request.prompt_ids
        return alike and self.request.shares_prompt

    def choose(self, logits: Tensor, best: int) -> int:
        """Choose the next token from ``logits`` [V], which are changed in place.

        Args:
            best: the id of the largest logit.
        """
        count = self.request.logprobs
        own = None if count is None else logits.double().log_softmax(0)
        token = self.sample(logits, best, self.ids)
        if own is not None and count is not None:
            self._logprobs.append(_logprob(own, token, count))
        self._last = time.perf_counter()
        if not self.ids.new:
            self._first = self._last
        self.ids.new.append(token)
        complete = self.match is not None and self.match.accept(token)
        if self.request.ends(token, self.ids.ends) or complete:
            self._arrive(token, "stop")
        elif len(self.ids.new) == self.limit:
            self._arrive(token, "length")
        else:
            self.pending = [token]
            self._arrive(token)
        return token

    def end(self, reason: str) -> None:
        """It has no more tokens."""
        self._first = self._last = time.perf_counter()
        self._arrive(None, reason)

    def fail(self, error: EdgeLMError) -> None:
        """It cannot go on; others can."""
        self._arrive(None, None, error)

    def _arrive(
        self, token: int | None, reason: str | None = None, error: EdgeLMError | None = None
    ) -> None:
        self._ended = reason is not None or error is not None
        self._arrived.append(Arrival(self, token, reason, error))

    def read_prompt(self, engine: Engine, states: Tensor, position: int) -> None:
        """Keep what the request asks for of the prompt's tokens.

        Args:
            states: hidden states [T, N] of its tokens from ``position`` on.
        """
        prompt, count = self.request.prompt_ids, self.request.prompt_logprobs
        states = states[: max(0, len(prompt) - position)]
        if self.request.pooling:
            summed = states.float().sum(0)
            self._pooled = summed if self._pooled is None else self._pooled + summed
        if count is not None:
            following = prompt[position + 1 : position + 1 + len(states)]
            for state, token in zip(states, following, strict=False):
                own = engine.logits(state[None])[0].double().log_softmax(0)
                self._prompt_logprobs.append(_logprob(own, token, count))

    @property
    def embedding(self) -> Tensor:
        """The mean of the prompt's last hidden states, of length 1: [N] float32."""
        assert self._pooled is not None
        return torch.nn.functional.normalize(self._pooled, dim=0)

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities since the last call, one per id; empty if not requested."""
        taken, self._told = tuple(self._logprobs[self._told : self.read]), self.read
        return taken

    def take_prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of each token of the prompt but the first, once; empty if not requested."""
        taken, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return taken

    def stats(self, kernels: dict[str, str]) -> Stats:
        """Statistics of the tokens generated so far."""
        return Stats(
            prompt_tokens=len(self.request.prompt_ids),
            kept_tokens=self.kept_tokens,
            new_tokens=self.new_tokens,
            prefill_s=self._first - self._start,
            decode_s=self._last - self._first,
            seed=self.request.sampling.seed,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            kernels=kernels,
        )


def _logprob(own: Tensor, token: int, count: int) -> TokenLogprob:
    top = own.topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprob(token, float(own[token]), tuple(pairs))
