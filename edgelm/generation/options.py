"""From what a caller says about an answer to a Request: the model's defaults, checked values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgelm.errors import UsageError
from edgelm.generation.grammar import Constraint
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings

if TYPE_CHECKING:
    from edgelm.model import LanguageModel

_PER_PROMPT = ("max_new_tokens", "seed", "temperature", "schema", "grammar")
_FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def build_request(
    lm: LanguageModel, prompt: str | Sequence[int], *, max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (), keep_prefix: bool = False, logprobs: int | None = None,
    schema: Any = None, grammar: str | None = None, temperature: float | None = None,
    top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
    typical_p: float | None = None, repetition_penalty: float | None = None,
    presence_penalty: float | None = None, frequency_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None, banned_tokens: Sequence[int] | None = None,
    seed: int | None = None, speculate: str = "auto",
) -> Request:  # fmt: skip
    """A Request with the model's own sampling defaults where nothing is given.

    A sampled answer without a seed draws one, which the statistics report. Sampling options are
    those of ``SamplingSettings``. ``schema`` is a JSON schema (a mapping or its text), ``grammar``
    a Lark grammar as llguidance reads it; the answer follows it. ``speculate`` is auto or off: see
    ``speculation``.

    Raises:
        UsageError: an empty prompt, a value out of its range, a schema that is none.
    """
    if isinstance(prompt, str) and not prompt:
        raise UsageError("The prompt is empty; give some text.")
    ids = lm.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": _pairs(logit_bias),
        "banned_tokens": None if banned_tokens is None else tuple(map(int, banned_tokens)),
        "seed": seed,
    }
    chosen = lm.sampling_defaults() | {k: v for k, v in given.items() if v is not None}
    constraint = None
    if schema is not None or grammar is not None:
        constraint = Constraint.parse(schema, grammar, lm.tokenizer, lm.end_ids)
    return Request(
        prompt_ids=tuple(ids),
        max_new_tokens=max_new_tokens,
        sampling=SamplingSettings(**chosen),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        keep_prefix=keep_prefix,
        logprobs=logprobs,
        constraint=constraint,
        speculate=speculate,
    )


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config asks for, greedy when it does not ask for sampling."""
    told = {k: v for k, v in generation_config.items() if v is not None}
    chosen: dict[str, Any] = {"seed": int.from_bytes(os.urandom(4), "little")}
    if "repetition_penalty" in told:
        chosen["repetition_penalty"] = told["repetition_penalty"]
    if "suppress_tokens" in told:
        chosen["banned_tokens"] = tuple(told["suppress_tokens"])
    if told.get("do_sample"):
        chosen |= {"temperature": 1.0} | {k: told[k] for k in _FILTERS if k in told}
    return chosen


def samples(request: Request, count: int) -> list[Request]:
    """``count`` requests for one prompt, which runs once; number i has the seed plus i."""
    if count < 1:
        raise UsageError(f"n is {count}; ask for at least 1 answer.")
    if count == 1:
        return [request]
    seeds = [(request.sampling.seed + index) % (1 << 64) for index in range(count)]
    return [
        replace(request, sampling=replace(request.sampling, seed=seed), shares_prompt=True)
        for seed in seeds
    ]


def options_of(options: dict[str, Any], index: int, count: int) -> dict[str, Any]:
    """One prompt's share of the options: its own entry where a list was given."""
    chosen = dict(options)
    for name in _PER_PROMPT:
        value = options.get(name)
        if isinstance(value, list | tuple):
            if len(value) != count:
                raise UsageError(f"{name} has {len(value)} entries for {count} prompts.")
            chosen[name] = value[index]
    return chosen


def _pairs(bias: Mapping[int, float] | None) -> tuple[tuple[int, float], ...] | None:
    return None if bias is None else tuple((int(k), float(v)) for k, v in sorted(bias.items()))
