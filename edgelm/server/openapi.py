"""``/openapi.json``: every path and field that the server takes, as OpenAPI 3.1.

Requests are described, answers by their kinds alone: these are OpenAI's and Anthropic's. A test
compares the names with those that the endpoints read.
"""

from __future__ import annotations

from typing import Any

from edgelm.server.chat import MOST_MESSAGES
from edgelm.server.sampling import (
    IGNORED,
    MOST_ANSWERS,
    MOST_LOGPROBS,
    MOST_STOPS,
    MOST_TOKENS,
)
from edgelm.server.texts import MOST_INPUTS
from edgelm.version import __version__

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_TRUTH: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}
_ID: Schema = {"type": "integer", "minimum": 0}
_IDS: Schema = {"type": "array", "items": _ID, "minItems": 1}
_PENALTY: Schema = {"type": "number", "minimum": -1e6, "maximum": 1e6}
_SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS}
_SEED: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}
_HEAT: Schema = {"type": "number", "anyOf": [{"const": 0}, {"minimum": 1e-6, "maximum": 1e6}]}
_LOGPROBS: Schema = {"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS}
_PROMPTS: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS,
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}
_STOPS: Schema = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MOST_STOPS}],
}
_MESSAGE: Schema = {
    "type": "object", "required": ["role"],
    "properties": {"role": _TEXT, "content": {"anyOf": [_TEXT, _OBJECTS, {"type": "null"}]}},
}  # fmt: skip
_MESSAGES: Schema = {
    "type": "array", "minItems": 1, "maxItems": MOST_MESSAGES, "items": _MESSAGE,
}  # fmt: skip
_AUTO: Schema = {"enum": ["auto", "none"]}
_COMMON: dict[str, Schema] = {"model": _TEXT, **{name: {} for name in IGNORED}}
_SAMPLING: dict[str, Schema] = {
    "temperature": _HEAT, "top_k": _ID, "top_p": _SHARE, "typical_p": _SHARE,
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e6},
    "presence_penalty": _PENALTY, "frequency_penalty": _PENALTY, "seed": _SEED,
    "no_repeat_ngram_size": _ID, "min_tokens": _ID, "grammar": _TEXT,
    "stop_token_ids": {"type": "array", "items": _ID}, "stop": _STOPS,
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "n": {"type": "integer", "minimum": 1, "maximum": MOST_ANSWERS},
    "response_format": _OBJECT, "stream": _TRUTH, "stream_options": _OBJECT,
}  # fmt: skip
_TOOLS: dict[str, Schema] = {
    "tools": _OBJECTS, "tool_choice": _AUTO, "parallel_tool_calls": {"const": True},
}  # fmt: skip
BODIES: dict[str, tuple[str, tuple[str, ...], dict[str, Schema]]] = {
    "/v1/chat/completions": (
        "Answer a conversation.",
        ("messages",),
        {
            "messages": _MESSAGES, "max_tokens": _LIMIT, "max_completion_tokens": _LIMIT,
            "logprobs": _TRUTH, "top_logprobs": _LOGPROBS, "chat_template_kwargs": _OBJECT,
            **_SAMPLING, **_TOOLS, **_COMMON,
        },
    ),
    "/v1/completions": (
        "Continue prompts; with echo and logprobs, score them.",
        ("prompt",),
        {
            "prompt": _PROMPTS, "max_tokens": _LIMIT | {"minimum": 0}, "echo": _TRUTH,
            "best_of": {"type": "integer", "minimum": 1, "maximum": MOST_ANSWERS},
            "logprobs": _LOGPROBS, **_SAMPLING, **_COMMON,
        },
    ),
    "/v1/responses": (
        "Answer a conversation in OpenAI's newer form; nothing is kept.",
        ("input",),
        {
            "input": {"anyOf": [_TEXT, _OBJECTS]}, "instructions": _TEXT, "temperature": _HEAT,
            "top_p": _SHARE, "seed": _SEED, "max_output_tokens": _LIMIT, "text": _OBJECT,
            "truncation": {"const": "disabled"}, "stream": _TRUTH, "include": {}, **_TOOLS,
            **_COMMON,
        },
    ),
    "/v1/messages": (
        "Answer a conversation in Anthropic's form.",
        ("messages", "max_tokens"),
        {
            "messages": _MESSAGES, "max_tokens": _LIMIT, "system": {"anyOf": [_TEXT, _OBJECTS]},
            "temperature": _HEAT, "top_p": _SHARE, "top_k": _ID, "seed": _SEED,
            "stop_sequences": _STOPS, "tools": _OBJECTS, "tool_choice": _OBJECT,
            "thinking": _OBJECT, "output_config": _OBJECT, "stream": _TRUTH, "cache_control": {},
            **_COMMON,
        },
    ),
    "/v1/embeddings": (
        "Vectors of texts.",
        ("input",),
        {"input": _PROMPTS, "encoding_format": {"enum": ["float", "base64"]}, **_COMMON},
    ),
    "/classify": (
        "What the model's head says of texts.",
        ("input",),
        {
            "input": {"anyOf": [_TEXT, {"type": "array", "maxItems": MOST_INPUTS}]},
            **_COMMON,
        },
    ),
    "/tokenize": (
        "Token ids of a text.",
        ("text",),
        {"text": _TEXT, "add_special": _TRUTH, "parse_special": _TRUTH, "model": _TEXT},
    ),
    "/detokenize": (
        "The text of token ids.",
        ("tokens",),
        {"tokens": {"type": "array", "items": _ID}, "keep_special": _TRUTH, "model": _TEXT},
    ),
}  # fmt: skip
"""Of each path: what it does, the fields that must be there, and all fields."""
PAGES = {
    "/v1/models": ("The model, with the plan that it was loaded by.", "application/json"),
    "/health": ("200 when the model is loaded.", "application/json"),
    "/metrics": ("Counters and gauges for Prometheus.", "text/plain"),
    "/openapi.json": ("This description.", "application/json"),
    "/": ("A page to chat on.", "text/html"),
}
_REFUSALS = {
    "4XX": "The request is refused; the body says why.",
    "503": "The model is being loaded, or its memory does not suffice.",
}


def document(model: str) -> dict[str, Any]:
    """The description of the server that has this model."""
    paths: dict[str, Any] = {
        path: {"get": _operation(summary, kind)} for path, (summary, kind) in PAGES.items()
    }
    for path, (summary, required, fields) in BODIES.items():
        properties = fields | {"model": {"const": model}}
        schema = {
            "type": "object", "required": list(required), "additionalProperties": False,
            "properties": {name: _or_null(own) for name, own in properties.items()},
        }  # fmt: skip
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        kinds = ["application/json", *(["text/event-stream"] if "stream" in properties else [])]
        paths[path] = {"post": _operation(summary, *kinds) | {"requestBody": body}}
    info = {"title": "EdgeLM", "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _operation(summary: str, *kinds: str) -> dict[str, Any]:
    refusals = {
        status: {"description": told, "content": {"application/json": {}}}
        for status, told in _REFUSALS.items()
    }
    good = {"description": "Done.", "content": {kind: {} for kind in kinds}}
    return {"summary": summary, "responses": {"200": good, **refusals}}


def _or_null(schema: Schema) -> dict[str, Any]:
    """Null counts as left out."""
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}
