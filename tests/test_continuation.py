"""Contexts and continuations: what is scored is the continuation, whole, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizer import BPE, Load, from_metadata, load  # noqa: F401  (a fixture)

import edgelm
from edgelm.text.continuation import Encoded, encode_pair
from edgelm.text.tokenizer import Tokenizer

EXACT: dict[str, Any] = {"quant": "none", "dtype": "float32", "kv": "float32"}
FOLDERS = [f"tokenizers/{n}" for n in ("llama2", "llama3", "gemma2", "helium")]
FOLDERS += [f"nano/{n}" for n in ("llama", "gemma2", "helium", "persimmon", "bloom")]
SUM_DIFFERENCE = 2e-4
"""Between sums of a text's log-likelihoods that are taken in other parts, in nats."""

PIECES = st.sampled_from(
    ["wor", "ld", " ", "  ", "\n", "The capital of", " France", "1", "23", ".", "é", "字", "🦙"]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=6).map("".join)


def begin(tokenizer: Tokenizer) -> str:
    """A context for tokenizers that begin no text with BOS."""
    return "" if tokenizer.add_bos else "So: "


@pytest.mark.parametrize("name", FOLDERS)
def test_a_continuation_has_ids_of_its_own(load: Load, name: str) -> None:  # noqa: F811
    """Whatever joins: the context's ids stay, and the rest spells the continuation."""
    tokenizer = load(name)

    @settings(max_examples=200, deadline=None, suppress_health_check=[*HealthCheck])
    @given(TEXTS, TEXTS)
    def check(context: str, continuation: str) -> None:
        context = begin(tokenizer) + context
        if continuation and not tokenizer.encode_later(continuation):
            with pytest.raises(edgelm.UsageError, match="has no tokens"):
                encode_pair(tokenizer, context.rstrip(), continuation)
            return
        pair = encode_pair(tokenizer, context, continuation)
        kept = context if not continuation else context.rstrip()
        assert pair.ids[: len(pair.ids) - pair.count] == tuple(tokenizer.encode(kept))
        assert (pair.count == 0) == (continuation == "")
        if continuation:
            own = list(pair.ids[-pair.count :])
            expected = context[len(kept) :] + continuation
            spelled = tokenizer.decode(own, continues=True)
            # Some of these tokenizers normalize white space, and have no token for all else.
            if tokenizer.decode(tokenizer.encode(expected)).split() == expected.split():
                assert "".join(spelled.split()) == "".join(expected.split())

    check()


@pytest.fixture(scope="module", params=["llama", "gemma2", "helium", "persimmon", "bloom"])
def lm(assets: Path, request: pytest.FixtureRequest) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / request.param, context=128, **EXACT) as model:
        yield model


def test_scores_are_below_zero(lm: edgelm.LanguageModel) -> None:
    """Probability one is for the empty continuation alone."""
    texts = ["The capital of", "The capital of ", "hello wor", "a\n", "Answer:", "Answer: "]
    pairs = [(text, end) for text in texts for end in ("France", " France", "ld", " a", "")]
    for (context, end), score in zip(pairs, lm.score_all(pairs), strict=True):
        assert score.log_likelihood < 0 if end else score.log_likelihood == 0, (context, end)
        assert score.log_likelihood == math.fsum(score.token_log_likelihoods)
        assert len(score.token_ids) == len(score.token_log_likelihoods)
    print(lm.name, lm.score("The capital of ", "France"))


def test_spaces_go_over(lm: edgelm.LanguageModel) -> None:
    for spaces in (" ", "  ", "\n"):
        before = lm.score(f"The capital of{spaces}", "France")
        assert before == lm.score("The capital of", f"{spaces}France")


def test_scores_add_up_at_the_boundaries_of_tokens(lm: edgelm.LanguageModel, assets: Path) -> None:
    """P(b | a) P(c | ab) = P(bc | a), where neither boundary lies within a token."""
    text = " ".join((assets / "nano" / "heldout.txt").read_text().split())[:300]
    ids = lm.tokenizer.encode(text, add_special=False)
    cuts = [at for at in range(3, 60) if clean(lm.tokenizer, ids, at)]
    assert len(cuts) > 10
    for first, second in zip(cuts[::4], cuts[3::4], strict=False):
        a, b, c = (lm.decode(ids[:first]), lm.decode(ids[:second]), lm.decode(ids[:70]))
        parts = lm.score(a, b[len(a) :]) + lm.score(b, c[len(b) :])
        assert parts == pytest.approx(lm.score(a, c[len(a) :]), abs=SUM_DIFFERENCE)


def clean(tokenizer: Tokenizer, ids: list[int], at: int) -> bool:
    """True if the text of the first ids encodes to them, and ends in no white space."""
    text = tokenizer.decode(ids[:at])
    return tokenizer.encode(text, add_special=False) == ids[:at] and text == text.rstrip()


def test_a_join_within_a_word_is_scored_by_itself(lm: edgelm.LanguageModel) -> None:
    """Ids of "ld" as they stand alone, after those of the context."""
    start, own = lm.encode("hello wor"), lm.tokenizer.encode_later("ld")
    assert lm.tokenizer.encode("hello world", add_special=False)[: len(start)] != start
    expected = lm.log_likelihoods(start + own)[len(start) - 1 :].sum()
    assert lm.score("hello wor", "ld") == pytest.approx(float(expected), abs=SUM_DIFFERENCE)


def test_side_by_side_is_as_alone(lm: edgelm.LanguageModel) -> None:
    """Neighbours that share a prompt, more than fit side by side, of different lengths."""
    context = "The king said to the"
    ends = [" queen", " king of all", ", and then", "", " old man " * 5, ".", " it", " a", " b c"]
    pairs = [(context, end) for end in ends] + [("Once", " upon a time"), (context, " queen")]
    for pair, score in zip(pairs, lm.score_all(pairs), strict=True):
        [alone] = lm.score_all([pair])
        assert score.token_ids == alone.token_ids and score.is_greedy == alone.is_greedy
        assert score.token_log_likelihoods == pytest.approx(
            alone.token_log_likelihoods, abs=SUM_DIFFERENCE
        )
    assert lm.ledger.planned["evaluation"] == 0
    likeliest = lm.generate(lm.encode(context), max_new_tokens=3, temperature=0.0)
    choice = Encoded((*lm.encode(context), *likeliest.token_ids), 3)
    wrong = Encoded((*choice.ids[:-1], (choice.ids[-1] + 1) % lm.config.vocab_size), 3)
    [scores] = lm.score_choices([[choice, wrong]])
    assert [score.is_greedy for score in scores] == [True, False]


def test_a_text_that_goes_on_never_ends_in_eos(assets: Path, tmp_path: Path) -> None:
    """``add_eos_token`` puts EOS after a whole text, and not after a prompt or a context."""
    folder = Path(shutil.copytree(assets / "nano" / "llama", tmp_path / "llama"))
    config = folder / "tokenizer_config.json"
    data = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps(data | {"add_eos_token": True}))
    with edgelm.load(folder, context=64, **EXACT) as lm:
        plain, eos = lm.tokenizer.encode("hello"), lm.tokenizer.eos_id
        assert lm.tokenizer.add_eos and eos not in plain
        assert lm.tokenizer.encode_whole("hello") == [*plain, eos]
        assert lm.generate("hello", max_new_tokens=1).stats.prompt_tokens == len(plain)
        pair = encode_pair(lm.tokenizer, "hello", " there")
        assert eos not in pair.ids


def test_an_empty_context_is_bos(lm: edgelm.LanguageModel) -> None:
    assert lm.tokenizer.add_bos
    expected = float(lm.log_likelihoods(lm.encode("Once upon")).sum())
    assert lm.score("", "Once upon") == pytest.approx(expected, abs=SUM_DIFFERENCE)


def test_an_empty_context_needs_bos() -> None:
    tokenizer = from_metadata(BPE)
    assert not tokenizer.add_bos and encode_pair(tokenizer, "a", "b").ids == (2, 3)
    for context in ("", " \n"):
        with pytest.raises(edgelm.UsageError, match="context is empty"):
            encode_pair(tokenizer, context, "ab")


def test_too_long_is_said(lm: edgelm.LanguageModel) -> None:
    with pytest.raises(edgelm.ContextLengthError, match="context of 128") as caught:
        lm.score("word " * 200, "end")
    assert caught.value.allowed == 128
    with pytest.raises(edgelm.UsageError, match="at least two"):
        lm.log_likelihoods([1])
    assert lm.score_all([]) == [] and torch.is_tensor(lm.log_likelihoods([1, 5]))
