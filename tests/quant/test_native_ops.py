"""Native operations of a step: every instruction set against edgelm's reference, and tokens that
get the same bits whatever stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from instruction_sets import in_use
from torch import Tensor

from edgelm.config import RopeParameters
from edgelm.ops import reference
from edgelm.ops.cache import LayerStore
from edgelm.ops.position import Alibi, Angles, Rope
from quant import native
from quant.native import ops

ISAS = ("generic", "avx2", "avx512vnni")
# Largest difference from the reference, as a share of the largest magnitude of the result.
ROW_ERROR = 1e-6
ATTENTION_ERROR = 3e-6

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn, where this CPU has it."""
    yield from in_use(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def set_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(ops, "threads", lambda: count)


def check(name: str, out: Tensor, expected: Tensor, bound: float = ROW_ERROR) -> None:
    error = ((out - expected).abs().max() / expected.abs().max()).item()
    print(f"{name}: {error:.1e} of the largest number, bound {bound:.0e}")
    assert error <= bound


def wide(*shape: int) -> Tensor:
    """Tokens of ``shape`` that do not follow one another in memory."""
    token = torch.Size(shape[1:]).numel()
    return torch.randn(shape[0], token + 5)[:, 3:-2].view(shape)


# Each takes x [M, 1056] or [M, 75] and gives what the token's numbers become.
SIZES = (75, 1056)


def run_rms(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ops.rms_norm(x, weight_of(x.shape[1]), 1e-5, out)()
    return out


def run_layer(x: Tensor) -> Tensor:
    out, size = torch.empty_like(x), x.shape[1]
    ops.layer_norm(x, weight_of(size), weight_of(size) - 0.7, 1e-5, out)()
    return out


def run_add(x: Tensor) -> Tensor:
    out = x.clone()
    ops.add(out, x.cos())()
    return out


def run_scale(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ops.scale(x, 3.7, out)()
    return out


def run_softcap(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    ops.softcap(x, 1.5, out)()
    return out


def run_activation(name: str) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ops.activation(x, name, out)()
        return out

    return run


def run_gated(name: str) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        ops.gated_activation(torch.cat([x, x.sin()], dim=1), name, out)()
        return out

    return run


def run_argmax(x: Tensor) -> Tensor:
    out = torch.empty(len(x), dtype=torch.int64)
    ops.argmax(x, out)()
    return out


def weight_of(size: int) -> Tensor:
    return torch.linspace(-1, 2, size)


def expected_rms(x: Tensor) -> Tensor:
    return reference.rms_norm(
        x, weight_of(x.shape[1]), 1e-5, torch.empty_like(x), torch.empty(2 * len(x))
    )


def expected_layer(x: Tensor) -> Tensor:
    weight = weight_of(x.shape[1])
    scratch = torch.empty(2 * len(x))
    return reference.layer_norm(x, weight, weight - 0.7, 1e-5, torch.empty_like(x), scratch)


def expected_gated(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: reference.gated_activation(
        torch.cat([x, x.sin()], dim=1), name, torch.empty_like(x)
    )


def expected_activation(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: reference.activation(x, name, torch.empty_like(x))


ROW_OPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rms_norm": (run_rms, expected_rms),
    "layer_norm": (run_layer, expected_layer),
    "add": (run_add, lambda x: reference.add_(x.clone(), x.cos())),
    "scale": (run_scale, lambda x: x * 3.7),
    "softcap": (run_softcap, lambda x: reference.softcap_(x.clone(), 1.5)),
    "argmax": (run_argmax, lambda x: x.argmax(dim=1)),
}
for function in ops.FUNCTIONS:
    ROW_OPS[function] = run_activation(function), expected_activation(function)
    ROW_OPS[f"gated {function}"] = run_gated(function), expected_gated(function)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ROW_OPS)
def test_row_operations_match_the_reference(name: str, size: int, isa: str) -> None:
    run, expected = ROW_OPS[name]
    x = torch.randn(7, size) * 3
    check(f"{isa} {name}", run(x).double(), expected(x).double())
    apart = wide(7, size)
    assert torch.equal(run(apart), run(apart.contiguous()))


@pytest.mark.parametrize("name", ROW_OPS)
def test_a_token_never_depends_on_its_neighbours(
    name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, x = ROW_OPS[name][0], torch.randn(40, 1056)
    alone = torch.cat([run(x[token : token + 1]) for token in range(40)])
    for threads in (1, 2, 3):
        set_threads(monkeypatch, threads)
        for start, stop in ((0, 40), (3, 6), (5, 37)):
            assert torch.equal(run(x[start:stop]), alone[start:stop]), (threads, start, stop)


@pytest.mark.parametrize("name", ROW_OPS)
def test_all_instruction_sets_give_the_same_bits(name: str, isa: str) -> None:
    run, x = ROW_OPS[name][0], torch.randn(5, 75) * 4
    own = run(x)
    native.use_isa("generic")
    assert torch.equal(own, run(x))


@pytest.mark.parametrize("name", ROW_OPS)
def test_extremes_stay_finite_and_nan_is_passed_on(name: str, isa: str) -> None:
    run = ROW_OPS[name][0]
    x = torch.tensor([0.0, -0.0, 1e-38, -1e-38, 1e4, -1e4, 88.5, -88.5, 104.0, -104.0])
    x = x.repeat(2, 8)
    assert bool(run(x).isfinite().all())
    x[1, 77] = torch.nan
    out = run(x)
    assert bool(out[0].isfinite().all())
    assert bool(out[1].isnan().any()) or (name == "argmax" and out[1] == -1)


def test_heads_are_normed_each_by_itself(isa: str) -> None:
    both, weight = torch.randn(6, 5, 24), weight_of(24)
    out = torch.full((6, 5, 24), -1.0)
    ops.layer_norm(both[:, :3], weight, weight, 1e-5, out[:, :3])()
    expected = reference.layer_norm(
        both[:, :3], weight, weight, 1e-5, torch.empty(6, 3, 24), torch.empty(36)
    )
    check(isa, out[:, :3], expected)
    assert bool((out[:, 3:] == -1).all())


def test_argmax_takes_the_first_of_equals(isa: str) -> None:
    x = torch.zeros(4, 5000)
    x[0, [70, 71, 4999]] = 2.0
    x[1] = -1e30
    x[2, 4999] = 1e-30
    x[3, 4000] = -torch.inf
    assert run_argmax(x).tolist() == [70, 0, 4999, -1]


def test_draws_leave_the_same_weights_on_every_instruction_set(isa: str) -> None:
    logits = torch.randn(3001) * 4
    logits[7::100] = -torch.inf
    settings: dict[str, Any] = {"temperature": 0.7, "top_k": 200, "top_p": 0.9, "min_p": 0.01}
    kept, expected = logits.clone(), logits.clone()
    token = ops.sample(kept, 0.37, **settings)
    native.use_isa("generic")
    assert token == ops.sample(expected, 0.37, **settings) and torch.equal(kept, expected)
    assert 0 < int((kept > 0).sum()) < 200 and not kept[7::100].any()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [20, 48])
def test_rotation(rotary: int, interleaved: bool, isa: str) -> None:
    parameters = RopeParameters("default", 100.0, rotary, 64)
    rope = Rope(parameters, interleaved)
    table = torch.empty(rope.table_shape(64))
    rope.fill_table(table)
    x, positions = wide(9, 3, 48), torch.tensor([5, 6, 63, 0, 1, 2, 40, 41, 42])
    out = torch.empty(9, 3, 48)
    ops.rotate(x, table, positions, interleaved, out)()
    cos, sin = (table[i, positions].unsqueeze(1) for i in range(2))
    angles = Angles(table, positions, cos, sin)
    check(isa, out, reference.rotate(x, rope, angles, torch.empty(9, 3, 48)))
    alone = torch.empty(1, 3, 48)
    ops.rotate(x[6:7], table, positions[6:7], interleaved, alone)()
    assert torch.equal(out[6:7], alone)
    ops.rotate(x, table, positions, interleaved, x)()
    assert torch.equal(x, out)


GROUPS, HEADS, SIZE = 3, 6, 40


class Row:
    """A cache of three rows with ``LayerStore``'s memory; row 1 is filled and asked."""

    def __init__(
        self, dtype: torch.dtype, slots: int, window: int | None, size: int = SIZE,
        heads: int = HEADS,
    ) -> None:  # fmt: skip
        config: Any = SimpleNamespace(windows=(window,), num_kv_heads=GROUPS, head_size=size)
        # Bytes that nobody wrote must never count: as float32 and bfloat16 they are NaN.
        self.store = LayerStore(
            config, window, 3, slots, dtype,
            lambda _, shape, kind, where: torch.full(shape, -1, dtype=torch.int8).repeat_interleave(
                kind.itemsize, -1).view(kind),
        )  # fmt: skip
        self.cache = ops.LayerCache(*(tensor[0] for tensor in self.store.tensors))
        self.window, self.size, self.heads, self.length = window, size, heads, 0

    def append(self, keys: Tensor, values: Tensor) -> Tensor:
        """Positions of the new tokens, once they are stored."""
        positions = torch.arange(self.length, self.length + len(keys))
        ops.store(self.cache, keys, values, torch.ones_like(positions), positions)()
        self.length += len(keys)
        return positions

    def attend(self, queries: Tensor, positions: Tensor, **scoring: Any) -> Tensor:
        out = torch.full_like(queries, torch.nan)
        slots = self.cache.keys.shape[2]
        size = ops.attention_bytes(len(queries), self.heads, (slots, GROUPS, self.size))
        ops.attend(
            queries, self.cache, torch.ones_like(positions), positions, out,
            torch.empty(size, dtype=torch.uint8), window=self.window, **scoring,
        )()  # fmt: skip
        return out

    def expected(self, queries: Tensor, positions: Tensor, **scoring: Any) -> Tensor:
        stored = self.store.read(0, 1, self.length)
        kept = self.store.key_positions(self.length)
        mask = torch.empty(len(queries), len(kept))
        reference.causal_mask(positions, kept, self.window, mask)
        widened = torch.empty(2 * stored.keys.numel())
        elements = reference.AttentionScratch.elements(64, self.heads, len(kept), self.size)
        scratch = reference.AttentionScratch(torch.empty(elements), 64, widened)
        distances = (kept - self.length + 1).float()
        return reference.attend_row(
            queries, stored, mask, distances, reference.Scoring(**scoring),
            torch.empty_like(queries), scratch,
        )  # fmt: skip


def tokens(count: int, size: int = SIZE, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((count, heads, size), (count, GROUPS, size), (count, GROUPS, size))
    q, k, v = (torch.randn(shape) for shape in shapes)
    return q * 2, k, v


DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cache_holds_what_the_reference_writes(dtype: torch.dtype, isa: str) -> None:
    native_row, torch_row = Row(dtype, 21, 8), Row(dtype, 21, 8)
    _, keys, values = tokens(35)
    keys[3] = 0
    keys[4, 0, 0] = 1e20
    for start in range(0, 35, 7):
        part = slice(start, start + 7)
        native_row.append(keys[part], values[part])
        slots = torch.tensor(torch_row.store.flat_slots(1, start, 7))
        torch_row.store.write(0, slots, (keys[part], values[part]))
    for ours, theirs in zip(native_row.store.tensors, torch_row.store.tensors, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


SCORINGS: dict[str, dict[str, Any]] = {
    "plain": {"scale": SIZE**-0.5},
    "capped": {"scale": 0.3, "softcap": 4.0},
    "alibi": {"scale": SIZE**-0.5, "slopes": Alibi(HEADS).slopes},
}


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("slots", "window"), [(700, None), (150, 90), (59, 3)])
def test_attention_matches_the_reference(
    slots: int, window: int | None, dtype: torch.dtype, scoring: str, isa: str
) -> None:
    row, worst, own = Row(dtype, slots, window), 0.0, SCORINGS[scoring]
    for count in (1, 5, 57, 1, 57, 33, 57, 57, 57, 57, 57, 57, 57, 57, 57, 1):
        if isa == "generic" and row.length > 200:
            break
        queries, keys, values = tokens(count)
        positions = row.append(keys, values)
        out, expected = (
            row.attend(queries, positions, **own),
            row.expected(queries, positions, **own),
        )
        worst = max(worst, ((out - expected).abs().max() / values.abs().max()).item())
    print(f"{isa} {dtype} {scoring} {slots}: {worst:.1e}, bound {ATTENTION_ERROR:.0e}")
    assert worst <= ATTENTION_ERROR


@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize("heads", [3, 9, 30])
def test_attention_of_real_head_sizes(size: int, heads: int, isa: str) -> None:
    row, scale = Row(torch.float32, 200, None, size, heads), size**-0.5
    queries, keys, values = tokens(139, size, heads)
    positions = row.append(keys, values)
    check(
        f"{isa} {size}",
        row.attend(queries, positions, scale=scale),
        row.expected(queries, positions, scale=scale),
        ATTENTION_ERROR,
    )


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 600])
def test_attention_of_a_token_never_depends_on_chunk_threads_or_ring(
    window: int | None, dtype: torch.dtype, scoring: str, isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    count = 140 if isa == "generic" else 1100
    queries, keys, values = tokens(count)
    results = {}
    for threads, chunk, slots in ((1, count, 1100), (2, 70, 1100), (3, 9, 1100), (2, 50, 700)):
        if window is None and slots < count:
            continue
        set_threads(monkeypatch, threads)
        row = Row(dtype, slots, window)
        # Whole chunks at the start, what is asked at the end: tokens near all boundaries.
        asked = []
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            positions = row.append(keys[part], values[part])
            if chunk == count or start + chunk > count - 120:
                asked.append(row.attend(queries[part], positions, **SCORINGS[scoring]))
        results[threads, chunk, slots] = torch.cat(asked)[-100:]
    first, *others = results.values()
    assert len(others) >= 2
    assert all(torch.equal(first, other) for other in others)
    single = [
        row.attend(queries[i : i + 1], torch.tensor([i]), **SCORINGS[scoring])
        for i in range(count - 5, count)
    ]
    assert torch.equal(torch.cat(single), first[-5:])


def test_rows_of_a_batch_are_their_own(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(monkeypatch, 2)
    row, scale = Row(torch.bfloat16, 700, None), SIZE**-0.5
    queries, keys, values = tokens(600)
    row.append(keys, values)
    for other in (0, 2):
        row.cache.keys[other].copy_(row.cache.keys[1].flip(0))
        row.cache.values[other].copy_(row.cache.values[1].flip(0))
    asked, rows = torch.tensor([599, 598, 3, 4, 570]), torch.tensor([1, 0, 1, 1, 2])
    out = torch.empty(5, HEADS, SIZE)
    workspace = torch.empty(ops.attention_bytes(5, HEADS, (700, GROUPS, SIZE)), dtype=torch.uint8)
    call = ops.attend(
        queries[asked].contiguous(), row.cache, rows, asked, out, workspace, scale=scale
    )
    call()
    alone = row.attend(queries[asked].contiguous(), asked, scale=scale)
    assert torch.equal(out[rows == 1], alone[rows == 1])
    assert not torch.equal(out[1], alone[1])
    # A call that was made once follows its tensors: other rows at the next run.
    rows.fill_(1)
    call()
    assert torch.equal(out, alone)


def test_all_instruction_sets_attend_with_the_same_bits(isa: str) -> None:
    row = Row(torch.int8, 100, 70)
    queries, keys, values = tokens(90)
    positions = row.append(keys[:60], values[:60])
    positions = row.append(keys[60:], values[60:])
    own = row.attend(queries[60:], positions, scale=0.2, softcap=3.0)
    native.use_isa("generic")
    assert torch.equal(own, row.attend(queries[60:], positions, scale=0.2, softcap=3.0))


def test_attention_with_huge_scores_is_finite(isa: str) -> None:
    row = Row(torch.float32, 100, None)
    queries, keys, values = tokens(70)
    positions = row.append(keys * 1e15, values)
    out = row.attend(queries * 1e15, positions, scale=1.0)
    assert bool(out.isfinite().all())
    check(isa, out, row.expected(queries * 1e15, positions, scale=1.0), ATTENTION_ERROR)


def test_a_cache_type_that_is_not_known_is_said() -> None:
    cache = ops.LayerCache(*(torch.zeros(1, 1, 4, 16, dtype=torch.float64),) * 2)
    with pytest.raises(ValueError, match="float64; native caches hold"):
        cache.struct()
