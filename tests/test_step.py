"""The ops seam: results go into given buffers, and a decode step allocates nothing that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import edgelm
from edgelm.config import RopeParameters
from edgelm.ops import reference
from edgelm.ops.position import Angles, Rope

SMALL_BYTES = 256
"""Index tensors and one-number checks; the smallest activation below is eight times that."""


class Allocations(TorchDispatchMode):
    """Bytes of every storage that an operation made anew, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if tensor.untyped_storage().data_ptr() not in given:
                self.found.append((str(func), tensor.untyped_storage().nbytes()))
        return result


def _tensors(value: Any) -> list[torch.Tensor]:
    flat, _ = torch.utils._pytree.tree_flatten(value)
    return [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]


WIDE = {
    "vocab_size": 3000, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
    "head_dim": 64,
}  # fmt: skip


def decode_step(lm: edgelm.LanguageModel) -> Allocations:
    cache = lm.new_cache(context=32)
    lm.forward(torch.tensor([[5, 6, 7, 8, 9]]), cache=cache)
    engine = lm._session.engine
    tokens = edgelm.engine.engine.RowTokens(0, torch.tensor([7]))
    with Allocations() as seen, torch.inference_mode():
        engine.logits(engine.run(cache, [tokens]).states)
    return seen


@pytest.mark.parametrize("quant", ["none", "int4-g32", "int8", "int8-g32"])
def test_decode_step_takes_no_more_than_the_plan_says(tmp_path: Path, quant: str) -> None:
    _, folder = oracle.llama(tmp_path, **WIDE)
    with edgelm.load(folder, quant=quant, context=32) as lm:
        seen = decode_step(lm)
        planned = sum(part.bytes for part in lm.plan.parts if part.name == "kernel scratch")
    allowed = SMALL_BYTES if quant == "none" else planned
    largest = max(seen.found, key=lambda entry: entry[1])
    print(f"{quant}: largest allocation {largest}, planned {planned}")
    assert largest[1] <= allowed


def test_steps_reuse_the_same_buffers(tmp_path: Path) -> None:
    """The same addresses every token: what capture and replay will need."""
    _, folder = oracle.llama(tmp_path)
    with oracle.load_exact(folder, context=32) as lm:
        cache = lm.new_cache(context=32)
        engine = lm._session.engine
        addresses = set()
        for token in (4, 5, 6, 7):
            hidden = engine.run(
                cache, [edgelm.engine.engine.RowTokens(0, torch.tensor([token]))]
            ).states
            addresses.add((hidden.data_ptr(), engine.logits(hidden).data_ptr()))
        assert len(addresses) == 1


def test_rms_norm_is_its_definition() -> None:
    x, weight = torch.randn(3, 40) * 4, torch.rand(40) + 0.5
    out = reference.rms_norm(x, weight, 1e-2, torch.empty(3, 40), torch.empty(6))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight
    error = float((out - expected).abs().max())
    print(f"rms_norm differs by {error:.1e}")
    assert error < 1e-5


def angles_at(table: torch.Tensor, position: int) -> Angles:
    return Angles(table, torch.tensor([position]), *table[:, position, None, None])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_keeps_lengths_and_relative_angles(interleaved: bool) -> None:
    """q(p) . k(p') depends on p - p' alone, and the dimensions beyond the rotated stay."""
    rope = Rope(RopeParameters("default", 100.0, 8, 64), interleaved)
    table = torch.empty(rope.table_shape(64))
    rope.fill_table(table)
    vectors = torch.randn(1, 2, 12)

    def at(position: int) -> torch.Tensor:
        angles = angles_at(table, position)
        return reference.rotate(vectors, rope, angles, torch.empty(1, 2, 12))[0]

    def product(p: int, q: int) -> float:
        return float(at(p)[0] @ at(q)[1])

    assert product(3, 10) == pytest.approx(product(40, 47), rel=1e-4)
    assert product(3, 10) != pytest.approx(product(3, 30), rel=1e-2)
    assert torch.equal(at(9)[:, 8:], vectors[0, :, 8:])
    assert at(9).norm() == pytest.approx(float(vectors.norm()), rel=1e-5)


def test_interleaved_and_halves_are_the_same_rotation_of_permuted_rows() -> None:
    parameters = RopeParameters("default", 100.0, 8, 64)
    halves, pairs = Rope(parameters), Rope(parameters, interleaved=True)
    table = torch.empty(halves.table_shape(64))
    halves.fill_table(table)
    x, angles = torch.randn(1, 1, 8), angles_at(table, 5)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    by_halves = reference.rotate(x, halves, angles, torch.empty(1, 1, 8))
    by_pairs = reference.rotate(x[..., order], pairs, angles, torch.empty(1, 1, 8))
    assert torch.allclose(by_halves[..., order], by_pairs, atol=1e-6)


@pytest.mark.parametrize("kv", [torch.float32, torch.bfloat16])
def test_attend_is_its_definition(kv: torch.dtype) -> None:
    """Tiles of queries, grouped heads and a mask against one plain softmax per head."""
    tokens, visible, heads, groups, size = 9, 17, 6, 2, 8
    queries = torch.randn(tokens, heads, size)
    keys, values = torch.randn(2, visible, groups, size).to(kv)
    mask = torch.empty(tokens, visible)
    reference.causal_mask(torch.arange(8, 17), torch.arange(visible), None, mask)
    elements = reference.AttentionScratch.elements(4, heads, visible, size)
    widened = None if kv == torch.float32 else torch.empty(2 * keys.numel())
    scratch = reference.AttentionScratch(torch.empty(elements), 4, widened)
    out, weights = torch.empty(tokens, heads, size), torch.empty(heads, tokens, visible)
    stored, scoring = reference.Stored(keys, values), reference.Scoring(0.3)
    distances = torch.arange(visible) - float(visible - 1)
    reference.attend_row(queries, stored, mask, distances, scoring, out, scratch, weights)
    for head in range(heads):
        group = head // (heads // groups)
        scores = queries[:, head] @ keys[:, group].float().T * 0.3
        hidden = torch.arange(visible) > torch.arange(8, 17)[:, None]
        expected = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        assert torch.allclose(weights[head], expected, atol=1e-6)
        assert torch.allclose(out[:, head], expected @ values[:, group].float(), atol=1e-5)
