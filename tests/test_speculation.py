"""Guesses: the text is that of plain steps, rows hold what they would, and the loss is bounded."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import RANGE_BOUND, load_exact

import edgelm
from edgelm.call_lock import Call
from edgelm.generation.answer import Answer
from edgelm.generation.processors import SoFar
from edgelm.generation.prompt_lookup import PromptLookup
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
from edgelm.generation.speculation import Speculation
from quant import native

FAMILIES = ["bloom", "gemma2", "helium", "llama", "persimmon"]
PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good"
LONGEST_LOSS = 0.03  # of the time without guesses


class Knowing:
    """Guesses what it was told is right, as far as its seed says, and then something else."""

    greedy_only = False

    def __init__(self, right: tuple[int, ...], seed: int = 0) -> None:
        self.right, self.random = right, random.Random(seed)

    def begin(self, ids: SoFar, sampling: SamplingSettings) -> None:
        pass

    def strength(self, ids: SoFar) -> int:
        return 1

    def guess(self, ids: SoFar, count: int) -> list[int]:
        count = self.random.randint(1, count)
        known = list(self.right[len(ids.new) :][:count])
        if self.random.random() < 0.5 and known:
            known[self.random.randrange(len(known))] ^= 1
        return known


class Keen(Speculation):
    """Always guesses as much as it may."""

    def guess(self, answer: Answer) -> list[int]:
        room = min(self.depth, answer.limit - answer.new_tokens - 1)
        if room < 1 or not self.drafter.strength(answer.ids):
            return []
        self._step_s = self._step_s or 1.0
        return self.drafter.guess(answer.ids, room)


def knowing(lm: edgelm.LanguageModel, right: tuple[int, ...], seed: int = 0) -> Keen:
    """Let the model's next answers be guessed by somebody who knows ``right``."""
    lm._session.speculation = Keen(Knowing(right, seed), lm.plan.draft_depth)
    return lm._session.speculation


def first_fork(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int | None:
    """Where two texts part; None where they do not."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    found = next((at for at, (a, b) in pairs if a != b), None)
    return found if found is not None or len(ours) == len(theirs) else min(len(ours), len(theirs))


def answer(
    lm: edgelm.LanguageModel, prompt: list[int], count: int, **options: Any
) -> tuple[tuple[int, ...], edgelm.Stats]:
    """The ids of an answer that no end token stops, and its statistics."""
    with lm.batch([Request(tuple(prompt), count, **options)], frozenset()) as batch:
        return tuple(token for _, token in batch.tokens()), batch.stats(0)


def check_same(
    lm: edgelm.LanguageModel, prompt: list[int], plain: tuple[int, ...], guessed: tuple[int, ...]
) -> int:
    """Equal ids, but for near ties: torch's products give a row other bits beside others.

    Returns how many forks there were (0 or 1); their gap is under the bound, in shares of the
    logits' range, that tells our logits from anybody's.
    """
    fork = first_fork(plain, guessed)
    if fork is None:
        return 0
    logits = lm.forward(torch.tensor([[*prompt, *plain[:fork]]])).logits[0, -1]
    best = logits.topk(2).values
    gap = float((best[0] - best[1]) / (logits.max() - logits.min()))
    print(f"fork at {fork}: the two best are {gap:.1e} of the range apart")
    assert gap < RANGE_BOUND
    return 1


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=256, chunk=24) as model:
        yield model


@pytest.fixture(autouse=True)
def own_speculation(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test does to the shared model's guesses ends with it."""
    if "lm" not in request.fixturenames:
        yield
        return
    model = request.getfixturevalue("lm")
    kept = model._session.speculation
    yield
    model._session.speculation = kept


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("size", "chunk"), [("tiny-random", 5), ("tiny-random", 24), ("nano", 17)])
def test_every_family_says_what_plain_steps_say(
    assets: Path, name: str, size: str, chunk: int
) -> None:
    """Right and wrong guesses of all lengths, far beyond Gemma 2's windows (8 and 64)."""
    forks = drafted = accepted = 0
    count, seeds = (100, 1) if size == "nano" else (80, 3)
    held = 11 + count - 1
    with load_exact(assets / size / name, context=held + 10, chunk=chunk) as lm:
        for seed in range(seeds):
            torch.manual_seed(seed)
            prompt = torch.randint(5, 200, (11,)).tolist()
            right, _ = answer(lm, prompt, count, speculate="off")
            knowing(lm, right, seed)
            ids, stats = answer(lm, prompt, count)
            forks += check_same(lm, prompt, right, ids)
            drafted, accepted = drafted + stats.drafted_tokens, accepted + stats.accepted_tokens
            assert lm._session.held[0] == [*prompt, *ids[:-1]] and lm._session.cache.lengths == [
                held
            ]
            longer = [*prompt, *ids, 7]
            kept, stats = answer(lm, longer, 8, keep_prefix=True, speculate="off")
            assert stats.kept_tokens == held
            check_same(lm, longer, answer(lm, longer, 8, speculate="off")[0], kept)
    print(f"{size} {name}: {accepted} of {drafted} right, {forks} forks in {seeds * count} tokens")
    assert forks <= 1 and drafted > accepted > seeds * count / 3


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_looked_up(assets: Path, name: str) -> None:
    """A prompt that repeats itself, the model's own guesses: some right, all harmless."""
    with load_exact(assets / "nano" / name, context=256, chunk=32) as lm:
        lm._session.speculation = Keen(lm._session.speculation.drafter, lm.plan.draft_depth)
        prompt = lm.encode((PROMPT + ". ") * 4)
        plain = lm.generate(prompt, max_new_tokens=90, speculate="off")
        guessed = lm.generate(prompt, max_new_tokens=90)
        check_same(lm, prompt, plain.token_ids, guessed.token_ids)
    stats = guessed.stats
    print(f"{name}: {stats.accepted_tokens} of {stats.drafted_tokens} right")
    assert stats.drafted_tokens > stats.accepted_tokens >= 20
    assert (plain.stats.drafted_tokens, plain.stats.accepted_tokens) == (0, 0)


def test_steps_are_saved(lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that are all right: 80 tokens in as many steps as sixteens of tokens."""
    right = lm.generate(PROMPT, max_new_tokens=80, speculate="off")
    guide = knowing(lm, right.token_ids)
    guide.drafter.guess = lambda ids, count: list(right.token_ids[len(ids.new) :][:count])
    sizes, original = [], lm._session.engine.run

    def counted(cache: Any, batch: Any) -> Any:
        sizes.append(sum(len(entry.tokens) for entry in batch))
        return original(cache, batch)

    monkeypatch.setattr(lm._session.engine, "run", counted)
    out = lm.generate(right_prompt := lm.encode(PROMPT), max_new_tokens=80)
    assert out.token_ids == right.token_ids
    assert sizes[-5:] == [16, 16, 16, 16, 15] and sum(sizes[:-5]) == len(right_prompt)


@pytest.mark.parametrize("seed", range(2))
def test_everything_about_an_answer_stays(lm: edgelm.LanguageModel, seed: int) -> None:
    """Stop strings, end tokens, limits, log-probabilities, penalties, a schema, drawn answers."""
    free = lm.generate(PROMPT, max_new_tokens=60, speculate="off")
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 9}
    asked: list[dict[str, Any]] = [
        {"stop": free.text[40:44]},
        {"stop": [free.text[70:75], "\x00"], "logprobs": 3},
        {"max_new_tokens": 17, "logprobs": 0},
        {"repetition_penalty": 1.4, "frequency_penalty": 0.3},
        {"schema": schema, "max_new_tokens": 40},
        {"temperature": 0.9, "top_p": 0.9, "seed": seed},
    ]
    for options in asked:
        options = {"max_new_tokens": 60} | options
        plain = lm.generate(PROMPT, speculate="off", **options)
        knowing(lm, plain.token_ids, seed)
        chunks = list(lm.stream(PROMPT, **options))
        ids = sum((chunk.token_ids for chunk in chunks), ())
        assert ids == plain.token_ids, options
        assert "".join(chunk.text for chunk in chunks) == plain.text
        assert chunks[-1].finish_reason == plain.finish_reason
        stats = chunks[-1].stats
        assert stats.new_tokens == plain.stats.new_tokens and stats.accepted_tokens > 0
        found = sum((chunk.logprobs for chunk in chunks), ())
        assert [e.token_id for e in found] == [e.token_id for e in plain.logprobs]
        for ours, theirs in zip(found, plain.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_an_end_token_among_right_guesses_ends(lm: edgelm.LanguageModel) -> None:
    free = lm.generate(PROMPT, max_new_tokens=30, speculate="off").token_ids
    first = next(at for at in range(4, 14) if free[at] not in free[:at])  # within one step
    end = free[first]
    knowing(lm, free).drafter.guess = lambda ids, count: list(free[len(ids.new) :][:count])
    request = Request(tuple(lm.encode(PROMPT)), 30)
    with lm.batch([request], frozenset({end})) as batch:
        ids = [token for _, token in batch.tokens()]
        assert batch.answers[0].finish_reason == "stop"
    assert tuple(ids) == free[: first + 1]
    assert lm._session.held[0] == [*request.prompt_ids, *free[:first]]


def test_cancelled_among_right_guesses(lm: edgelm.LanguageModel) -> None:
    """Not a token after the event, and the row holds what it says."""
    free = lm.generate(PROMPT, max_new_tokens=60, speculate="off").token_ids
    for closing in (False, True):
        knowing(lm, free).drafter.guess = lambda ids, count: list(free[len(ids.new) :][:count])
        event, ids = threading.Event(), []
        with lm.batch([Request(tuple(lm.encode(PROMPT)), 60)], frozenset(), event.is_set) as batch:
            tokens = batch.tokens()
            for _, token in tokens:
                ids.append(token)
                if len(ids) == 5 and closing:
                    tokens.close()
                elif len(ids) == 5:
                    event.set()
        assert tuple(ids) == free[:5]
        held = lm._session.held[0]
        assert len(held) == lm._session.cache.lengths[0]
        assert held == [*lm.encode(PROMPT), *free][: len(held)]
    longer = [*lm.encode(PROMPT), *free[:9]]
    kept = lm.generate(longer, max_new_tokens=9, keep_prefix=True, speculate="off")
    assert kept.token_ids == free[9:18] and kept.stats.kept_tokens == min(
        len(held), len(longer) - 1
    )


def test_drawn_answers_and_batches_are_not_guessed(lm: edgelm.LanguageModel, assets: Path) -> None:
    lm._session.speculation = Keen(lm._session.speculation.drafter, lm.plan.draft_depth)
    prompt = (PROMPT + ". ") * 3
    assert lm.generate(prompt, max_new_tokens=20).stats.drafted_tokens
    drawn = lm.generate(prompt, max_new_tokens=20, temperature=0.5, seed=1)
    assert not drawn.stats.drafted_tokens
    settings = {"quant": "none", "context": 128, "chunk": 24, "rows": 2}
    with edgelm.load(assets / "nano" / "llama", **settings) as both:
        both._session.speculation = Keen(both._session.speculation.drafter, both.plan.draft_depth)
        options: dict[str, Any] = {"max_new_tokens": [20, 38]}
        found = both.generate([prompt, prompt], **options)
        plain = both.generate([prompt, prompt], speculate="off", **options)
    assert [a.token_ids for a in found] == [a.token_ids for a in plain]
    assert not found[0].stats.drafted_tokens, "guessed beside another answer"
    assert found[1].stats.drafted_tokens, "the answer that is left runs alone"


def test_wrong_words(lm: edgelm.LanguageModel, assets: Path) -> None:
    with pytest.raises(edgelm.UsageError, match="allowed: auto, off"):
        lm.generate(PROMPT, speculate="always")
    with pytest.raises(edgelm.UsageError, match="draft_depth"):
        edgelm.plan(assets / "nano" / "llama", draft_depth=-1)


@pytest.mark.skipif(native.missing() is not None, reason=f"no native library: {native.missing()}")
def test_the_plan_has_what_guesses_take(assets: Path) -> None:
    folder = assets / "nano" / "llama"
    off, on = (edgelm.plan(folder, context=256, chunk=9, draft_depth=n) for n in (0, 20))
    assert (off.draft_depth, on.draft_depth) == (0, 8)
    taken = [{p.name: p.bytes for p in plan.parts} for plan in (off, on)]
    assert "speculation" not in taken[0] and taken[1]["speculation"] == 4 * 256
    assert taken[1]["logits"] == 9 * taken[0]["logits"]
    with edgelm.load(folder, quant="none", context=64, draft_depth=0) as lm:
        assert lm.generate(PROMPT, max_new_tokens=5).stats.drafted_tokens == 0


# what guesses may lose


def simulated(
    costs: list[float], share: list[float], tokens: int = 4000, strength: int = 1
) -> tuple[float, Any]:
    """Time of an answer over that of plain steps; guesses are right with a share for each stretch.

    costs: what a guessed token adds, in steps, for each stretch of the answer.
    """
    random_ = random.Random(1)
    guide = Speculation(Knowing(()), 15)
    guide.drafter.guess = lambda ids, count: [0] * count
    guide.drafter.strength = lambda ids: strength
    answer = Answer(0, Request((1,), tokens), tokens, frozenset(), Call(nullcontext, True), deque())
    guide.begin(answer)
    spent = 0.0
    while (made := len(answer.ids.new)) < tokens:
        stretch = made * len(share) // tokens
        guessed = guide.guess(answer)
        right = 0
        while right < len(guessed) and random_.random() < share[stretch]:
            right += 1
        took = 1 + costs[stretch] * len(guessed)
        if guessed:
            guide.verified(len(guessed), right, took)
        else:
            guide.stepped(took)
        spent += took
        answer.ids.new.extend([0] * (right + 1))
    return spent / len(answer.ids.new), guide


@pytest.mark.parametrize("cost", [0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_wrong_guesses_cost_little(cost: float, share: float) -> None:
    """Never more than the bound; at worst a guessed token costs what a step of its own does."""
    for tokens in (100, 1000):
        ratio, _ = simulated([cost], [share], tokens)
        print(f"cost {cost}, right {share:.0%}, {tokens} tokens: {ratio:.3f} of the plain time")
        assert ratio < 1 + LONGEST_LOSS


def test_guesses_that_only_seem_certain_cost_little() -> None:
    """A match of twelve tokens promises much; what is in the account limits the first try."""
    ratio, _ = simulated([0.5], [0.0], 100, strength=12)
    print(f"{ratio:.3f} of the plain time")
    assert ratio < 1 + LONGEST_LOSS


def test_right_guesses_pay_and_fashions_change() -> None:
    ratio, _ = simulated([0.1], [0.95])
    print(f"95 % right at a tenth of a step: {ratio:.2f} of the plain time")
    assert ratio < 0.35
    ratio, _ = simulated([0.1, 0.1], [0.0, 0.95])
    print(f"0 %, then 95 % right: {ratio:.2f}")
    assert ratio < 0.75
    alone, _ = simulated([0.1], [0.95], 2000)
    ratio, _ = simulated([0.1, 0.1], [0.95, 0.0])
    print(f"95 %, then 0 % right: {ratio:.2f}, the first half alone {alone:.2f}")
    assert 2 * ratio - alone < 1 + LONGEST_LOSS
    ratio, _ = simulated([0.1, 1.0], [0.7, 0.7])
    print(f"a tenth of a step, then a whole one for a guess: {ratio:.2f}")
    assert ratio < 0.85


def test_an_answer_cannot_spend_what_another_won() -> None:
    _, guide = simulated([0.05], [1.0], 300)
    assert guide.balance > 4
    guide.begin(Answer(0, Request((1,), 50), 50, frozenset(), Call(nullcontext, True), deque()))
    assert guide.balance <= 0.5


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.integers(0, 3), min_size=2, max_size=60), cut=st.integers(1, 59))
def test_lookup_is_the_search_by_hand(text: list[int], cut: int) -> None:
    """The longest end that stood before, its latest place, and what followed there."""
    cut = min(cut, len(text) - 1)
    lookup = PromptLookup(64, lambda _, shape, kind: torch.zeros(shape, dtype=kind))
    lookup.begin(SoFar((9, 9, 9)), SamplingSettings())
    ids = SoFar(tuple(text[:cut]))
    lookup.begin(ids, SamplingSettings())
    ids.new.extend(text[cut:])
    strength = lookup.strength(ids)
    longest, place = 0, 0
    for length in range(1, 13):
        for at in range(len(text) - length):
            if at + length < len(text) and text[at : at + length] == text[-length:]:
                longest, place = length, at + length
    assert strength == (longest if longest >= 2 else 0)
    if strength:
        follows, period = list(text), len(text) - place
        for _ in range(15):
            follows.append(follows[-period])
        assert lookup.guess(ids, 15) == follows[len(text) :]
