"""The plan decides how a model runs, and what runs it obeys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm import loading
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import Part, PartName
from edgelm.budget.plan import Plan
from edgelm.generation.draft_model import DraftModel
from edgelm.model import LanguageModel
from edgelm.models.model_files import ModelFiles
from edgelm.ops import reference
from edgelm.planning.solver import CRITERIA, reason
from quant import native

OWN: dict[str, Any] = {"quant": "int8", "context": 64, "chunk": 16}
needs_library = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


@pytest.fixture
def nano(assets: Path) -> Path:
    return assets / "nano" / "llama"


def bytes_of(plan: Plan, name: PartName) -> int:
    return sum(part.bytes for part in plan.parts if part.name == name)


def test_nothing_is_planned_for_guesses_that_nobody_makes(nano: Path) -> None:
    """torch's rows depend on their neighbours: it got room for 16 rows of logits once."""
    plan = edgelm.plan(nano, backend="torch", **OWN)
    assert plan.draft_depth == 0 and plan.execution.drafter == "none"
    assert bytes_of(plan, PartName.SPECULATION) == 0
    vocab_size = ModelFiles.open(nano).config.vocab_size
    assert bytes_of(plan, PartName.LOGITS) == 4 * vocab_size
    drafted = edgelm.plan(nano, backend="torch", draft=nano, **OWN)
    assert drafted.draft_depth == 15 and drafted.execution.drafter == "model"
    assert bytes_of(drafted, PartName.SPECULATION) == 0
    alone = edgelm.plan(nano, backend="reference", **OWN)
    assert alone.execution.drafter == "lookup" and bytes_of(alone, PartName.SPECULATION) > 0


@needs_library
def test_steps_that_wait_for_the_disk_are_not_recorded(nano: Path) -> None:
    resident = edgelm.plan(nano, **OWN)
    assert resident.execution.ops == "native" and resident.execution.recorded
    assert bytes_of(resident, PartName.RECORDED_STEP) > 0
    budget = resident.steady_peak_bytes - resident.weight_bytes // 4
    streaming = edgelm.plan(nano, offload="disk", budget=budget, **OWN)
    assert "disk" in streaming.placement
    assert not streaming.execution.recorded
    assert bytes_of(streaming, PartName.RECORDED_STEP) == 0


def test_what_runs_obeys_the_plan(nano: Path) -> None:
    files = ModelFiles.open(nano)
    own = edgelm.plan(files, **OWN)
    execution = replace(own.execution, ops="reference", recorded=False, drafter="none")
    plan = replace(own, execution=execution)
    with LanguageModel.load(files, files.assemble("causal-lm"), plan) as lm:
        assert lm._session is not None and lm._session.engine.ops is reference
        assert lm._session.engine._recorded is None and lm._session.speculation is None
        assert lm.ledger.taken[PartName.SPECULATION] == 0
        lm.generate([5, 6, 7], max_new_tokens=2)


def test_a_draft_model_is_loaded_where_the_plan_says(nano: Path) -> None:
    with edgelm.load(nano, draft=nano, **OWN) as lm:
        assert lm._session is not None and lm._session.speculation is not None
        assert isinstance(lm._session.speculation.drafter, DraftModel)


def test_a_load_plans_once(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def counted(*given: Any, **named: Any) -> Plan:
        plans.append(solve(*given, **named))
        return plans[-1]

    solve = loading.solve
    monkeypatch.setattr(loading, "solve", counted)
    with edgelm.load(nano, **OWN) as lm:
        assert plans == [lm.plan]


def test_constructing_a_model_loads_nothing(nano: Path) -> None:
    files = ModelFiles.open(nano)
    with edgelm.load(files, **OWN) as lm:
        assert lm._session is not None
        ledger = Ledger.of(lm.plan)
        again = LanguageModel(files, lm.plan, ledger, lm.report, lm._session)
        assert not ledger.taken and again.kernels == lm.kernels


def test_reasons_are_the_first_criterion_that_was_lost_by(nano: Path) -> None:
    plan = replace(edgelm.plan(nano, **OWN), fits=True)
    lost = {
        "a context of 64 fits too": replace(plan, context=32),
        "less accurate": replace(plan, expected_kld=9.0),
        "2 answers side by side": replace(plan, rows=1),
        "slower": replace(plan, moved_bytes_per_token=1 << 40),
        "gains nothing": plan,
    }
    best = replace(plan, rows=2)
    for words, other in lost.items():
        chosen = best if "side by side" in words else plan
        assert words in reason(other, chosen), words
    on_disk = Part(PartName.STREAMED, 1 << 20, "disk")
    streaming = replace(plan, parts=(*plan.parts, on_disk))
    assert "only with layers on disk" in reason(streaming, plan)
    more = replace(plan, parts=(*plan.parts, replace(on_disk, bytes=1 << 21)))
    assert "more layers on disk" in reason(more, streaming)
    assert "every 8 tokens" in reason(replace(streaming, chunk=8), streaming)
    assert len(CRITERIA) == 6


def test_layers_on_the_host_beside_a_device_are_told_as_such(nano: Path) -> None:
    """They were "no more accurate, no faster" once."""
    plan = edgelm.plan(nano, **OWN)
    parts = tuple(replace(p, where="device") if p.where == "host" else p for p in plan.parts)
    best = replace(plan, fits=True, device="cuda:0", parts=parts)
    split = replace(best, parts=(*parts, Part(PartName.MLP, 1 << 20, "host")))
    assert "only with layers on the CPU" in reason(split, best)
