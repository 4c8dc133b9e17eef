"""Rows of a cache: chunks, truncation, snapshots; always equal to no cache at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import assert_close, load_exact

import edgelm
from edgelm.ops.cache_sizes import cache_parts

CONTEXT = 40


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgelm.LanguageModel]:
    _, folder = oracle.llama(tmp_path_factory.mktemp("llama"))
    with load_exact(folder, context=CONTEXT, chunk=11) as model:
        yield model


def ids(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, 200, shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_chunks_truncations_and_restores(
    lm: edgelm.LanguageModel, data: st.DataObject
) -> None:
    """Whatever happened to a row before, its logits are those of its text alone."""
    cache, row_ids = lm.new_cache(rows=2), [[], []]
    saved = None
    for _ in range(data.draw(st.integers(1, 8), "operations")):
        row = data.draw(st.integers(0, 1), "row")
        action = data.draw(st.sampled_from(["add", "add", "cut", "save", "restore"]), "action")
        if action == "add":
            count = data.draw(st.integers(1, 9), "count")
            count = min(count, CONTEXT - len(row_ids[row]))
            if count == 0:
                continue
            new = ids(count, seed=data.draw(st.integers(0, 99), "seed"))
            out = _step(lm, cache, row, new)
            row_ids[row] += new.tolist()
            alone = lm.forward(torch.tensor([row_ids[row]])).logits[0, -count:]
            assert oracle.share_of_range(out, alone) < oracle.RANGE_BOUND
        elif action == "cut" and row_ids[row]:
            length = data.draw(st.integers(0, len(row_ids[row])), "length")
            assert cache.truncate(row, length)
            del row_ids[row][length:]
        elif action == "save":
            saved = (cache.snapshot(row), list(row_ids[row]))
        elif action == "restore" and saved is not None:
            cache.restore(row, saved[0])
            row_ids[row] = list(saved[1])
        assert cache.lengths == [len(r) for r in row_ids]


def _step(lm: edgelm.LanguageModel, cache: edgelm.KVCache, row: int, new: torch.Tensor):
    engine = lm._session.engine
    hidden = engine.run(cache, [edgelm.engine.engine.RowTokens(row, new)]).states
    return engine.logits(hidden, torch.empty(len(new), lm.config.vocab_size))


def test_rows_of_different_lengths_in_one_step(lm: edgelm.LanguageModel) -> None:
    cache, rows = lm.new_cache(rows=3), [ids(4, seed=1), ids(9, seed=2), ids(1, seed=3)]
    for row, tokens in enumerate(rows):
        _step(lm, cache, row, tokens)
    out = lm.forward(torch.tensor([[7], [8], [9]]), cache=cache).logits
    for row, tokens in enumerate(rows):
        alone = lm.forward(torch.cat([tokens, torch.tensor([7 + row])])[None])
        assert_close(out[row, -1], alone.logits[0, -1], f"row {row}")
    assert cache.lengths == [5, 10, 2]
    assert cache.starts == [0, 0, 0]


def test_bytes_are_the_formula(lm: edgelm.LanguageModel) -> None:
    for kv, size in (("float32", 4), ("bfloat16", 2)):
        cache = lm.new_cache(rows=3, context=17, kv=kv)
        expected = 2 * 3 * 3 * 17 * 2 * 16 * size  # keys and values, layers, rows, tokens, G, D
        assert cache.nbytes == expected
        assert cache_parts(lm.config, 3, 17, 11, cache.dtype) == {
            ("kv cache.full", "host"): expected
        }


def test_bfloat16_cache_stays_near(lm: edgelm.LanguageModel) -> None:
    tokens = ids(1, 30)
    exact = lm.forward(tokens).logits
    rounded = lm.forward(tokens, cache=lm.new_cache(kv="bfloat16")).logits
    share = oracle.share_of_range(rounded, exact)
    print(f"bfloat16 cache: {share:.1e} of the range")
    assert 0 < share < 2e-2


def test_a_snapshot_brings_back_keys_and_values(lm: edgelm.LanguageModel) -> None:
    """Into another row, whose memory held something else."""
    cache, tokens = lm.new_cache(rows=2), ids(9)
    _step(lm, cache, 0, tokens)
    _step(lm, cache, 1, ids(11, seed=8))
    cache.restore(1, cache.snapshot(0))
    out = _step(lm, cache, 1, torch.tensor([7]))
    alone = lm.forward(torch.cat([tokens, torch.tensor([7])])[None]).logits[0, -1:]
    assert_close(out, alone)


def test_a_full_row_is_refused_and_unchanged(lm: edgelm.LanguageModel) -> None:
    cache = lm.new_cache()
    lm.forward(ids(1, CONTEXT - 1), cache=cache)
    with pytest.raises(edgelm.ContextLengthError) as caught:
        lm.forward(ids(1, 2), cache=cache)
    assert (caught.value.given, caught.value.allowed) == (CONTEXT + 1, CONTEXT)
    assert cache.lengths == [CONTEXT - 1]
    lm.forward(ids(1, 1), cache=cache)


def test_misuse_is_refused(lm: edgelm.LanguageModel, tmp_path: Path) -> None:
    cache = lm.new_cache()
    lm.forward(ids(1, 5), cache=cache)
    for call in (
        lambda: cache.truncate(1, 0),
        lambda: cache.truncate(-1, 0),
        lambda: cache.truncate(0, 6),
        lambda: cache.snapshot(3),
        lambda: lm.new_cache(rows=0),
        lambda: lm.new_cache(context=CONTEXT + 1),
        lambda: lm.new_cache(kv="int3"),
        lambda: lm.forward(ids(2, 3), cache=cache),
    ):
        with pytest.raises(edgelm.UsageError):
            call()
    _, folder = oracle.llama(tmp_path)
    with load_exact(folder, context=CONTEXT) as other:
        foreign = other.new_cache()
        other.forward(ids(1, 5), cache=foreign)
        with pytest.raises(edgelm.UsageError, match="another loaded model"):
            cache.restore(0, foreign.snapshot(0))
    assert cache.lengths == [5]
