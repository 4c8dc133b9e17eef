"""The plan and the Ledger: every byte named, and nothing taken that is not planned."""

from __future__ import annotations

import pickle
from pathlib import Path

import oracle
import pytest
import torch

import edgelm
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import Part
from edgelm.budget.units import parse_budget
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint


@pytest.mark.parametrize("quant", ["none", "int4", "int8-g32"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv", ["float32", "bfloat16"])
def test_what_is_taken_is_what_was_planned(tmp_path: Path, quant: str, tied: bool, kv: str) -> None:
    """To the byte, for every part that holds tensors."""
    _, folder = oracle.llama(
        tmp_path, tie_word_embeddings=tied, hidden_size=96, intermediate_size=160
    )
    with edgelm.load(folder, quant=quant, kv=kv, context=50, chunk=16) as lm:
        planned = {p.name: p.bytes for p in lm.plan.parts}
        taken = dict(lm.ledger.taken)
        buffers = {
            b.data_ptr(): b.nbytes for b in lm._session.engine.decoder.buffers() if b is not None
        }
    assert taken == {name: planned[name] for name in taken}
    assert set(planned) - set(taken) <= {"runtime", "kernel scratch"}
    weights = sum(nbytes for name, nbytes in taken.items() if name.startswith("weights."))
    assert sum(buffers.values()) == weights == lm.plan.weight_bytes == lm.report.nbytes


def test_plan_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = oracle.llama(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(SafetensorsCheckpoint, "read", refuse)
    plan = edgelm.plan(folder, quant="int8", context=64, budget="4GiB")
    assert plan.fits and plan.context == 64 and plan.budget_bytes == 4 << 30
    assert plan.predicted_peak_bytes == max(plan.load_peak_bytes, plan.steady_peak_bytes)
    assert plan.steady_peak_bytes == sum(part.bytes for part in plan.parts)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.to_dict()["parts"][0].keys() == {"name", "bytes", "where"}


def test_a_plan_that_does_not_fit_is_refused_with_the_plan(tmp_path: Path) -> None:
    _, folder = oracle.llama(tmp_path)
    assert not edgelm.plan(folder, budget="1MiB").fits
    with pytest.raises(edgelm.DoesNotFitError) as caught:
        edgelm.load(folder, budget="1MiB")
    assert caught.value.exit_code == 3
    assert caught.value.plan.budget_bytes == 1 << 20


def test_bits_per_weight_counts_everything(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path, hidden_size=96, intermediate_size=160)
    parameters = sum(p.numel() for p in reference.parameters())
    with edgelm.load(folder, quant="int8-g32", backend="reference") as lm:
        expected = lm.plan.weight_bytes * 8 / parameters
        assert lm.plan.bits_per_weight == pytest.approx(expected)
        assert lm.report.bits_per_weight == pytest.approx(expected)
        worst = min(m.error_db for m in lm.report.modules)
        print(f"int8-g32: {expected:.3f} bits, worst module {worst:.1f} dB")
        assert worst > 40
    names = {module.name for module in lm.report.modules}
    assert {"embed", "head", "layers.2.attn.v", "layers.0.mlp.down"} <= names


def test_ledger_refuses_what_is_not_planned() -> None:
    ledger = Ledger([Part("a", 100)], headroom_bytes=50)
    ledger.empty("a", (20,), torch.float32)
    with pytest.raises(edgelm.BudgetExceededError):
        ledger.empty("a", (6,), torch.float32)
    with pytest.raises(edgelm.BudgetExceededError):
        ledger.empty("b", (1,), torch.uint8)
    with pytest.raises(edgelm.BudgetExceededError):
        ledger.extend({"a": 26, "b": 25})
    ledger.extend({"a": 25, "b": 25})
    ledger.empty("a", (45,), torch.uint8)
    ledger.extend({"b": -25})
    assert ledger.headroom_bytes == 25


class Held:
    """Two tensors."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors


def test_what_is_lent_comes_back_with_its_holder() -> None:
    ledger = Ledger([Part("a", 100)], headroom_bytes=50)

    def take(*parts: str) -> Held:
        return Held(*(ledger.empty(part, (60,), torch.uint8) for part in parts))

    first = ledger.lend({"a": 60}, lambda: take("a"))
    assert ledger.headroom_bytes == 50, "the plan had room for it"
    second = ledger.lend({"a": 60}, lambda: take("a"))
    assert ledger.headroom_bytes == 30 and ledger.taken["a"] == ledger.planned["a"] == 120
    with pytest.raises(edgelm.BudgetExceededError, match=r"60 B more are needed \(b\).* 30 B"):
        ledger.lend({"b": 60}, lambda: take("b"))
    with pytest.raises(edgelm.BudgetExceededError, match="b: 60 B asked for, 5 B in the plan"):
        ledger.lend({"a": 10, "b": 5}, lambda: take("b"))
    assert len(second.tensors) == 1 and ledger.headroom_bytes == 30
    del second
    assert ledger.headroom_bytes == 50 and ledger.planned["a"] == 100
    del first
    assert ledger.taken["a"] == 0 and ledger.headroom_bytes == 50


def test_caches_and_snapshots_come_out_of_the_budget(assets: Path) -> None:
    """Named by kind, refused where there is no room, and given back when they are dropped."""
    folder = assets / "nano" / "gemma2"
    plan = edgelm.plan(folder, quant="none", context=256, chunk=16)
    budget = plan.predicted_peak_bytes + (64 << 20)
    with edgelm.load(folder, quant="none", context=256, chunk=16, budget=budget) as lm:
        headroom = lm.ledger.headroom_bytes
        for _ in range(3):
            cache = lm.new_cache()
            kinds = {name for name in lm.ledger.taken if name.startswith("kv cache.")}
            assert kinds == {"kv cache.full", "kv cache.window"}
            assert lm.ledger.headroom_bytes == headroom - cache.nbytes
            lm.forward(torch.tensor([[1, 5, 9]]), cache=cache)
            snapshot = cache.snapshot(0)
            assert lm.ledger.taken["snapshots"] == snapshot.nbytes > 0
            assert lm.ledger.headroom_bytes == headroom - cache.nbytes - snapshot.nbytes
            lm.ledger.headroom_bytes = 0
            with pytest.raises(edgelm.BudgetExceededError, match="snapshots"):
                cache.snapshot(0)
            lm.ledger.headroom_bytes = headroom - cache.nbytes - snapshot.nbytes
            del cache, snapshot
            assert lm.ledger.headroom_bytes == headroom and lm.ledger.taken["snapshots"] == 0


def test_a_second_cache_must_fit_the_budget(tmp_path: Path) -> None:
    _, folder = oracle.llama(tmp_path)
    plan = edgelm.plan(folder, quant="none")
    budget = plan.predicted_peak_bytes + (8 << 20)
    with oracle.load_exact(folder, budget=budget) as lm:
        lm.new_cache(rows=1)
        with pytest.raises(edgelm.BudgetExceededError, match="budget"):
            lm.new_cache(rows=100_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6GiB", 6 << 30), ("1.5 GiB", 3 << 29), ("800MiB", 800 << 20), ("2GB", 2 * 10**9),
     ("70%", 700), (4096, 4096), (None, 1000)],
)  # fmt: skip
def test_budgets(text: str | int | None, expected: int) -> None:
    assert parse_budget(text, 1000) == expected


@pytest.mark.parametrize("text", ["0", "-1", "much", "6 GiBs", "", "0%", "nan", "1e9"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(edgelm.UsageError):
        parse_budget(text, 1000)
