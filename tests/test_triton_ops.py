"""Triton's operations against the reference, run number by number by Triton's interpreter.

No GPU is needed, and none is tested here: the interpreter computes what a kernel says, not how a
card rounds and orders it. Where there is a card, set TRITON_INTERPRET=1 to run this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import edgelm
from edgelm.config import RopeParameters
from edgelm.engine.cuda_graphs import GraphedSteps
from edgelm.engine.engine import Engine, Hidden, RowTokens
from edgelm.errors import NonFiniteError
from edgelm.ops import reference
from edgelm.ops.cache import KVCache
from edgelm.ops.position import Alibi, Angles, Rope
from edgelm.ops.reference import Scoring
from edgelm.ops.triton import SPLIT, TritonOps, serves, workspace_elements
from quant import sqnr_db

# Largest difference from the reference in float32, as a share of the result's largest magnitude.
ROW_ERROR = 2e-6
ATTENTION_ERROR = 3e-6
# In bfloat16 both round; the reference after every step, the kernels once.
BFLOAT16_ERROR = 2e-2
# The interpreter cuts numbers off where a card rounds them to bfloat16 (scales too).
BFLOAT16_TRUNCATED = 2.0**-7
# States of whole models in float32: what the order of additions leaves; and what cut scales do.
STATES_FLOOR_DB = 100.0
INT8_STATES_FLOOR_DB = 38.0
FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled"),
]


@pytest.fixture(scope="module", autouse=True)
def bounds_of_loops() -> Iterator[None]:
    """Triton 3.6 makes Python's integers of arrays with one number, which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda own: int(own.handle.data.item()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patch_lang_tensor)
        yield


def check(name: str, out: Tensor, expected: Tensor, bound: float = ROW_ERROR) -> None:
    out, expected = out.double(), expected.double()
    error = ((out - expected).abs().max() / expected.abs().max()).item()
    print(f"{name}: {error:.1e} of the largest number, bound {bound:.0e}")
    assert error <= bound


def wide(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens of ``shape`` that do not follow one another in memory."""
    token = torch.Size(shape[1:]).numel()
    return torch.randn(shape[0], token + 5).to(dtype)[:, 3:-2].view(shape)


def weight_of(size: int) -> Tensor:
    return torch.linspace(-1, 2, size)


def scratch(count: int) -> Tensor:
    return torch.empty(2 * count)


OURS = TritonOps(torch.empty(0), 0)
Run = Callable[[Any, Tensor], Tensor]
ROW_OPS: dict[str, Run] = {
    "rms_norm": lambda ops, x: ops.rms_norm(
        x, weight_of(x.shape[1]), 1e-5, torch.empty_like(x), scratch(len(x))
    ),
    "layer_norm": lambda ops, x: ops.layer_norm(
        x, weight_of(x.shape[1]), weight_of(x.shape[1]) - 0.7, 1e-5, torch.empty_like(x),
        scratch(len(x)),
    ),
    "add": lambda ops, x: ops.add_(x.clone(), x.cos()),
    "scale": lambda ops, x: ops.scale_(x.clone(), 3.7),
    "softcap": lambda ops, x: ops.softcap_(x.clone(), 1.5),
    "copy": lambda ops, x: ops.copy(x, torch.empty_like(x)),
    **{
        name: lambda ops, x, name=name: ops.activation(x, name, torch.empty_like(x))
        for name in reference.ACTIVATIONS
    },
    **{
        f"gated {name}": lambda ops, x, name=name: ops.gated_activation(
            torch.cat([x, x.sin()], dim=1), name, torch.empty_like(x)
        )
        for name in reference.ACTIVATIONS
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [75, 1056])
@pytest.mark.parametrize("name", ROW_OPS)
def test_row_operations_match_the_reference(name: str, size: int, dtype: torch.dtype) -> None:
    run, x = ROW_OPS[name], (wide(3, size) * 3).to(dtype)
    bound = ROW_ERROR if dtype == torch.float32 else BFLOAT16_ERROR
    check(name, run(OURS, x), run(reference, x), bound)


def test_heads_are_normed_each_by_itself() -> None:
    both, weight = wide(4, 5, 24), weight_of(24)
    out = torch.full((4, 5, 24), -1.0)
    OURS.layer_norm(both[:, :3], weight, weight, 1e-5, out[:, :3], torch.empty(0))
    expected = reference.layer_norm(
        both[:, :3], weight, weight, 1e-5, torch.empty(4, 3, 24), torch.empty(24)
    )
    check("heads", out[:, :3], expected)
    assert bool((out[:, 3:] == -1).all())


GROUPS, HEADS, SIZE = 2, 6, 40


class Rows:
    """A cache of one layer, its bytes of the kind that must never count where nobody wrote."""

    def __init__(self, dtype: torch.dtype, slots: int, window: int | None) -> None:
        config: Any = SimpleNamespace(windows=(window,), num_kv_heads=GROUPS, head_size=SIZE)
        chunk = 1 if window is None else slots - window + 1
        self.cache = KVCache(
            config, 3, slots if window is None else 10_000, chunk, dtype,
            lambda _, shape, kind, where: torch.full(shape, -1, dtype=torch.int8).repeat_interleave(
                kind.itemsize, -1).view(kind), None,
        )  # fmt: skip
        self.store = self.cache.stores[0]
        assert self.store.slots == slots
        self.partial = torch.full((200_000,), torch.nan)

    def step(self, *pieces: tuple[int, int, int]) -> Any:
        """What a step of (row, position, count) tells the operations."""
        segments, start = [], 0
        for row, position, count in pieces:
            segments.append(SimpleNamespace(row=row, position=position, count=count, start=start))
            start += count
        rows = [torch.full((count,), row) for row, _, count in pieces]
        positions = [torch.arange(at, at + count) for _, at, count in pieces]
        return SimpleNamespace(
            cache=self.cache, segments=segments, rows=torch.cat(rows),
            positions=torch.cat(positions),
        )  # fmt: skip

    def fill(self, row: int, count: int) -> None:
        """``count`` tokens of random keys and values, by the reference."""
        for start in range(0, count, self.store.slots):
            n = min(self.store.slots, count - start)
            new = torch.randn(2, n, GROUPS, SIZE)
            slots = torch.tensor(self.store.flat_slots(row, start, n))
            self.store.write(0, slots, (new[0], new[1]))

    def attend(self, step: Any, queries: Tensor, scoring: Scoring) -> Tensor:
        out = torch.full_like(queries, torch.nan)
        return TritonOps(self.partial, 2).attend(cast(Any, step), 0, queries, scoring, out)

    def expected(self, step: Any, queries: Tensor, scoring: Scoring) -> Tensor:
        found = []
        for segment in step.segments:
            length = segment.position + segment.count
            stored = self.store.read(0, segment.row, length)
            kept = self.store.key_positions(length)
            own = torch.arange(segment.position, length)
            mask = torch.empty(segment.count, len(kept))
            reference.causal_mask(own, kept, self.store.window, mask)
            elements = reference.AttentionScratch.elements(64, HEADS, len(kept), SIZE)
            widened = torch.empty(2 * stored.keys.numel())
            work = reference.AttentionScratch(torch.empty(elements), 64, widened)
            part = queries[segment.start : segment.start + segment.count]
            distances = (kept - length + 1).float()
            found.append(reference.attend_row(
                part, stored, mask, distances, scoring, torch.empty_like(part), work
            ))  # fmt: skip
        return torch.cat(found)


DTYPES = (torch.float32, torch.bfloat16, torch.int8)
SCORINGS = {
    "plain": Scoring(SIZE**-0.5),
    "capped": Scoring(0.3, softcap=4.0),
    "alibi": Scoring(SIZE**-0.5, slopes=Alibi(HEADS).slopes),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cache_holds_what_the_reference_writes(dtype: torch.dtype) -> None:
    ours, theirs = Rows(dtype, 21, 8), Rows(dtype, 21, 8)
    keys, values = wide(35, GROUPS, SIZE), wide(35, GROUPS, SIZE)
    keys[3] = 0
    for start in range(0, 35, 7):
        part = slice(start, start + 7)
        step = ours.step((1, start, 7))
        OURS.store(step, 0, keys[part], values[part])
        slots = torch.tensor(theirs.store.flat_slots(1, start, 7))
        theirs.store.write(0, slots, (keys[part], values[part]))
    held, expected = (own.store.read(0, 1, 35) for own in (ours, theirs))
    untouched = ours.store.memory[0][0, 0].float()
    assert bool((untouched == -1).all()) if dtype == torch.int8 else bool(untouched.isnan().all())
    if dtype == torch.float32:
        assert torch.equal(held.keys, expected.keys) and torch.equal(held.values, expected.values)
    for name, own, theirs in (
        ("keys", (held.keys, held.key_scales), (expected.keys, expected.key_scales)),
        ("values", (held.values, held.value_scales), (expected.values, expected.value_scales)),
    ):
        numbers = [
            codes.float() * (1 if scales is None else scales) for codes, scales in (own, theirs)
        ]
        check(name, *numbers, BFLOAT16_TRUNCATED)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [12, SIZE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotated_tokens_and_their_values_are_cached(
    dtype: torch.dtype, rotary: int, interleaved: bool
) -> None:
    rope = Rope(RopeParameters("default", 100.0, rotary, 64), interleaved)
    table = torch.empty(rope.table_shape(64))
    rope.fill_table(table)
    both, values = wide(14, HEADS + GROUPS, SIZE), wide(14, GROUPS, SIZE)
    found = []
    for ops in (OURS, reference):
        rows, queries = Rows(dtype, 21, 8), []
        for start in range(0, 14, 7):
            part, step = slice(start, start + 7), rows.step((1, start, 7))
            # A model may number the positions of its rotation apart from those of the cache.
            places = step.positions + 30
            step.angles = Angles(table, places, *(table[i, places].unsqueeze(1) for i in range(2)))
            step.slots = [torch.tensor(rows.store.flat_slots(1, start, 7))]
            given = (step, 0, both[part], values[part], rope, torch.empty(7, HEADS + GROUPS, SIZE))
            queries.append(cast(Any, ops).rotate_and_store(*given))
        held = rows.store.read(0, 1, 14)
        scales = (held.key_scales, held.value_scales)
        numbers = [
            codes.float() * (1 if scale is None else scale)
            for codes, scale in zip((held.keys, held.values), scales, strict=True)
        ]
        found.append((torch.cat(queries), *numbers))
    bounds = (ROW_ERROR, *[ROW_ERROR if dtype == torch.float32 else BFLOAT16_TRUNCATED] * 2)
    for name, out, expected, bound in zip(
        ("queries", "keys", "values"), *found, bounds, strict=True
    ):
        check(name, out, expected, bound)


# Slots, window, tokens held: in one piece, over two, and rings before and after they went round.
HELD = ((70, None, 0), (300, None, 299), (59, 30, 40), (59, 30, 130))
# Every type with plain scores, every kind of scores with float32.
KINDS = [(dtype, "plain") for dtype in DTYPES] + [(torch.float32, "capped"), (torch.int8, "alibi")]


@pytest.mark.parametrize(("dtype", "scoring"), KINDS)
@pytest.mark.parametrize(("slots", "window", "held"), HELD)
def test_single_tokens_attend_as_the_reference(
    slots: int, window: int | None, held: int, dtype: torch.dtype, scoring: str
) -> None:
    rows = Rows(dtype, slots, window)
    for row, count in ((1, held + 1), (2, held // 2 + 1)):
        rows.fill(row, count)
    step, queries = rows.step((1, held, 1), (2, held // 2, 1)), wide(2, HEADS, SIZE) * 2
    out, expected = (f(step, queries, SCORINGS[scoring]) for f in (rows.attend, rows.expected))
    check(scoring, out, expected, ATTENTION_ERROR)
    alone = rows.attend(rows.step((2, held // 2, 1)), queries[1:], SCORINGS[scoring])
    assert torch.equal(alone, out[1:])


@pytest.mark.parametrize(("dtype", "scoring"), KINDS)
@pytest.mark.parametrize(
    ("slots", "window", "held", "count"),
    [(110, None, 33, 70), (59, 30, 0, 30), (59, 30, 90, 30)],
)
def test_prompts_attend_as_the_reference(
    slots: int, window: int | None, held: int, count: int, dtype: torch.dtype, scoring: str
) -> None:
    rows = Rows(dtype, slots, window)
    for row in (0, 2):
        rows.fill(row, held + count)
    step = rows.step((2, held, count), (0, held, count - 1))
    queries = wide(2 * count - 1, HEADS, SIZE) * 2
    out, expected = (f(step, queries, SCORINGS[scoring]) for f in (rows.attend, rows.expected))
    check(scoring, out, expected, ATTENTION_ERROR)


def test_bfloat16_queries() -> None:
    rows = Rows(torch.bfloat16, 400, None)
    rows.fill(1, 300)
    queries = wide(1, HEADS, SIZE).bfloat16()
    step = rows.step((1, 299, 1))
    out, expected = (f(step, queries, SCORINGS["plain"]) for f in (rows.attend, rows.expected))
    assert out.dtype == torch.bfloat16
    check("bfloat16", out, expected, BFLOAT16_ERROR)


class _Rounds:
    """A prompt in two chunks and then single tokens of two rows."""

    def __init__(self, engine: Engine, cache: KVCache) -> None:
        self.engine, self.cache = engine, cache

    def run(self, ids: Tensor, chunk: int, prompt: int) -> Tensor:
        found = []
        for start in range(0, prompt, chunk):
            part = ids[:, start : min(start + chunk, prompt)]
            found.append(self._step(part))
        for at in range(prompt, ids.shape[1]):
            found.append(self._step(ids[:, at : at + 1]))
        return torch.cat(found, 1)

    def _step(self, ids: Tensor) -> Tensor:
        batch = [RowTokens(row, own) for row, own in enumerate(ids)]
        hidden = self.engine.run(self.cache, batch).states
        return hidden.clone().view(*ids.shape, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kv"), [*((family, "float32") for family in FAMILIES), ("gemma2", "int8")]
)
def test_families_give_the_reference_s_states(assets: Path, family: str, kv: str) -> None:
    """Whole models in float32, the products being the same; Gemma 2's window is passed."""
    ids = torch.randint(5, 400, (2, 39), generator=torch.Generator().manual_seed(2))
    own = {"quant": "none", "backend": "reference", "context": 60, "chunk": 36, "rows": 2}
    with edgelm.load(assets / "nano" / family, kv=kv, device="cpu", **own) as lm:
        engine = lm._session.engine
        expected = _Rounds(engine, lm.new_cache(2, 60)).run(ids, 18, 36)
        engine.ops = TritonOps(torch.empty(workspace_elements(lm.config, 2, 36, 60)), 2)
        found = _Rounds(engine, lm.new_cache(2, 60)).run(ids, 18, 36)
    measured = sqnr_db(expected, found)
    floor = STATES_FLOOR_DB if kv == "float32" else INT8_STATES_FLOOR_DB
    print(f"{family}, {kv}: {measured:.1f} dB, bound {floor:.0f}")
    assert measured >= floor


class Launches:
    """The operations, logged: a captured step is what was launched, with the arguments it had."""

    def __init__(self, ops: TritonOps) -> None:
        self._ops = ops
        self.log: list[tuple[Any, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> Any:
            self.log.append((getattr(self._ops, name), given))
            return getattr(self._ops, name)(*given)

        return call

    def capture(self, work: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """As a CUDA graph does: no Python of the step runs again. A head's work has none."""
        self.log = []
        out = work()
        launched = list(self.log)
        if "embed" not in [function.__name__ for function, _ in launched]:
            return work, out

        def again() -> None:
            for function, given in launched:
                function(*given)

        return again, out


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_say_what_steps_of_their_own_say(assets: Path, family: str) -> None:
    """Two rows of different lengths; then one row with a guess behind its token."""
    own = {"quant": "none", "backend": "reference", "context": 60, "chunk": 40, "rows": 2}
    with edgelm.load(assets / "nano" / family, device="cpu", **own) as lm:
        engine, most = lm._session.engine, 2
        ops = TritonOps(torch.empty(workspace_elements(lm.config, most, 40, 60)), most)
        engine.ops = ops

        def answers() -> list[Tensor]:
            cache, found = lm.new_cache(2, 60), []
            engine.run(cache, [RowTokens(0, [5, 6, 7]), RowTokens(1, list(range(9, 40)))])
            for batch in ([(0, [8]), (1, [9])], [(0, [4]), (1, [3])], [(1, [7, 8])], [(0, [2, 9])]):
                hidden = engine.run(cache, [RowTokens(row, ids) for row, ids in batch])
                logits, best = engine.judge(hidden)
                assert best == logits.argmax(-1).tolist()
                found += [hidden.states.clone(), logits.clone()]
            counts.append([len(own) for own in steps._steps.values()])
            return found

        counts: list[list[int]] = []
        launches = Launches(ops)
        steps = GraphedSteps(most, cast(Any, launches), torch.device("cpu"), launches.capture)
        engine._recorded = None
        expected = answers()
        engine._recorded = steps
        found = answers()
        assert counts == [[], [1]] and len(steps._heads) == 1
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
        states = engine.workspace.buffers(2).normed
        states[1, 0] = torch.nan
        with pytest.raises(NonFiniteError, match="final norm"):
            engine.judge(Hidden(states, recorded=True))
        steps.forget()
        assert not steps._heads and not steps._steps


def test_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert serves(torch.device("cpu")) is None
    monkeypatch.setattr("quant.triton._unfit", lambda device: None)
    assert serves(cuda) is None
    monkeypatch.setattr("quant.triton._unfit", lambda device: "too old")
    assert serves(cuda) == "too old"
    assert "runs on CUDA devices, not on mps" in str(serves(torch.device("mps")))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "not on cpu" in str(serves(torch.device("cpu")))
    assert SPLIT % 64 == 0
