"""From what a caller says about an answer to a Request: the model's defaults, checked values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from edgelm.errors import UsageError
from edgelm.generation.grammar import Constraint
from edgelm.generation.option_table import GenerateOptions, require_option
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
from edgelm.option import options_in

_FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def build_request(
    prompt_ids: Sequence[int], options: Mapping[str, Any], defaults: Mapping[str, Any],
    constraint: Callable[[Any, str | None], Constraint],
) -> Request:  # fmt: skip
    """A Request of options that are those of ``AnswerOptions``.

    Args:
        defaults: the model's own for sampling. A sampled answer without a seed draws one, which the
            statistics report.
        constraint: compiles a schema or a grammar, if one is asked for.

    Raises:
        UsageError: a value out of its range, a schema that is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    schema, grammar = given.pop("schema", None), given.pop("grammar", None)
    stop, stop_ids = given.pop("stop", ()), given.pop("stop_token_ids", ())
    require_option("stop_token_ids", stop_ids)
    sampling = {
        name: _FORMS.get(name, _same)(given.pop(name)) for name in _SAMPLING if name in given
    }
    return Request(
        prompt_ids=tuple(int(i) for i in prompt_ids),
        sampling=SamplingSettings(**{**defaults, **sampling}),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(stop_ids),
        constraint=None if schema is grammar is None else constraint(schema, grammar),
        **given,
    )


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling options of a generation_config; greedy if it does not ask for sampling."""
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
    for name, value in options.items():
        if isinstance(value, list | tuple) and options_in(GenerateOptions)[name].per_prompt:
            if len(value) != count:
                raise UsageError(f"{name} has {len(value)} entries for {count} prompts.")
            chosen[name] = value[index]
    return chosen


def _pairs(bias: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(k), float(v)) for k, v in sorted(bias.items()))


def _ids(banned: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(int, banned))


def _same(value: Any) -> Any:
    return value


_SAMPLING = tuple(field.name for field in fields(SamplingSettings))
_FORMS: dict[str, Callable[[Any], Any]] = {"logit_bias": _pairs, "banned_tokens": _ids}
