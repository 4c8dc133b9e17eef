"""JSON schemas that callers give: read, within limits, before a library compiles them.

The library follows references by recursion and would end the process where they go too deep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from edgelm.errors import UsageError
from edgelm.values import shown

MAX_CHARACTERS = 256 << 10
MAX_OBJECTS = 2000
MAX_VALUES = 50_000
MAX_DEPTH = 100  # references followed; llguidance ends the process at 700
# Keywords of the drafts 4 to 2020-12, by what their values are.
_ONE = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items",
    "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_SEVERAL = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = (
    "$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties",
)  # fmt: skip
_OTHERS = (
    "$anchor", "$comment", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "$vocabulary",
    "const", "contentEncoding", "contentMediaType", "default", "dependentRequired", "deprecated",
    "description", "discriminator", "enum", "example", "examples", "exclusiveMaximum",
    "exclusiveMinimum", "externalDocs", "format", "id", "maxContains", "maxItems", "maxLength",
    "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
    "multipleOf", "nullable", "pattern", "readOnly", "required", "title", "type", "uniqueItems",
    "writeOnly", "x-guidance", "xml",
)  # fmt: skip
_KEYWORDS = (*_ONE, *_SEVERAL, *_NAMED, *_OTHERS)


def schema_text(given: Any) -> str:
    """The text of a JSON schema: a mapping, True (any JSON), or their text.

    Raises:
        UsageError: no schema, or none that JSON can hold; False, which no answer follows; a
            misspelled keyword; one that is too large or too deep.
    """
    try:
        if isinstance(given, str):
            _require_size(len(given))
            given = json.loads(given)
        if given is False:
            raise UsageError("The schema is false, which no answer follows; true allows any JSON.")
        if not isinstance(given, Mapping | bool):
            raise UsageError(f"The schema is {shown(given)}; allowed: a JSON object, or true.")
        schema = dict(given) if isinstance(given, Mapping) else {}
        _require_few(schema)
        _require_shallow(schema)
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
    except RecursionError as error:
        raise _too_deep() from error
    except UnicodeEncodeError as error:
        raise UsageError(
            "The schema holds half of a surrogate pair, which cannot be encoded as text."
        ) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"The schema is not JSON ({error}).") from error
    _require_size(len(text))
    _require_keywords(json.loads(text))
    return text


def _require_size(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise UsageError(
            f"The schema has {characters} characters; allowed: {MAX_CHARACTERS}. Ask for less in "
            "one answer."
        )


def _require_few(schema: dict[str, Any]) -> None:
    """Raise UsageError for too many values, those counted again that stand in several places."""
    left, objects, count = [schema], 0, 0
    while left:
        value: Any = left.pop()
        count += 1
        if isinstance(value, Mapping):
            objects += 1
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)
        if objects > MAX_OBJECTS or count > MAX_VALUES:
            raise UsageError(
                f"The schema is too large; allowed: {MAX_OBJECTS} objects and {MAX_VALUES} values. "
                "Ask for less in one answer."
            )


def _require_shallow(schema: dict[str, Any]) -> None:
    """Raise UsageError for values, references followed, that lie more than MAX_DEPTH deep."""
    below: dict[int, int] = {}  # levels under a value that was seen, 0 while it is being seen
    seen: list[Any] = []  # keeps their ids from coming again

    def levels(value: Any, depth: int) -> int:
        if not isinstance(value, Mapping | list | tuple):
            return 0
        if id(value) not in below:
            if depth > MAX_DEPTH:
                raise _too_deep()
            below[id(value)] = 0
            seen.append(value)
            inner = value.values() if isinstance(value, Mapping) else value
            found = [levels(own, depth + 1) for own in inner]
            if isinstance(value, Mapping):
                found.append(levels(_target(schema, value.get("$ref")), depth + 1))
            below[id(value)] = 1 + max(found, default=0)
        if depth + below[id(value)] > MAX_DEPTH + 1:
            raise _too_deep()
        return below[id(value)]

    levels(schema, 0)


def _target(schema: dict[str, Any], reference: Any) -> Any:
    """What a reference within the schema names; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = schema
    for name in reference[2:].split("/"):
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(
            found, Mapping
        ) else None  # fmt: skip
    return found


def _too_deep() -> UsageError:
    return UsageError(
        f"The schema is nested deeper than {MAX_DEPTH} levels, with its references followed. "
        "Flatten it."
    )


def _require_keywords(schema: Any) -> None:
    """Raise UsageError for a keyword that is a known one misspelled; others are annotations."""
    for key in schema:
        if key not in _KEYWORDS and not key.startswith("x-"):
            near = get_close_matches(key, _KEYWORDS, n=1, cutoff=0.8)
            if near:
                raise UsageError(f"The schema's keyword {key!r}: did you mean {near[0]!r}?")
    for inner in _inner(schema):
        if isinstance(inner, Mapping):
            _require_keywords(inner)


def _inner(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas within a schema."""
    for key, value in schema.items():
        if key in _SEVERAL and isinstance(value, list | tuple):
            yield from value
        elif key in _ONE:
            yield value
        elif key in _NAMED and isinstance(value, Mapping):
            yield from value.values()
