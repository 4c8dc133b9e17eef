"""A conversation as it goes on: what is kept of a turn, and what a full context asks for."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from test_cli import TEMPLATE

import edgelm
from edgelm.generation.dialogue import Dialogue

CONTEXT = 160


@pytest.fixture(scope="module")
def lm(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgelm.LanguageModel]:
    folder = shutil.copytree(assets / "nano" / "llama", tmp_path_factory.mktemp("chat") / "nano")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with edgelm.load(folder, quant="none", context=CONTEXT, threads=1) as model:
        yield model


@pytest.fixture
def talk(lm: edgelm.LanguageModel) -> Dialogue:
    return Dialogue(lm, {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}, "Be brief.")


def said(answer: Generator[Any, None, None]) -> str:
    return "".join(chunk.text for chunk in answer)


def roles(talk: Dialogue) -> str:
    return "".join(own["role"][0] for own in talk.messages)


def test_turns(talk: Dialogue) -> None:
    first = said(talk.ask("Hello"))
    assert roles(talk) == "sua" and talk.messages[2]["content"] == first
    used = talk.used_tokens
    assert 0 < used < CONTEXT and talk.free_tokens == CONTEXT - used
    said(talk.ask("And you?"))
    assert talk.used_tokens > used and talk.undo() == "And you?" and talk.used_tokens == used
    talk.system = "Be long."
    assert talk.messages[0]["content"] == "Be long." and roles(talk) == "sua"
    talk.system = ""
    assert roles(talk) == "ua" and talk.system == ""
    talk.reset()
    assert talk.messages == [] and talk.used_tokens == 0
    for call in (talk.undo, lambda: said(talk.again())):
        with pytest.raises(edgelm.UsageError, match="Nothing was asked"):
            call()


def test_another_answer_takes_the_next_seed(talk: Dialogue, lm: edgelm.LanguageModel) -> None:
    first = said(talk.ask("Hello"))
    others = [said(talk.again()) for _ in range(3)]
    assert roles(talk) == "sua" and talk.messages[2]["content"] == others[-1]
    assert len({first, *others}) > 1
    options = talk.options | {"seed": 5}
    assert lm.chat(talk.messages[:2], **options).text == others[1]


def test_a_stopped_answer_keeps_what_came(talk: Dialogue) -> None:
    stop = Event()
    answer = talk.ask("Hello", stop)
    came = next(answer).text
    stop.set()
    came += said(answer)
    assert roles(talk) == "sua" and talk.messages[-1]["content"] == came
    assert talk.answers[-1].finish_reason == "cancelled"
    closed = talk.ask("And you?")
    came = next(closed).text
    closed.close()
    assert roles(talk) == "suaua" and talk.messages[-1]["content"] == came
    thrown = talk.again()
    came = next(thrown).text
    with pytest.raises(KeyboardInterrupt):
        thrown.throw(KeyboardInterrupt())
    assert roles(talk) == "suaua" and talk.messages[-1]["content"] == came
    assert said(talk.ask("Still there?"))


def test_a_question_without_an_answer_never_was(talk: Dialogue) -> None:
    said(talk.ask("Hello"))
    before = list(talk.messages)
    with pytest.raises(edgelm.ContextLengthError):
        said(talk.ask("word " * 200))
    stop = Event()
    stop.set()
    for ask in (lambda: talk.ask("Hm?", stop), lambda: talk.again(stop)):
        with suppress(edgelm.CancelledError):
            said(ask())
        assert talk.messages == before
    talk.options["temperature"] = -1.0
    with pytest.raises(edgelm.UsageError):
        said(talk.again())
    assert talk.messages == before


def test_a_full_context_stops_and_goes_on(talk: Dialogue) -> None:
    with pytest.raises(edgelm.ContextLengthError):
        for number in range(40):
            said(talk.ask(f"Question {number} of many that fill it"))
    turns = len(talk.messages)
    assert turns > 5 and talk.messages[-1]["role"] == "assistant"
    assert talk.forget(2) == 2 and len(talk.messages) == turns - 4
    assert roles(talk).startswith("sua") and "Question 2" in talk.messages[1]["content"]
    assert said(talk.ask("Now?"))
    asked = roles(talk).count("u")
    assert talk.forget(99) == asked and roles(talk) == "s" and talk.forget() == 0


def test_40_turns_where_the_oldest_are_dropped(lm: edgelm.LanguageModel) -> None:
    talk = Dialogue(lm, {"max_new_tokens": 6}, "Be brief.", on_full="drop-oldest")
    for number in range(40):
        said(talk.ask(f"Question {number}"))
        assert talk.used_tokens <= CONTEXT and talk.messages[-2]["content"] == f"Question {number}"
    assert talk.forgotten > 5 and talk.system == "Be brief." and roles(talk)[:3] == "sua"
    before = list(talk.messages)
    with pytest.raises(edgelm.ContextLengthError):
        said(talk.ask("word " * 200))
    assert talk.messages == before
    with pytest.raises(edgelm.UsageError, match="stop, drop-oldest"):
        Dialogue(lm, {}, on_full="explode")
