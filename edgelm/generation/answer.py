"""Answer: the state of one request during generation."""

from __future__ import annotations

import time

from torch import Tensor

from edgelm.generation.processors import SoFar
from edgelm.generation.request import Request, Stats, TokenLogprob
from edgelm.generation.sampling import Sampler


class Answer:
    """State of one request during generation: the prompt left to run, the tokens generated.

    Args:
        limit: maximum number of tokens to generate.
        end_ids: tokens that end the answer.
    """

    def __init__(self, index: int, request: Request, limit: int, end_ids: frozenset[int]) -> None:
        self.index, self.request, self.limit = index, request, limit
        self.ids = SoFar(request.prompt_ids, ends=end_ids, limit=limit)
        self.match = request.constraint.start() if request.constraint else None
        self.sample = Sampler(request.sampling, self.match)
        self.logprobs: list[TokenLogprob] = []
        self.pending: list[int] = []
        self.finish_reason: str | None = None
        self.row = -1
        self.kept_tokens = 0
        self.drafted = self.accepted = 0
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
        """True if a part of the prompt has not been run yet."""
        return self.row >= 0 and not self.ids.new and self.finish_reason is None

    def choose(self, logits: Tensor, best: int) -> int:
        """Choose the next token from ``logits`` [V], which are changed in place.

        Args:
            best: the id of the largest logit.
        """
        count = self.request.logprobs
        own = None if count is None else logits.double().log_softmax(0)
        token = self.sample(logits, best, self.ids)
        if own is not None and count is not None:
            self.logprobs.append(_logprob(own, token, count))
        self._last = time.perf_counter()
        if self.new_tokens == 0:
            self._first = self._last
        self.ids.new.append(token)
        complete = self.match is not None and self.match.accept(token)
        if self.request.ends(token, self.ids.ends) or complete:
            self.finish_reason = "stop"
        elif self.new_tokens == self.limit:
            self.finish_reason = "length"
        else:
            self.pending = [token]
        return token

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Log-probabilities since the last call, one per id; empty if not requested."""
        taken, self.logprobs = tuple(self.logprobs), []
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
