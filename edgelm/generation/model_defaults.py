"""What a model's generation_config.json says of its answers: each key is applied or named.

Keys and meanings are those of transformers (generation/configuration_utils.py). Keys that are not
applied are named in one warning per load, unless they say what transformers does without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError, UsageError
from edgelm.generation.generation_keys import applied
from edgelm.generation.processors import NEVER
from edgelm.generation.sampling import ModelRules, SamplingSettings


@dataclass(frozen=True)
class ModelDefaults:
    """What holds for an answer where the caller says nothing.

    Args:
        sampling: fields of ``SamplingSettings``. stop: strings.
        max_new_tokens, max_length: limits, without and with the prompt; the first one counts.
        min_new_tokens, min_length: the same for the shortest answer.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    rules: ModelRules = field(default_factory=ModelRules)
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0

    def most(self, prompt: int) -> int | None:
        """Maximum number of new tokens after a prompt of ``prompt`` tokens, None for no limit.

        Raises:
            UsageError: the prompt has as many as prompt and answer may have.
        """
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        if prompt >= self.max_length:
            raise UsageError(
                f"The prompt has {prompt} tokens; the model's generation_config.json limits prompt "
                f"and answer to {self.max_length} (max_length). Give max_new_tokens, or a shorter "
                "prompt."
            )
        return self.max_length - prompt

    def least(self, prompt: int) -> int:
        """Minimum number of new tokens after a prompt of ``prompt`` tokens."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(0, self.min_length - prompt)


def model_defaults(told: Mapping[str, Any], path: Path, vocab_size: int) -> ModelDefaults:
    """The defaults that a file sets; warns of what is not applied.

    Args:
        told: the object in the file ``path``.

    Raises:
        ModelFileError: a value of the wrong type or range.
    """
    read = applied(told, path)
    for name in ("forced_bos_token_id", "forced_eos_token_id", "sequence_bias"):
        _require_ids(read.get(name, ()), f"{path}: {name}", vocab_size)
    sampling = {
        field.name: read[field.name] for field in fields(SamplingSettings) if field.name in read
    }
    sampling["temperature"] = read.get("temperature", 1.0) if read.get("do_sample") else 0.0
    # An id that the model cannot choose needs no ban.
    banned = (i for i in read.get("suppress_tokens", ()) if i < vocab_size)
    return ModelDefaults(
        sampling=sampling | {"banned_tokens": tuple(banned)},
        rules=_rules(read, told.get("eos_token_id"), vocab_size),
        stop=read.get("stop_strings", ()),
        max_new_tokens=read.get("max_new_tokens"),
        max_length=read.get("max_length"),
        min_new_tokens=read.get("min_new_tokens"),
        min_length=read.get("min_length", 0),
    )


def _rules(read: Mapping[str, Any], ends: Any, vocab_size: int) -> ModelRules:
    # As in transformers the file's end tokens alone are no bad words.
    spared = [(own,) for own in (ends if isinstance(ends, list) else [ends])]
    bad = (
        (own, NEVER)
        for own in read.get("bad_words_ids", ())
        if own not in spared and max(own) < vocab_size
    )
    return ModelRules(
        sequence_bias=(*read.get("sequence_bias", ()), *bad),
        first=read.get("forced_bos_token_id", ()),
        last=read.get("forced_eos_token_id", ()),
        not_first=tuple(i for i in read.get("begin_suppress_tokens", ()) if i < vocab_size),
        sooner_end=read.get("exponential_decay_length_penalty"),
        epsilon=read.get("epsilon_cutoff", 0.0),
        eta=read.get("eta_cutoff", 0.0),
    )


def _require_ids(value: Any, key: str, vocab_size: int) -> None:
    for own in value:
        largest = own if isinstance(own, int) else max(own[0])
        if largest >= vocab_size:
            raise ModelFileError(
                f"{key} names token id {largest}; allowed: 0-{vocab_size - 1}. Correct the key in "
                "this file, or delete it."
            )
