"""Recorded decode steps: the bits of a prompt run at once, in every family, cache and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.engine.engine import RowTokens
from edgelm.ops.cache import KVCache
from quant import native, sqnr_db
from quant.native.tape import Tape

FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
# Activations rounded to 8 bits leave 45 to 52 dB of the logits on these models.
LOGITS_FLOOR_DB = 40.0
LENGTH, PROMPT = 60, 23  # Gemma 2's window is passed, and chunks of 16 are no divisor

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


def opened(assets: Path, family: str, **settings: Any) -> edgelm.LanguageModel:
    own = {"quant": "int4", "context": LENGTH, "chunk": 16, "rows": 3} | settings
    return edgelm.load(assets / "nano" / family, **own)


def ids_of(rows: int) -> torch.Tensor:
    return torch.randint(5, 400, (rows, LENGTH), generator=torch.Generator().manual_seed(2))


def step(lm: edgelm.LanguageModel, cache: KVCache, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] after one more token of each row, as the generation loop gets them."""
    engine = lm._session.engine
    hidden = engine.run(cache, [RowTokens(row, own.tolist()) for row, own in enumerate(ids)])
    return engine.judge(hidden)[0].clone()


def stepwise(lm: edgelm.LanguageModel, ids: torch.Tensor, **cache: Any) -> torch.Tensor:
    """Logits [B, T, V] of a prompt and then one token at a time."""
    held = lm.new_cache(len(ids), LENGTH, **cache)
    prompt = lm.forward(ids[:, :PROMPT], cache=held).logits
    assert prompt is not None
    steps = [step(lm, held, ids[:, t : t + 1]) for t in range(PROMPT, LENGTH)]
    return torch.cat([prompt, torch.stack(steps, 1)], 1)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of calls in each step that was run again, heads left out."""
    counted: list[int] = []
    run = Tape.__call__

    def counting(tape: Tape) -> None:
        if any(call.function == "edgelm_attend" for call in tape.calls):
            counted.append(len(tape.calls))
        run(tape)

    monkeypatch.setattr(Tape, "__call__", counting)
    return counted


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_give_the_bits_of_a_prompt(
    assets: Path, family: str, replays: list[int]
) -> None:
    ids = ids_of(3)
    with opened(assets, family) as lm, opened(assets, family, backend="reference") as exact:
        whole = lm.forward(ids).logits
        measured = sqnr_db(exact.forward(ids).logits, whole)
        assert measured >= LOGITS_FLOOR_DB
        assert torch.equal(stepwise(lm, ids), whole)
        print(f"{family}: {measured:.1f} dB to the reference, {replays[0]} calls a step")
        assert len(replays) == LENGTH - PROMPT - 1 and min(replays) > 10 * 4
        for row in range(3):
            assert torch.equal(stepwise(lm, ids[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
def test_caches_of_fewer_bits_are_recorded(assets: Path, kv: str, replays: list[int]) -> None:
    ids = ids_of(2)
    with opened(assets, "gemma2", kv=kv) as lm:
        assert torch.equal(stepwise(lm, ids), lm.forward(ids).logits) and replays


def test_float16_caches_run_on_the_reference(assets: Path, replays: list[int]) -> None:
    ids = ids_of(2)
    with opened(assets, "gemma2", kv="float16") as lm:
        half = stepwise(lm, ids)
        assert not replays
        measured = sqnr_db(stepwise(lm, ids, kv="float32"), half)
        print(f"float16 against float32 caches: {measured:.1f} dB")
        assert measured >= LOGITS_FLOOR_DB and replays


def test_each_cache_has_tapes_of_its_own(assets: Path, replays: list[int]) -> None:
    """Two conversations in turn: a tape writes into the cache that it was recorded with."""
    ids = ids_of(2)
    with opened(assets, "llama") as lm:
        expected = [stepwise(lm, ids[row : row + 1]) for row in range(2)]
        caches = [lm.new_cache(1, LENGTH) for _ in range(2)]
        for row, cache in enumerate(caches):
            lm.forward(ids[row : row + 1, :PROMPT], cache=cache)
        for t in range(PROMPT, LENGTH):
            for row, cache in enumerate(caches):
                logits = step(lm, cache, ids[row : row + 1, t : t + 1])
                assert torch.equal(logits[0], expected[row][0, t])
        assert replays


def test_numbers_of_a_replayed_step_are_checked(assets: Path, replays: list[int]) -> None:
    ids = ids_of(1)[:, :1]
    with opened(assets, "llama") as lm:
        cache = lm.new_cache(1, LENGTH)
        for _ in range(2):
            step(lm, cache, ids)
        assert replays
        last, layer = (
            lm._session.engine.decoder.norm,
            lm._session.engine.decoder.layers[1].attn_norm,
        )
        before = last.weight.clone()
        last.weight.fill_(1e38)  # finite hidden states whose products are not
        with pytest.raises(edgelm.NonFiniteError, match="head"):
            step(lm, cache, ids)
        last.weight.copy_(before)
        layer.weight.fill_(torch.nan)
        length = cache.lengths[0]
        with pytest.raises(edgelm.NonFiniteError, match=r"layers\.1"):
            step(lm, cache, ids)
        assert cache.lengths[0] == length
