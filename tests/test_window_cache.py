"""Rings for layers with a window: whatever was written, cut or restored, queries see their window.

Two levels: positions stored as keys, over random windows and chunks; and Gemma 2's logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgelm
from edgelm.engine.engine import RowTokens
from edgelm.models import llama
from edgelm.ops.cache import KVCache
from edgelm.ops.cache_sizes import cache_parts, ring_slots
from edgelm.ops.reference import causal_mask

CONTEXT = 60

CONFIG = llama.read_config(
    {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
     "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT}
)  # fmt: skip


def zeros(
    part: str, shape: tuple[int, ...], dtype: torch.dtype, where: str | None = None
) -> torch.Tensor:
    """What a cache takes its memory from, without a plan."""
    return torch.zeros(shape, dtype=dtype)


def hybrid(window: int, chunk: int, dtype: torch.dtype = torch.float32) -> KVCache:
    """One row of a full layer and one with a window; keys are 8 numbers."""
    config = replace(CONFIG, windows=(None, window))

    return KVCache(config, 1, CONTEXT, chunk, dtype, zeros, owner=None)


def write_positions(cache: KVCache, count: int) -> list[set[int]]:
    """Store ``count`` tokens whose keys are their positions; what each query of them sees."""
    start = cache.lengths[0]
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    keys = numbers.view(-1, 1, 1).expand(-1, 1, 8)
    slots = [torch.tensor(store.flat_slots(0, start, count)) for store in cache.stores]
    seen: list[set[int]] = []
    for layer in (0, 1):
        cache.write(layer, slots, keys, keys)
        store = cache.stores[cache.store_of(layer)]
        positions = store.key_positions(start + count)
        stored = cache.read(layer, 0, count).keys[:, 0, 0]
        mask = torch.empty(count, len(positions))
        causal_mask(torch.arange(start, start + count), positions, store.window, mask)
        for query in range(count):
            visible = mask[query] == 0
            assert torch.equal(stored[visible], positions[visible].float()), "a stale key is seen"
            if layer == 1:
                seen.append(set(positions[visible].tolist()))
    cache.advance(0, count)
    return seen


@settings(max_examples=200, deadline=None)
@given(data=st.data(), window=st.integers(1, 12), chunk=st.integers(1, 9))
def test_every_query_sees_exactly_its_window(data: st.DataObject, window: int, chunk: int) -> None:
    cache, saved = hybrid(window, chunk), None
    for _ in range(data.draw(st.integers(1, 14), "operations")):
        action = data.draw(st.sampled_from(["add", "add", "add", "cut", "save", "restore"]))
        length = cache.lengths[0]
        if action == "add":
            count = min(data.draw(st.integers(1, chunk), "count"), CONTEXT - length)
            if count:
                expected = [
                    set(range(max(0, q - window + 1), q + 1)) for q in range(length, length + count)
                ]
                assert write_positions(cache, count) == expected
        elif action == "cut":
            kept = data.draw(st.integers(0, length), "kept")
            before = cache.lengths
            if not cache.truncate(0, kept):
                assert length - kept > 0 and cache.lengths == before
        elif action == "save":
            saved = cache.snapshot(0)
        elif saved is not None:
            cache.restore(0, saved)
            assert cache.lengths == [saved.length]


@pytest.mark.parametrize(("window", "chunk"), [(8, 5), (3, 7), (1, 4)])
def test_one_slot_fewer_is_wrong(window: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full chunks: exact with window + chunk - 1 slots, a stale or missing key with one less."""
    assert ring_slots(window, CONTEXT, chunk) == window + chunk - 1

    def run() -> bool:
        cache = hybrid(window, chunk)
        for start in range(0, 6 * chunk, chunk):
            expected = [
                set(range(max(0, q - window + 1), q + 1)) for q in range(start, start + chunk)
            ]
            if write_positions(cache, chunk) != expected:
                return False
        return True

    assert run()
    monkeypatch.setattr(
        "edgelm.ops.cache.ring_slots",
        lambda w, context, c: context if w is None else min(context, w + c - 2),
    )
    assert not run()


@pytest.mark.parametrize(("window", "chunk"), [(8, 5), (3, 7)])
def test_a_ring_undoes_at_most_a_chunk(window: int, chunk: int) -> None:
    cache = hybrid(window, chunk)
    for _ in range(4):
        write_positions(cache, chunk)
    full = cache.lengths[0]
    assert not cache.truncate(0, full - chunk - 1) and cache.lengths == [full]
    assert cache.starts == [full - (window + chunk - 1)]
    assert cache.truncate(0, full - chunk) and cache.lengths == [full - chunk]
    assert cache.truncate(0, 0) and cache.lengths == [0] and cache.starts == [0]


def test_gemma_2b_at_8k_is_the_formula() -> None:
    """facts: 624 MiB and 13 x (chunk - 1) x 4 KiB of ring slack in bfloat16, not 832."""
    windows = tuple(None if layer % 2 else 4096 for layer in range(26))
    config = replace(CONFIG, windows=windows, num_kv_heads=4, head_size=256)
    for chunk in (1, 512):
        parts = cache_parts(config, 1, 8192, chunk, torch.bfloat16)
        assert parts == {
            ("kv cache.full", "host"): 416 << 20,
            ("kv cache.window", "host"): (208 << 20) + 13 * (chunk - 1) * 4096,
        }


def test_rows_are_added_and_dropped() -> None:
    config = replace(CONFIG, windows=(None, 4))
    cache = KVCache(config, 2, CONTEXT, 4, torch.float32, zeros, owner=None)
    assert (cache.add(), cache.add()) == (0, 1)
    with pytest.raises(edgelm.UsageError, match="in use"):
        cache.add()
    cache.advance(0, 3)
    cache.drop(0)
    assert cache.lengths == [0, 0] and cache.add() == 0
    with pytest.raises(edgelm.UsageError, match="the rows of this cache"):
        cache.drop(2)


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    """The tiny Gemma 2: window 8, which neither 5 nor the texts' lengths divide."""
    folder = assets / "tiny-random" / "gemma2"
    with oracle.load_exact(folder, context=CONTEXT, chunk=5) as model:
        yield model


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gemma_rows_equal_their_text_alone(lm: edgelm.LanguageModel, data: st.DataObject) -> None:
    cache, texts, saved = lm.new_cache(rows=2), [[], []], None
    for _ in range(data.draw(st.integers(1, 10), "operations")):
        row = data.draw(st.integers(0, 1), "row")
        action = data.draw(st.sampled_from(["add", "add", "add", "cut", "save", "restore"]))
        if action == "add":
            new = data.draw(st.lists(st.integers(3, 200), min_size=1, max_size=5), "new")
            if len(texts[row]) + len(new) > CONTEXT:
                continue
            hidden = lm._session.engine.run(cache, [RowTokens(row, torch.tensor(new))]).states
            out = lm._session.engine.logits(hidden, torch.empty(len(new), lm.config.vocab_size))
            texts[row] = texts[row] + new
            alone = lm.forward(torch.tensor([texts[row]])).logits[0, -len(new) :]
            assert oracle.share_of_range(out, alone) < oracle.RANGE_BOUND
        elif action == "cut":
            length = data.draw(st.integers(0, len(texts[row])), "length")
            if cache.truncate(row, length):
                texts[row] = texts[row][:length]
        elif action == "save":
            saved = (cache.snapshot(row), texts[row])
        elif saved is not None:
            cache.restore(row, saved[0])
            texts[row] = saved[1]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_int8_caches_stay_near(assets: Path, family: str) -> None:
    """On trained weights: the share of positions whose likeliest token stays, and the bytes."""
    folder = assets / "nano" / family
    tokens = torch.tensor([list(range(5, 165))])
    with edgelm.load(folder, quant="none", context=160, chunk=32) as lm:
        exact = lm.forward(tokens).logits.log_softmax(-1)
        cache = lm.new_cache(kv="int8")
        full = lm.new_cache(kv="float32")
        rounded = lm.forward(tokens, cache=cache).logits.log_softmax(-1)
    divergence = float((exact.exp() * (exact - rounded)).sum(-1).mean())
    same = float((exact.argmax(-1) == rounded.argmax(-1)).float().mean())
    print(f"{family}: int8 cache KLD {divergence:.1e}, same top {same:.1%}")
    assert 0 < divergence < 2e-3
    assert same > 0.97
    assert cache.nbytes == full.nbytes * (64 + 2) / (4 * 64)
