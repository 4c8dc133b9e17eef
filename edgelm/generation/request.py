"""Requests and results: Request, Chunk, Result and their statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from edgelm.errors import ContextLengthError, UsageError
from edgelm.generation.grammar import Constraint
from edgelm.generation.option_table import require_option
from edgelm.generation.sampling import SamplingSettings


@dataclass(frozen=True)
class Request:
    """One answer to be made; the command line, Python and evaluation all build this.

    ``max_new_tokens`` None means until the context is full, or up to the ``usual_limit`` that the
    model's generation_config.json sets. ``stop_token_ids`` end an answer beside
    the model's own end tokens. ``continues`` is false for a chat's reply, a text that begins anew
    and does not go on with the prompt's. ``keep_prefix`` continues from what
    the cache still holds of an earlier prompt instead of an empty row. ``shares_prompt`` copies the
    prompt from a row that ran it for another request of the same batch. ``logprobs`` asks for
    log-probabilities: of each chosen token and of this many of the likeliest ones. ``speculate``
    ``auto`` lets tokens be guessed ahead where that is faster, which changes none.
    ``prompt_logprobs`` asks for the same of the prompt's own tokens, which then all run;
    ``pooling`` for the mean of its last hidden states. ``prompt_only`` ends once the prompt has
    run.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    continues: bool = True
    keep_prefix: bool = False
    shares_prompt: bool = False
    logprobs: int | None = None
    constraint: Constraint | None = None
    speculate: str = "auto"
    usual_limit: int | None = None
    prompt_logprobs: int | None = None
    pooling: bool = False
    prompt_only: bool = False

    @property
    def reads_prompt(self) -> bool:
        """True if something is asked for of every token of the prompt."""
        return self.pooling or self.prompt_logprobs is not None

    def ends(self, token: int, end_ids: frozenset[int]) -> bool:
        """True for a token that ends the answer, which has no text then."""
        return token in end_ids or token in self.stop_token_ids

    def limit(self, context: int, vocab_size: int) -> int:
        """Maximum number of new tokens.

        Raises:
            UsageError: an empty prompt, ids or logprobs out of range, a limit below 1, an empty
                stop string, another word than auto or off.
            ContextLengthError: prompt and answer do not fit the context.
        """
        if not self.prompt_ids:
            raise UsageError("The prompt is empty; give at least one token.")
        for token in self.prompt_ids:
            if not 0 <= token < vocab_size:
                raise UsageError(f"Token id {token} is out of range; allowed: 0-{vocab_size - 1}.")
        if self.max_new_tokens is not None:
            require_option("max_new_tokens", self.max_new_tokens)
        for count in (self.logprobs, self.prompt_logprobs):
            if count is not None and not 0 <= count <= vocab_size:
                raise UsageError(f"logprobs is {count}; allowed: 0-{vocab_size}.")
        require_option("speculate", self.speculate)
        self.sampling.check_ids(vocab_size)
        if beyond := [token for token in self.stop_token_ids if not 0 <= token < vocab_size]:
            raise UsageError(f"stop_token_ids holds {beyond[0]}; allowed: 0-{vocab_size - 1}.")
        if "" in self.stop:
            raise UsageError("A stop string is empty; leave it out to stop only at end tokens.")
        prompt, wanted = len(self.prompt_ids), self.max_new_tokens or 1
        if self.prompt_only:
            wanted = 0
        if prompt + wanted > context:
            raise ContextLengthError(
                f"The prompt has {prompt} tokens and {wanted} are to be generated; the context "
                f"holds {context}. Shorten the prompt or load with a larger context.",
                prompt + wanted,
                context,
            )
        return self.max_new_tokens or min(self.usual_limit or context, context - prompt)


@dataclass(frozen=True)
class Stats:
    """Counts, seconds and tokens per second of one answer.

    ``decode_tok_s`` counts the steps after the first token; ``kept_tokens`` of the prompt were in
    the cache already. ``accepted_tokens`` of the ``drafted_tokens`` that were guessed ahead were
    right. ``kernels`` names the kernel of every tensor class.
    """

    prompt_tokens: int
    kept_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float
    seed: int
    kernels: dict[str, str] = field(default_factory=dict)
    drafted_tokens: int = 0
    accepted_tokens: int = 0

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
class TokenLogprob:
    """Natural log-probability of a chosen token, and the likeliest tokens with theirs.

    Of the model's own distribution, before any processor (temperature, penalties, filters), as
    OpenAI and vLLM report it.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        top = [{"token_id": token, "logprob": value} for token, value in self.top]
        return {"token_id": self.token_id, "logprob": self.logprob, "top": top}


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: whole characters, the ids since the last piece.

    ``logprobs`` go with the ids where they were asked for; ``prompt_logprobs``, of each token of
    the prompt but the first, come with the first piece.

    ``finish_reason`` and ``stats`` are set in the last one: ``stop`` (end token or stop string),
    ``length`` or ``cancelled``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    stats: Stats | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Result:
    """A whole answer; ``token_ids`` include the end token that stopped it.

    ``logprobs`` has an entry for each id where they were asked for; ``score`` is a beam's:
    log-probability over length ** length_penalty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stats": self.stats.to_dict(),
        }
        if self.logprobs:
            told["logprobs"] = [entry.to_dict() for entry in self.logprobs]
        if self.score is not None:
            told["score"] = self.score
        return told


def collect(chunks: Iterable[Chunk]) -> Result:
    """Fold a stream into one result."""
    texts: list[str] = []
    ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    for chunk in chunks:
        texts.append(chunk.text)
        ids.extend(chunk.token_ids)
        logprobs.extend(chunk.logprobs)
        last = chunk
    assert last.finish_reason is not None and last.stats is not None
    return Result("".join(texts), tuple(ids), last.finish_reason, last.stats, tuple(logprobs))
