"""JSON schemas and grammars as people send them: compiled, or refused with a word and at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.generation import grammar
from edgelm.generation.json_schema import MAX_DEPTH, schema_text


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=64, threads=1) as model:
        yield model


def nested(depth: int) -> dict[str, Any]:
    return reduce(lambda inner, _: {"items": inner}, range(depth), dict[str, Any]())


def chain(length: int) -> dict[str, Any]:
    """Each definition refers to the next: 1,900 of them end the library's process."""
    defs: dict[str, Any] = {
        f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(length)
    }
    return {"$defs": defs | {f"a{length}": {"type": "null"}}, "$ref": "#/$defs/a0"}


def doubled(depth: int) -> dict[str, Any]:
    """Small in memory, 2 ** depth values as JSON."""
    return reduce(lambda inner, _: {"anyOf": [inner, inner]}, range(depth), {"type": "null"})


def in_itself() -> dict[str, Any]:
    own: dict[str, Any] = {}
    own["items"] = own
    return own


REFUSED: dict[str, tuple[Any, str]] = {
    "false": (False, "no answer follows"),
    "false as text": ("false", "no answer follows"),
    "a list": (5, "allowed: a JSON object"),
    "null": ("null", "allowed: a JSON object"),
    "no JSON": ("{", "not JSON"),
    "NaN": ({"const": float("nan")}, "not JSON"),
    "NaN as text": ('{"const": NaN}', "not JSON"),
    "infinity": ({"maximum": float("inf")}, "not JSON"),
    "bytes": (b"{}", "allowed: a JSON object"),
    "bytes inside": ({"const": b"x"}, "not JSON"),
    "a set inside": ({"enum": {1, 2}}, "not JSON"),
    "half a surrogate": ({"const": "\ud800"}, "surrogate"),
    "half a surrogate as text": ('{"const": "\\ud800"}', "surrogate"),
    "half a surrogate as key": ({"properties": {"\ud800": {}}}, "surrogate"),
    "deep": (nested(MAX_DEPTH + 1), "deeper than"),
    "very deep": (nested(900), "deeper than"),
    "deep text": ('{"items":' * 50000 + "{}" + "}" * 50000, "characters"),
    "deep short text": ('{"items":' * 9000 + "{}" + "}" * 9000, "deeper than"),
    "a long chain": (chain(1900 // 2), "deeper than"),
    "many values": ({"enum": list(range(60000))}, "too large"),
    "many objects": ({"properties": {f"k{i}": {} for i in range(3000)}}, "too large"),
    "long": ({"const": "x" * 300000}, "characters"),
    "doubled": (doubled(40), "too large"),
    "in itself": (in_itself(), "too large|deeper than"),
    "refers to itself": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "."),
    "refers to nothing": ({"$ref": "#/$defs/a"}, "does not exist"),
    "refers to the network": ({"$ref": "https://example.com/a.json"}, "not pres"),
    "misspelled": ({"typ": "object"}, "'typ': did you mean 'type'"),
    "misspelled inside": (
        {"type": "object", "properties": {"a": {"type": "array", "item": {}}}},
        "'item': did you mean 'items'",
    ),
    "unknown type": ({"type": "thing"}, "thing"),
    "long integer": ({"minimum": 10**3999, "type": "integer"}, "."),
    "a bad pattern": ({"type": "string", "pattern": "("}, "regex"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_schemas_that_are_refused(lm: edgelm.LanguageModel, kind: str) -> None:
    schema, message = REFUSED[kind]
    start = time.monotonic()
    with pytest.raises(edgelm.UsageError, match=message) as raised:
        lm.generate([1, 5], schema=[schema], max_new_tokens=2)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "schema",
    [
        True,
        "true",
        {},
        nested(20),
        chain(30),
        doubled(5),
        {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"title": "T", "type": "integer", "x-note": 1, "unheard": 2},  # annotations
        {"type": "object", "properties": {"typ": {"type": "null"}}, "required": ["typ"]},  # a name
        {"enum": [{"typ": 1}, {"item": None}]},  # values
    ],
    ids=lambda schema: json.dumps(schema)[:30],
)
def test_schemas_that_are_followed(lm: edgelm.LanguageModel, schema: Any) -> None:
    request = lm.request([1, 5], schema=schema)
    assert request.constraint is not None
    assert json.loads(schema_text(schema)) == ({} if schema in (True, "true") else schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(3000)), "rules"),
        ("start: " + "(" * 20000 + '"a"' + ")" * 20000, "nested"),
        ("start: " + '"a" ' * 100000, "characters"),
        ("start: start", "no answer"),
        ("\0", "."),
        ("", "."),
        ('start: "\ud800"', "."),
        ('start: %json {"const": NaN}', "."),
    ],
    ids=["rules", "parentheses", "long", "itself", "NUL", "empty", "surrogate", "NaN"],
)
def test_grammars_that_are_refused(lm: edgelm.LanguageModel, text: str, message: str) -> None:
    with pytest.raises(edgelm.UsageError, match=message):
        lm.generate([1, 5], grammar=text, max_new_tokens=2)


def test_a_panic_of_the_library_is_an_error() -> None:
    """And nothing else that ends a program is."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(edgelm.UsageError, match="out of fuel"), grammar._library_errors():
        raise panic("out of fuel\nat lib.rs")
    with pytest.raises(KeyboardInterrupt), grammar._library_errors():
        raise KeyboardInterrupt
    with pytest.raises(KeyError), grammar._library_errors():
        raise KeyError("ours")
