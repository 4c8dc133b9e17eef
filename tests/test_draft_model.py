"""Draft models: the text stays the large model's own, and the plan has both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import load_exact
from test_speculation import PROMPT, Keen, check_same

import edgelm
from edgelm.generation.draft_model import check_tokens

CONTEXT = 200


PAIRS = ["llama helium", "gemma2 llama", "llama gemma2", "bloom bloom"]


@pytest.fixture(scope="module", params=PAIRS)
def lm(assets: Path, request: pytest.FixtureRequest) -> Iterator[edgelm.LanguageModel]:
    """A model and its draft; Gemma 2's window of 64 is shorter than the texts."""
    target, draft = (assets / "nano" / name for name in request.param.split())
    with load_exact(target, draft=draft, context=CONTEXT, chunk=20) as model:
        model._session.speculation = Keen(model._session.speculation.drafter, 6)
        yield model


def test_the_text_stays(lm: edgelm.LanguageModel) -> None:
    """Greedy, drawn, in a schema, with penalties; who drafts for itself is mostly right."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 9}
    asked: list[dict[str, Any]] = [
        {"max_new_tokens": 80},
        {"temperature": 0.8, "seed": 3, "max_new_tokens": 20},
        {"schema": schema, "max_new_tokens": 20},
        {"repetition_penalty": 1.3, "max_new_tokens": 20, "stop": ["\x00"], "logprobs": 1},
    ]
    for options in asked:
        plain = lm.generate(PROMPT, speculate="off", **options)
        guessed = lm.generate(PROMPT, **options)
        fork = check_same(lm, lm.encode(PROMPT), plain.token_ids, guessed.token_ids)
        stats = guessed.stats
        print(f"{options}: {stats.accepted_tokens} of {stats.drafted_tokens} right, {fork} forks")
        assert stats.drafted_tokens and not plain.stats.drafted_tokens
        if "schema" not in options:
            assert stats.accepted_tokens > 0
            own = "bloom" in lm.name
            assert not own or stats.accepted_tokens > 0.8 * stats.drafted_tokens


def test_a_draft_runs_only_what_is_new(lm: edgelm.LanguageModel) -> None:
    """Its cache follows the text: after a guess at most the tokens that it did not say itself."""
    draft, sizes = lm._session.speculation.drafter, []
    original = draft._engine.run

    def counted(cache: Any, batch: Any) -> Any:
        sizes.append(len(batch[0].tokens))
        return original(cache, batch)

    draft._engine.run = counted
    try:
        prompt = lm.encode(PROMPT)
        out = lm.generate(prompt, max_new_tokens=30, keep_prefix=True)
        first = list(sizes)
        sizes.clear()
        lm.generate([*prompt, *out.token_ids, 70, 71], max_new_tokens=3, keep_prefix=True)
    finally:
        draft._engine.run = original
    print(first, sizes)
    assert max(first[2:]) <= 2, "more than the newest two tokens were run for a guess"
    assert sizes[0] <= 7 + 2, "the second turn ran what the draft held"


def test_both_are_in_the_plan(assets: Path) -> None:
    target, draft = assets / "nano" / "gemma2", assets / "nano" / "llama"
    settings: dict[str, Any] = {"quant": "int8", "context": 128, "chunk": 16, "kv": "bfloat16"}
    alone, both = edgelm.plan(target, **settings), edgelm.plan(target, draft=draft, **settings)
    with edgelm.load(target, draft=draft, **settings) as lm:
        planned = {part.name: part.bytes for part in lm.plan.parts}
        taken = dict(lm.ledger.taken)
        named = [{p.name: p.bytes for p in plan.parts} for plan in (lm.plan, both)]
        assert named[0] | {"runtime": 0} == named[1] | {"runtime": 0}
        engine = lm._session.speculation.drafter._engine
        buffers = {b.data_ptr(): b.nbytes for b in engine.decoder.buffers() if b is not None}
    assert taken == {name: planned[name] for name in taken}
    assert set(planned) - set(taken) <= {"runtime", "kernel scratch"}
    assert sum(n for name, n in taken.items() if name.startswith("draft.weights")) == sum(
        buffers.values()
    )
    assert both.weight_bytes == alone.weight_bytes
    assert both.steady_peak_bytes > alone.steady_peak_bytes + taken["draft.weights.mlp"]
    middle = (alone.predicted_peak_bytes + both.predicted_peak_bytes) // 2
    with pytest.raises(edgelm.DoesNotFitError):
        edgelm.load(target, draft=draft, budget=middle, **settings)


def test_a_short_draft_stops_guessing(assets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(assets / "nano" / "llama", folder)
    config = (folder / "config.json").read_text()
    known = '"max_position_embeddings": '
    at = config.index(known) + len(known)
    (folder / "config.json").write_text(config[:at] + "40" + config[config.index(",", at) :])
    with load_exact(assets / "nano" / "llama", draft=folder, context=100) as lm:
        lm._session.speculation = Keen(lm._session.speculation.drafter, 6)
        plain = lm.generate(PROMPT, max_new_tokens=60, speculate="off")
        guessed = lm.generate(PROMPT, max_new_tokens=60)
        assert lm._session.speculation.drafter._cache.context == 40
        long = lm.generate(list(range(5, 65)), max_new_tokens=5)
    assert guessed.token_ids == plain.token_ids
    assert 5 < guessed.stats.drafted_tokens < 40 and long.stats.drafted_tokens == 0


def test_other_tokens_are_refused(assets: Path, tmp_path: Path) -> None:
    nano = assets / "nano" / "llama"
    other = tmp_path / "other"
    shutil.copytree(nano, other)
    shutil.copy(assets / "tokenizers" / "helium" / "tokenizer.model", other / "tokenizer.model")
    with pytest.raises(edgelm.UsageError, match="48000 tokens, not 2048"):
        edgelm.load(nano, draft=other, quant="none", context=64)
    with pytest.raises(edgelm.UsageError, match="draft_depth"):
        edgelm.load(nano, draft=nano, quant="none", context=64, draft_depth=0)

    class Twisted:
        """The same tokens but for one, or the same in another order of writing."""

        def __init__(self, tokenizer: Any, swap: bool) -> None:
            self.own, self.swap, self.vocab_size = tokenizer, swap, tokenizer.vocab_size

        def token_of(self, index: int) -> Any:
            return "?" if self.swap and index == 300 else self.own.token_of(index)

        def encode(self, text: str) -> list[int]:
            return self.own.encode(text) if self.swap else self.own.encode(text)[1:]

    with edgelm.load(nano, quant="none", context=64) as lm:
        check_tokens("a", lm.tokenizer, "b", lm.tokenizer)
        for swap, words in ((True, "token 300 is '\\?'"), (False, "in other tokens")):
            with pytest.raises(edgelm.UsageError, match=words):
                check_tokens("a", Twisted(lm.tokenizer, swap), "b", lm.tokenizer)  # type: ignore[arg-type]
