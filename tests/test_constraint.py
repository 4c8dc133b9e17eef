"""Answers that follow a JSON schema or a grammar, whatever the model would rather say."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgelm


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    settings = {"quant": "none", "context": 512, "chunk": 32, "rows": 16}
    with edgelm.load(assets / "nano" / "llama", **settings) as model:
        yield model


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema with finite answers of a hundred tokens or so."""
    kinds = ["integer", "boolean", "null", "string", "enum", "number", "const"]
    kinds += ["object", "array", "anyOf"] if depth < 2 else []
    kind = "object" if depth == 0 and rng.random() < 0.6 else rng.choice(kinds)
    match kind:
        case "integer":
            low = rng.randint(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": rng.randint(1, 9), "multipleOf": 0.5}
        case "string":
            if rng.random() < 0.3:
                return {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{1,3}$"}
            return {"type": "string", "minLength": rng.randint(0, 3), "maxLength": 8}
        case "enum":
            return {"enum": rng.sample(["red", 'quo"te', "Käse", 3, 2.5, None, True], 3)}
        case "const":
            return {"const": rng.choice(["on", 7, [1, 2], {"a": None}])}
        case "array":
            items = random_schema(rng, depth + 1)
            return {"type": "array", "items": items, "minItems": 1, "maxItems": rng.randint(1, 3)}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
        case "object":
            names = rng.sample(["name", "age", "tags", "é", "x y", "id"], rng.randint(1, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": rng.sample(names, rng.randint(0, len(names))),
                "additionalProperties": False,
            }
        case _:
            return {"type": kind}


def test_answers_to_random_schemas_validate(lm: edgelm.LanguageModel) -> None:
    import jsonschema

    rng = random.Random(11)
    schemas = [random_schema(rng) for _ in range(200)]
    options = {"temperature": 1.5, "seed": list(range(200)), "max_new_tokens": 400}
    answers = lm.generate(["The answer: "] * 200, schema=schemas, **options)
    tokens = sum(len(answer.token_ids) for answer in answers)
    print(f"200 schemas, {tokens} tokens, {len({a.text for a in answers})} different answers")
    for schema, answer in zip(schemas, answers, strict=True):
        assert answer.finish_reason == "stop", (schema, answer.text)
        jsonschema.validate(json.loads(answer.text), schema)


def test_a_grammar_is_followed_and_ends(lm: edgelm.LanguageModel) -> None:
    grammar = 'start: ("ja" | "nein") /[0-9]{3}/'
    answers = lm.generate("Well,", grammar=grammar, temperature=1.0, seed=1, n=6)
    texts = {answer.text for answer in answers}
    print(texts)
    assert len(texts) > 1 and all(re.fullmatch("(ja|nein)[0-9]{3}", text) for text in texts)
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_a_grammar_that_may_end_is_ended_by_the_model(lm: edgelm.LanguageModel) -> None:
    """``[0-9]*`` may end anywhere: the end token is allowed there, and no letter ever."""
    end = min(lm.end_ids)
    out = lm.generate("1", grammar="start: /[0-9]*/", logit_bias={end: 100.0})
    assert out.text == "" and out.token_ids == (end,) and out.finish_reason == "stop"
    out = lm.generate("1", grammar="start: /[0-9]*/", logit_bias={end: -100.0}, max_new_tokens=9)
    assert out.text.isdigit() and out.finish_reason == "length"


@pytest.mark.parametrize("name", ["gemma2", "bloom", "helium"])
def test_every_kind_of_tokenizer(assets: Path, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"ü": {"enum": ["naïve ☃", "b c"]}},
        "required": ["ü"],
    }
    schema["additionalProperties"] = False
    with edgelm.load(assets / "nano" / name, quant="none", context=160, chunk=16) as lm:
        for seed in range(4):
            out = lm.generate("Say", schema=schema, temperature=2.0, seed=seed)
            assert json.loads(out.text) in ({"ü": "naïve ☃"}, {"ü": "b c"}), out.text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"schema": "{"}, "not JSON"),
        ({"schema": "[]"}, "object"),
        ({"schema": {"type": "sandwich"}}, "invalid or not supported"),
        ({"grammar": "start: ("}, "invalid or not supported"),
        ({"grammar": "start: /a/", "schema": {}}, "one of them"),
    ],
)
def test_wrong_grammars(lm: edgelm.LanguageModel, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(edgelm.UsageError, match=words):
        lm.generate("Say", **wrong)


def test_bans_that_leave_nothing(lm: edgelm.LanguageModel) -> None:
    with pytest.raises(edgelm.UsageError, match="Every token is banned"):
        lm.generate("Say", banned_tokens=range(lm.config.vocab_size))
    assert lm.generate("Say", max_new_tokens=2).token_ids
