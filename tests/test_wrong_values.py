"""Whatever a caller gives: an answer, or an EdgeLMError that says what is allowed.

Every option of every public call is given every value of ``WRONG``. Nothing else than an
EdgeLMError may come out, and where the value is no number or text at all it must.
"""

from __future__ import annotations

import asyncio
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgelm
from edgelm.generation.option_table import GENERATE
from edgelm.option import Call, options_in
from edgelm.planning.setting_table import LOAD
from edgelm.tasks.forward_options import FORWARD
from edgelm.text.continuation import Encoded


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


NEVER: dict[str, Any] = {
    "bytes": b"x",
    "object": object(),
    "unprintable": Unprintable(),
    "set": {1},
    "complex": 1j,
    "nested": [[1, [2]]],
    "matrix": torch.ones(2, 2, 2),
    "objects": np.array([object()]),
}
WRONG: dict[str, Any] = NEVER | {
    "None": None,
    "[]": [],
    "{}": {},
    "dict": {"x": "y"},
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "2.5": 2.5,
    "10**30": 10**30,
    "10**5000": 10**5000,
    "''": "",
    "text": "x",
    "NUL": "a\0b",
    "surrogate": "\ud800",
    "True": True,
    "np.float32": np.float32(0.5),
    "np.nan": np.float64("nan"),
    "vector": torch.tensor([1.5, 2.5]),
}


def refused(call: Callable[[], Any]) -> bool:
    """True if an EdgeLMError came out; any other fails the test."""
    try:
        call()
    except edgelm.EdgeLMError as error:
        assert str(error) and "Error(" not in str(error)
        return True
    return False


def every(call: Call) -> list[str]:
    return [*options_in(call.table), *call.own]


@pytest.fixture(scope="module")
def nano(assets: Path) -> Path:
    return assets / "nano" / "llama"


@pytest.fixture(scope="module")
def lm(nano: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(nano, quant="none", context=64, rows=2, threads=1) as model:
        yield model


@pytest.mark.parametrize("name", every(GENERATE))
def test_options_of_an_answer(lm: edgelm.LanguageModel, name: str) -> None:
    usual: dict[str, Any] = {"max_new_tokens": 2}
    for kind, value in WRONG.items():
        given: dict[str, Any] = usual | {name: value}
        found = refused(lambda: lm.generate([1, 5], **given))  # noqa: B023
        assert found or kind not in NEVER, kind
        if name in options_in(GENERATE.table):
            assert refused(lambda: list(lm.stream([1, 5], **given))) == found  # noqa: B023
    assert len(lm.generate([1, 5], **usual).token_ids) == 2


def test_options_of_the_asynchronous_forms(lm: edgelm.LanguageModel) -> None:
    for name in ("seed", "stop_event"):
        for value in NEVER.values():
            given: dict[str, Any] = {name: value}
            assert refused(lambda: asyncio.run(lm.agenerate([1, 5], **given)))  # noqa: B023


GENEROUS: dict[str, list[Any]] = {
    "max_new_tokens": [np.int64(2), torch.tensor(2)],
    "temperature": [1, np.float32(0.5), torch.tensor(0.5)],
    "top_k": [np.int32(3)],
    "top_p": [1, np.float64(0.9)],
    "seed": [np.uint64(2**64 - 1), torch.tensor(3)],
    "stop": ["x", ["x", "y"], ("x",), []],
    "logprobs": [0, np.int64(2)],
    "logit_bias": [{5: 1.0}, {np.int64(5): np.float32(1)}, [(5, -1)], {5: -float("inf")}, {}],
    "banned_tokens": [[5], (5, 6), np.array([5]), torch.tensor([5]), range(5, 8), []],
    "keep_prefix": [True, np.True_],
    "n": [np.int64(1)],
    "length_penalty": [np.float32(1)],
}


@pytest.mark.parametrize("name", GENEROUS)
def test_numbers_of_numpy_and_torch_are_numbers(lm: edgelm.LanguageModel, name: str) -> None:
    for value in GENEROUS[name]:
        given: dict[str, Any] = {"max_new_tokens": 2} | {name: value}
        assert lm.generate([1, 5], **given).token_ids


IDS = (1, 5, 9)
PROMPTS: dict[str, Any] = {
    "list": [1, 5, 9],
    "tuple": IDS,
    "numpy": np.array(IDS),
    "numpy uint8": np.array(IDS, np.uint8),
    "tensor": torch.tensor(IDS),
    "numpy numbers": list(np.array(IDS)),
    "tensors of one number": list(torch.tensor(IDS)),
    "range": range(1, 10, 4),
    "a tokenizer's": {"input_ids": [1, 5, 9], "attention_mask": [1, 1, 1]},
}
BATCHES: dict[str, Any] = {
    "lists": [[1, 5, 9], [1, 5]],
    "tuples": ([1, 5, 9], (1, 5)),
    "tensors": [torch.tensor(IDS), torch.tensor((1, 5))],
    "[B, T]": torch.tensor([[1, 5, 9], [1, 5, 9]]),
    "numpy [B, T]": np.array([[1, 5, 9], [1, 5, 9]]),
    "[1, T]": torch.tensor([IDS]),
    "a tokenizer's": UserDict(input_ids=[[1, 5, 9], [1, 5]], attention_mask=[[1, 1, 1], [1, 1]]),
    "a tokenizer's tensors": {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 3)},
}


def test_every_form_of_ids(lm: edgelm.LanguageModel) -> None:
    expected = lm.generate([1, 5, 9], max_new_tokens=3).token_ids
    for form, prompt in PROMPTS.items():
        assert lm.generate(prompt, max_new_tokens=3).token_ids == expected, form
    shorter = lm.generate([1, 5], max_new_tokens=3).token_ids
    for form, prompts in BATCHES.items():
        answers = lm.generate(prompts, max_new_tokens=3)
        assert [a.token_ids for a in answers if a.stats.prompt_tokens == 3][:1] == [expected], form
        assert all(a.token_ids == shorter for a in answers if a.stats.prompt_tokens == 2), form
    mixed: Any = ["Once upon a time", [1, 5, 9]]
    assert lm.generate(mixed, max_new_tokens=3)[1].token_ids == expected
    chunks = list(lm.stream(torch.tensor([IDS]), max_new_tokens=3))  # type: ignore[arg-type]
    assert sum((chunk.token_ids for chunk in chunks), ()) == expected


def test_a_tokenizer_of_transformers(lm: edgelm.LanguageModel, nano: Path) -> None:
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": [[1, 5, 9]], "attention_mask": [[1, 1, 1]]})
    [answer] = lm.generate(batch, max_new_tokens=3)
    assert answer.token_ids == lm.generate([1, 5, 9], max_new_tokens=3).token_ids


NO_PROMPTS: dict[str, Any] = {
    **{kind: value for kind, value in WRONG.items() if kind not in ("text", "NUL")},
    "floats": [1.0, 300.9],
    "bools": [True, False],
    "bool tensor": torch.tensor([True]),
    "float tensor": torch.tensor([1.5]),
    "bytearray": bytearray(b"abc"),
    "memoryview": memoryview(b"abc"),
    "generator": (text for text in ["a"]),
    "mixed": [1, "a"],
    "text and None": ["a", None],
    "an empty row": [[1, 5], []],
    "empty tensor": torch.zeros(0, dtype=torch.long),
    "out of range": [1, 99999],
    "negative": [1, -5],
    "huge": [1, 10**30],
    "padded": {"input_ids": [[1, 5], [1, 0]], "attention_mask": [[1, 1], [1, 0]]},
    "padded tensor": {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.zeros(1, 3)},
    "a tokenizer's text": {"input_ids": b"abc"},
    "empty": {"input_ids": []},
    "meta": torch.ones(3, dtype=torch.long, device="meta"),
}


@pytest.mark.parametrize("kind", NO_PROMPTS)
def test_what_is_no_prompt_is_refused(lm: edgelm.LanguageModel, kind: str) -> None:
    given = NO_PROMPTS[kind]
    assert refused(lambda: lm.generate(given, max_new_tokens=2))
    assert refused(lambda: list(lm.stream(given, max_new_tokens=2)))
    assert refused(lambda: lm.request(given)) or kind in ("out of range", "negative", "huge")
    assert refused(lambda: lm.log_likelihoods(given))


@pytest.mark.parametrize("name", every(LOAD))
def test_settings_of_a_load(nano: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``plan`` and ``load``; the Hub is never asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind, value in WRONG.items():
        given: dict[str, Any] = {"quant": "none", "context": 16} | {name: value}
        found = refused(lambda: edgelm.load(nano, **given).close())  # noqa: B023
        assert found or kind not in NEVER, kind
        if name not in ("threads", "progress"):
            refused(lambda: edgelm.plan(nano, **given))  # noqa: B023


@pytest.mark.parametrize("kind", WRONG)
def test_models_and_files(
    nano: Path, lm: edgelm.LanguageModel, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    value = WRONG[kind]
    assert refused(lambda: edgelm.load(value))
    assert refused(lambda: edgelm.plan(value))
    assert refused(lambda: edgelm.quantize(value, tmp_path / "out"))
    assert refused(lambda: edgelm.evaluate(value, text=tmp_path))
    if kind not in ("text", "surrogate"):
        assert refused(lambda: edgelm.quantize(nano, value, quant="int8"))
    for name in (
        *("quant", "method", "calibration", "revision", "offline", "progress", "announce"),
        *("certificate", "certificate_text", "max_kld"),
    ):
        given: dict[str, Any] = {name: value}
        found = refused(lambda: edgelm.quantize(nano, tmp_path / name, **given))  # noqa: B023
        assert found or kind not in NEVER, name
    for name in (
        *("text", "tasks", "limit", "window", "baseline", "progress", "threads"),
        *("shots", "prompts", "example_seed", "details"),
    ):
        given = dict[str, Any](text=tmp_path, quant="none") | {name: value}
        assert refused(lambda: edgelm.evaluate(nano, **given)), name  # noqa: B023
    assert refused(lambda: lm.restore_conversation(value))
    assert refused(lambda: lm.save_conversation(value)) or kind in ("text", "surrogate")


@pytest.mark.parametrize("kind", WRONG)
def test_calls_with_texts_and_ids(lm: edgelm.LanguageModel, kind: str) -> None:
    value: Any = WRONG[kind]
    is_text = isinstance(value, str) and kind != "surrogate"
    assert refused(lambda: lm.encode(value)) != is_text
    refused(lambda: lm.decode(value))
    refused(lambda: lm.decode([value]))
    assert refused(lambda: lm.score(value, "a")) != is_text
    assert refused(lambda: lm.score("a", value)) != is_text
    refused(lambda: lm.score_all(value))
    assert refused(lambda: lm.score_all([value]))
    refused(lambda: lm.score_choices(value))
    assert refused(lambda: lm.score_choices([[value]]))
    assert refused(lambda: lm.predict(value))


def test_ids_out_of_range_are_not_scored(lm: edgelm.LanguageModel) -> None:
    for ids, count in (((1, 99999), 1), ((1, -5), 1), ((1, 5), 2), ((1, 5), -1), ((1,), 1)):
        assert refused(lambda: lm.score_choices([[Encoded(ids, count)]]))  # noqa: B023
    assert lm.decode(torch.tensor([[5, 6], [7, 8]])) == [lm.decode([5, 6]), lm.decode([7, 8])]  # type: ignore[call-overload]
    assert lm.decode(np.array([5, 6])) == lm.decode(iter([5, 6])) == lm.decode((5, 6))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", every(FORWARD))
def test_options_of_forward(lm: edgelm.LanguageModel, name: str) -> None:
    for kind, value in WRONG.items():
        given: dict[str, Any] = {"input_ids": torch.tensor([[1, 5, 9]])} | {name: value}
        found = refused(lambda: lm.forward(**given))  # noqa: B023
        assert found or kind not in NEVER, kind
    mask = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert refused(lambda: lm.forward(torch.tensor([[1, 5, 9]]), attention_mask=mask))


@pytest.mark.parametrize("name", ["rows", "context", "kv"])
def test_caches(lm: edgelm.LanguageModel, name: str) -> None:
    cache = lm.new_cache(1, 16)
    for kind, value in WRONG.items():
        given: dict[str, Any] = {name: value}
        found = refused(lambda: lm.new_cache(**given))  # noqa: B023
        assert found or kind not in NEVER, kind
        for call in (cache.snapshot, cache.drop, cache.written, lambda v: cache.truncate(0, v)):
            found = refused(lambda: call(value))  # noqa: B023
            assert found or kind not in NEVER, kind
        assert refused(lambda: cache.restore(0, value))  # noqa: B023


@pytest.mark.parametrize(
    "arguments",
    [
        ("--temperature", "nan"), ("--max-tokens", str(10**30)), ("--seed", "-1"), ("-n", "0"),
        ("-n", str(10**30)), ("--beams", "0"), ("--beams", "-1"), ("--quant", "a\ud800"),
        ("--kv", ""), ("--device", ""), ("--context", str(10**30)), ("--context", "inf"),
        ("--budget", "nan"), ("--budget", ""), ("--threads", str(10**30)), ("--threads", "-1"),
        ("--draft", ""), ("--logprobs", "-1"), ("--stop", ""), ("--presence-penalty", "inf"),
    ],
)  # fmt: skip
def test_the_command_line(nano: Path, arguments: tuple[str, str]) -> None:
    from edgelm.cli.main import main

    assert main(["generate", str(nano), "Once", "--quiet", "--json", *arguments]) in (1, 2, 3, 4)
