"""The keys of a generation_config.json: which are applied, which mean nothing here, and the rest.

Keys, meanings and defaults are those of transformers (generation/configuration_utils.py). Values
are untrusted: one of the wrong type or range is an error with its key. Spellings that leave no
doubt are taken: "0.7" for a number, 50.0 for a count, one id for a list of one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError, UsageError
from edgelm.generation.option_table import GenerateOptions
from edgelm.option import Option, options_in

logger = logging.getLogger("edgelm")
_MOST = 1 << 31  # no count or id is as large
_NAMED = 40  # keys in a warning; transformers has 19 that are not applied
_LARGEST = 1e20  # of a bias: over a small temperature it stays within float32


@dataclass(frozen=True)
class Key:
    """How a key's value is read.

    Args:
        read: gives the value, or an error for one of the wrong type.
        kind: the type in words.
        option: the range, of the option that it sets or of its own.
    """

    read: Callable[[Any], Any]
    kind: str
    option: Option

    def value(self, name: str, given: Any, path: Path) -> Any:
        """The value. Raises ModelFileError for what is not allowed."""
        try:
            value = self.read(given)
            self.option.require(name, value)
        except (TypeError, ValueError, OverflowError, UsageError):
            allowed = ", ".join(part for part in (self.kind, self.option.allowed) if part)
            raise ModelFileError(
                f"{path}: {name} is {given!r:.80}; allowed: {allowed}. Correct the key in this "
                "file, or delete it."
            ) from None
        return value


def applied(told: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The values of the keys that are applied; one warning names those that are not.

    Args:
        told: the object in generation_config.json; or in config.json, where a model's own keys
            are passed over.

    Raises:
        ModelFileError: a value of the wrong type or range.
    """
    given = {name: value for name, value in told.items() if value is not None}
    if path.name == "config.json":
        given = {name: value for name, value in given.items() if name in APPLIED or name in OFF}
    others = [
        f"{name!r:.60}: {value!r:.60}{_ADVICE.get(name, '')}"
        for name, value in given.items()
        if name not in APPLIED and name not in NO_MEANING and value != OFF.get(name)
    ]
    if others:
        logger.warning(
            "%s has settings that are not applied here: {%s}. Answers are made without them.",
            path,
            ", ".join(others[:_NAMED]) + (", ..." if len(others) > _NAMED else ""),
        )
    return {
        name: key.value(name, given[name], path) for name, key in APPLIED.items() if name in given
    }


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise TypeError
    value = float(given)
    if not math.isfinite(value):
        raise ValueError
    return value


def _count(given: Any) -> int:
    value = _number(given)
    if value != math.floor(value) or not 0 <= value < _MOST:
        raise ValueError
    return int(value)


def _flag(given: Any) -> bool:
    word = str(given).lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError
    return word in ("true", "1")


def _ids(given: Any) -> tuple[int, ...]:
    return tuple(_count(own) for own in (given if isinstance(given, list) else [given]))


def _sequence(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise TypeError
    return _ids(given)


def _sequences(given: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(given, list):
        raise TypeError
    return tuple(map(_sequence, given))


def _texts(given: Any) -> tuple[str, ...]:
    found = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) and text for text in found):
        raise TypeError
    return tuple(found)


def _biases(given: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    if not isinstance(given, list):
        raise TypeError
    # Of two with the same ids the last one counts, as in transformers.
    found = {_sequence(own): _number(bias) for own, bias in given}
    if any(abs(bias) > _LARGEST for bias in found.values()):
        raise ValueError
    return tuple(found.items())


def _decay(given: Any) -> tuple[int, float]:
    if not isinstance(given, list):
        raise TypeError
    start, factor = given
    return _count(start), _number(factor)


def _of(option: str, read: Callable[[Any], Any] = _number, kind: str = "a number") -> Key:
    """A key with the range of one of the options of ``generate``."""
    return Key(read, kind, options_in(GenerateOptions)[option])


_COUNT = (_count, "a whole number")
_IDS = (_ids, "a list of token ids")
_SHARE = Option("", "0 (off) up to 1", lambda share: 0 <= share <= 1)
_ANY = Option("")

APPLIED: dict[str, Key] = {
    "do_sample": Key(_flag, "true or false", _ANY),
    "temperature": _of("temperature"),
    "top_k": _of("top_k", *_COUNT),
    "top_p": _of("top_p"),
    "min_p": _of("min_p"),
    "typical_p": _of("typical_p"),
    "epsilon_cutoff": Key(_number, "a number", _SHARE),
    "eta_cutoff": Key(_number, "a number", _SHARE),
    "repetition_penalty": _of("repetition_penalty"),
    "no_repeat_ngram_size": _of("no_repeat_ngram_size", *_COUNT),
    "max_new_tokens": _of("max_new_tokens", *_COUNT),
    "min_new_tokens": _of("min_new_tokens", *_COUNT),
    "max_length": Key(*_COUNT, Option("", "1 or more", lambda length: length >= 1)),
    "min_length": Key(*_COUNT, Option("", "0 (off) or above")),
    "stop_strings": Key(_texts, "a text or a list of texts, none of them empty", _ANY),
    "suppress_tokens": Key(*_IDS, _ANY),
    "begin_suppress_tokens": Key(*_IDS, _ANY),
    "bad_words_ids": Key(_sequences, "a list of lists of token ids, none of them empty", _ANY),
    "sequence_bias": Key(
        _biases, f"a list of pairs [list of token ids, number], -{_LARGEST:g} to {_LARGEST:g}", _ANY
    ),
    "forced_bos_token_id": Key(_ids, "a token id", _ANY),
    "forced_eos_token_id": Key(*_IDS, _ANY),
    "exponential_decay_length_penalty": Key(
        _decay, "a pair [number of tokens, factor]",
        Option("", "a factor above 0 and up to 1e6", lambda pair: 0 < pair[1] <= 1e6),
    ),
}  # fmt: skip

# About speed, memory, other outputs or models with an encoder; or read with the tokenizer.
NO_MEANING = frozenset({
    "transformers_version", "_from_model_config", "_commit_hash", "eos_token_id", "bos_token_id",
    "pad_token_id", "decoder_start_token_id", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "prefill_chunk_size", "low_memory", "compile_config", "disable_compile",
    "continuous_batching_config", "return_dict_in_generate", "output_scores", "output_logits",
    "output_attentions", "output_hidden_states", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp",
})  # fmt: skip

# The others of transformers, with the values that change nothing.
OFF: dict[str, Any] = {
    "num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "early_stopping": False,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0, "remove_invalid_values": False, "renormalize_logits": False,
    "token_healing": False, "guidance_scale": 1.0, "penalty_alpha": 0.0, "top_h": None,
    "max_time": None, "watermarking_config": None, "constraints": None, "force_words_ids": None,
    "dola_layers": None,
}  # fmt: skip

_ADVICE = {
    "num_beams": " (write beams= in generate)",
    "num_return_sequences": " (write n= in generate)",
    "length_penalty": " (write length_penalty= beside beams=)",
}
