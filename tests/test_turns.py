"""Turns of a conversation: only what is new is run, rings included; answers as if all were run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import load_exact

import edgelm
from edgelm.generation.request import Request

CONTEXT, CHUNK = 400, 16
FIRST = torch.randint(5, 2000, (130,), generator=torch.Generator().manual_seed(1)).tolist()
OTHER = torch.randint(5, 2000, (90,), generator=torch.Generator().manual_seed(2)).tolist()
NEXT = [70, 71, 72, 73, 74]


@pytest.fixture(scope="module", params=["gemma2", "llama"])
def lm(assets: Path, request: pytest.FixtureRequest) -> Iterator[edgelm.LanguageModel]:
    """Gemma 2's window is 64: its rings hold 79 tokens."""
    folder = assets / "nano" / request.param
    with load_exact(folder, context=CONTEXT, chunk=CHUNK) as model:
        yield model


def turn(
    lm: edgelm.LanguageModel, ids: list[int], count: int = 10, **options: Any
) -> tuple[list[int], int]:
    """An answer's ids, and how many tokens of its prompt were run."""
    assert lm._session.engine is not None
    original, run = lm._session.engine.run, 0

    def counted(cache: Any, batch: Any) -> Any:
        nonlocal run
        run += sum(len(entry.tokens) for entry in batch)
        return original(cache, batch)

    lm._session.engine.run = counted  # type: ignore[method-assign]
    try:
        with lm.batch([Request(tuple(ids), count, speculate="off", **options)], frozenset()) as own:
            answer = [token for _, token in own.tokens()]
            stats = own.stats(0)
    finally:
        del lm._session.engine.run
    prefilled = run - (count - 1)
    assert prefilled == stats.prompt_tokens - stats.kept_tokens
    return answer, prefilled


@pytest.mark.parametrize("answered", [10, 90])
def test_a_next_turn_runs_what_is_new(lm: edgelm.LanguageModel, answered: int) -> None:
    """The answer's last token never ran; the new ones follow."""
    answer, _ = turn(lm, FIRST, answered, keep_prefix=True)
    follow = [*FIRST, *answer, *NEXT]
    kept, prefilled = turn(lm, follow, keep_prefix=True)
    assert prefilled == 1 + len(NEXT)
    assert kept == turn(lm, follow)[0]


def test_an_answer_told_otherwise_goes_back_to_its_prompt(lm: edgelm.LanguageModel) -> None:
    """90 tokens are more than a ring can undo; a full layer can cut anything."""
    for said in (OTHER, OTHER[:3]):
        turn(lm, FIRST, 90, keep_prefix=True)
        follow = [*FIRST, *said, *NEXT]
        kept, prefilled = turn(lm, follow, keep_prefix=True)
        print(f"{prefilled} of {len(follow)} tokens run")
        assert prefilled == len(said) + len(NEXT)
        assert kept == turn(lm, follow)[0]


def test_an_answer_asked_for_again(lm: edgelm.LanguageModel) -> None:
    """Only the prompt's last token is run again, however often; then as if nothing had been."""
    first, _ = turn(lm, FIRST, 90, keep_prefix=True)
    for _ in range(2):
        again, prefilled = turn(lm, FIRST, 90, keep_prefix=True)
        assert (again, prefilled) == (first, 1)


def test_a_point_knows_what_was_undone_before_it(lm: edgelm.LanguageModel) -> None:
    """Marked where six later tokens had already taken slots: 14 fewer cannot be had any more."""
    answer, _ = turn(lm, FIRST, 90, keep_prefix=True)
    cut = [*FIRST, *answer[:80], *NEXT[:3]]
    turn(lm, cut, 90, keep_prefix=True)
    follow = [*cut[:-14], *OTHER[:20]]
    kept, prefilled = turn(lm, follow, keep_prefix=True)
    assert prefilled == (len(follow) if lm._session.cache.rings else 20)
    assert kept == turn(lm, follow)[0]


def test_a_point_of_another_text_is_not_used(lm: edgelm.LanguageModel) -> None:
    """The row was used by a call that keeps nothing, for a text that begins alike."""
    turn(lm, FIRST, 3, keep_prefix=True)
    turn(lm, [*FIRST[:100], *OTHER], 90)
    follow = [*FIRST[:100], *OTHER[:20], *NEXT]
    kept, prefilled = turn(lm, follow, keep_prefix=True)
    rings = lm._session.cache.rings
    assert prefilled == (len(follow) if rings else len(NEXT))
    assert kept == turn(lm, follow)[0]


def test_points_are_in_the_plan(assets: Path) -> None:
    """A copy of the rings, none where they hold the whole context."""
    for name, context, expected in (("gemma2", 400, 79), ("gemma2", 79, 0), ("llama", 400, 0)):
        folder = assets / "nano" / name
        with load_exact(folder, context=context, chunk=CHUNK, rows=2) as lm:
            planned = {part.name: part.bytes for part in lm.plan.parts}
            taken = lm.ledger.taken["restore points"]
            windowed = sum(window is not None for window in lm.config.windows)
            slot = 2 * 2 * lm.config.num_kv_heads * lm.config.head_size * 4
        assert taken == planned.get("restore points", 0) == expected * slot * windowed


def test_chat_runs_only_the_new_message(lm: edgelm.LanguageModel) -> None:
    """Messages in a template, as ``chat`` has them."""
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    )
    messages = [{"role": "user", "content": "Call me Ishmael, " * 12}]
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.0}
    first = lm.chat(messages, **options)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Why?"}]
    second = lm.chat(messages, keep_prefix=None, **options)  # None is the default of the call
    fresh = lm.generate(lm.chat_ids(messages), **options)
    new = second.stats.prompt_tokens - second.stats.kept_tokens
    print(f"{new} of {second.stats.prompt_tokens} tokens run in the second turn")
    assert first.stats.prompt_tokens - 1 <= second.stats.kept_tokens
    assert second.token_ids == fresh.token_ids and fresh.stats.kept_tokens == 0
