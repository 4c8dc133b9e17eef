"""From what a caller says about an answer to a Request: the model's defaults, checked values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from edgelm.errors import UsageError
from edgelm.generation.grammar import Constraint
from edgelm.generation.model_defaults import ModelDefaults
from edgelm.generation.option_table import GenerateOptions, require_option
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
from edgelm.option import options_in


def build_request(
    prompt_ids: Sequence[int], options: Mapping[str, Any], defaults: ModelDefaults,
    constraint: Callable[[Any, str | None], Constraint],
) -> Request:  # fmt: skip
    """A Request of options that are those of ``AnswerOptions``.

    Args:
        defaults: the model's own. A sampled answer without a seed draws one, which the statistics
            report.
        constraint: compiles a schema or a grammar, if one is asked for.

    Raises:
        UsageError: a value out of its range, a schema that is none, a prompt that is longer than
            the model's own limit.
    """
    prompt = tuple(prompt_ids)
    asked = {name: value for name, value in options.items() if value is not None}
    own = {name: asked.pop(name) for name in _SAMPLING if name in asked}
    given = {name: require_option(name, value) for name, value in asked.items()}
    schema, grammar = given.pop("schema", None), given.pop("grammar", None)
    sampling = defaults.sampling | {
        "seed": int.from_bytes(os.urandom(4), "little"),
        "min_new_tokens": defaults.least(len(prompt)),
    }
    return Request(
        prompt_ids=prompt,
        usual_limit=None if "max_new_tokens" in given else defaults.most(len(prompt)),
        sampling=SamplingSettings(**(sampling | own), rules=defaults.rules),
        stop=given.pop("stop", defaults.stop),
        constraint=None if schema is grammar is None else constraint(schema, grammar),
        **given,
    )


def samples(request: Request, count: int) -> list[Request]:
    """``count`` requests for one prompt, which runs once; number i has the seed plus i."""
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


_SAMPLING = tuple(field.name for field in fields(SamplingSettings) if field.name != "rules")
