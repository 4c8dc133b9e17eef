"""The fields that choose tokens, alike at every endpoint, as options of ``generate``."""

from __future__ import annotations

from typing import Any

from edgelm.server.fields import Fields, is_list, is_text
from edgelm.server.refusals import Refusal

MOST_TOKENS = 1 << 20  # of an answer: far beyond any context, which is the true limit
MOST_ANSWERS = 16
MOST_LOGPROBS = 20
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000
_PLAIN = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "no_repeat_ngram_size"),
    *("stop_token_ids", "grammar"),
)
IGNORED = (
    *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "verbosity"),
)
"""Fields that say nothing about the answer."""


def sampling_options(fields: Fields) -> dict[str, Any]:
    """Keywords of ``LanguageModel.request``; values are checked there."""
    found = {name: fields.take(name) for name in _PLAIN}
    found["stop"] = stops(fields, "stop")
    found["min_new_tokens"] = fields.take("min_tokens")
    bias = fields.take("logit_bias", "token ids with numbers", lambda v: isinstance(v, dict))
    if bias is not None:
        found["logit_bias"] = {_token(name): number for name, number in bias.items()}
    return {name: value for name, value in found.items() if value is not None}


def stops(fields: Fields, name: str) -> list[str] | None:
    """Stop strings: one, or a list."""
    given = fields.take(name)
    if given is None:
        return None
    listed = [given] if isinstance(given, str) else given
    few = is_list(listed) and len(listed) <= MOST_STOPS and all(map(is_text, listed))
    if not few or sum(map(len, listed)) > MOST_STOP_CHARACTERS:
        raise fields.wrong(
            name, given, f"up to {MOST_STOPS} texts of {MOST_STOP_CHARACTERS} characters together"
        )
    return listed or None


def answer_count(fields: Fields) -> int:
    count: int = fields.whole("n", 1, MOST_ANSWERS, 1)
    return count


def schema_of(form: Fields | None) -> Any:
    """The JSON schema that a ``response_format`` asks for; None for free text."""
    if form is None:
        return None
    kind = form.require("type", "text, json_object, json_schema", is_text)
    schema: Any = None
    if kind == "json_object":
        schema = {"type": "object"}
    elif kind == "json_schema":
        # Anthropic and the Responses API have the schema beside the type.
        inner = form.within("json_schema") or form
        inner.take("name", "a text", is_text)
        inner.take("description", "a text", is_text)
        inner.truth("strict")
        schema = inner.require("schema", "a JSON schema", lambda v: isinstance(v, dict))
        inner.finish()
    elif kind != "text":
        raise form.wrong("type", kind, "text, json_object, json_schema")
    form.finish()
    return schema


def streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether parts are sent as they come, and whether the last one tells the usage."""
    stream, more = fields.truth("stream"), fields.within("stream_options")
    usage = False
    if more is not None:
        usage = more.truth("include_usage")
        more.leave_out("include_obfuscation")
        more.finish()
        if not stream:
            raise Refusal(400, "stream_options is given without stream.", None, "stream_options")
    return stream, usage


def _token(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise Refusal(400, f"logit_bias names {name!r:.40}; give token ids.") from None
