"""What ``auto`` prefers: measured once, kept in the cache folder, read by every plan."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm import loading
from edgelm.machine import accelerators
from edgelm.machine.accelerators import Accelerator
from edgelm.model import LanguageModel
from edgelm.planning import kernel_choice
from quant import Scheme, choose, native
from quant.backends.timing import time_kernels
from quant.backends.torch_backend import Int4Pack
from quant.triton import tuning

SHAPE = (512, 512)
INT8 = Scheme.parse("int8")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGELM_CACHE", str(folder))
    return folder


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing finds the reference fastest, which the table's own order never says."""
    monkeypatch.setattr(
        kernel_choice, "time_kernels", lambda *_: {"reference": 1e-6, "torch.int8pack": 2e-6}
    )


def kernels(folder: Path) -> set[str]:
    return {product.kernel for product in edgelm.plan(folder, quant="int8").products}


@pytest.mark.usefixtures("timed")
def test_a_plan_follows_what_was_measured(assets: Path, cache: Path) -> None:
    nano = assets / "nano" / "llama"
    before = kernels(nano)
    kernel_choice.measure(cache)
    assert kernels(nano) == {"reference"} != before
    torch.set_num_threads(torch.get_num_threads() + 1)
    try:
        assert kernels(nano) == before  # other threads were not measured
    finally:
        torch.set_num_threads(torch.get_num_threads() - 1)


def test_a_damaged_entry_spoils_no_other(cache: Path) -> None:
    machine = kernel_choice._machine("cpu")
    good = {"int8 small": ["reference"]}
    data = {machine: good | {"int4 small": [7], "nf4 small": None}, "other": 3}
    cache.mkdir()
    (cache / kernel_choice.KEPT).write_text(json.dumps(data))
    assert kernel_choice.rankings(cache) == good


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"%s": 3}', '{"%s": {"int8 small": [7]}}'])
def test_a_damaged_file_is_ignored_and_remade(cache: Path, damage: str) -> None:
    kernel_choice.measure(cache)
    kept = cache / kernel_choice.KEPT
    machine = next(iter(json.loads(kept.read_text())))
    kept.write_text(damage.replace("%s", machine))
    assert kernel_choice.ranking(kernel_choice.rankings(cache), INT8, SHAPE) == []
    kernel_choice.measure(cache)
    assert kernel_choice.ranking(kernel_choice.rankings(cache), INT8, SHAPE)[0] == "reference"
    assert [path.name for path in cache.iterdir()] == [kernel_choice.KEPT]


def test_timing_ranks_the_kernels_that_can_hold_the_matrix() -> None:
    scheme = Scheme.parse("int8")
    found = time_kernels(scheme, SHAPE, "cpu")
    print({name: f"{seconds * 1e6:.0f} us" for name, seconds in found.items()})
    assert "reference" in found and "torch.int4pack" not in found
    assert "bitsandbytes.int8" not in found  # it rounds activations: not for speed alone
    assert list(found.values()) == sorted(found.values()) and min(found.values()) > 0
    assert choose(scheme, SHAPE, "cpu", ranking=[*found]).name == next(iter(found))
    # A name of a kernel that is gone, or of one that cannot, is passed over.
    named = choose(scheme, SHAPE, "cpu", ranking=["gone", "torch.int4pack", "reference"])
    assert named.name == "reference"


def test_a_kernel_that_disagrees_is_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(own: object, x: torch.Tensor, *given: object) -> None:
        out = given[-1]
        assert isinstance(out, torch.Tensor)
        out.copy_(torch.randn(out.shape))

    scheme = Scheme.parse("int4-g32")
    assert "torch.int4pack" in time_kernels(scheme, SHAPE, "cpu")
    monkeypatch.setattr(Int4Pack, "multiply", wrong)
    assert "torch.int4pack" not in time_kernels(scheme, SHAPE, "cpu")


CARD = Accelerator("cuda:0", "card A", 8 << 30, 8 << 30, bfloat16=True)


@pytest.mark.usefixtures("timed")
def test_every_device_has_a_ranking_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: CARD)
    kernel_choice.measure(cache, "cuda:0")
    assert kernel_choice.rankings(cache) == {} and kernel_choice.rankings(cache, "cuda:0")
    monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: replace(CARD, name="card B"))
    assert kernel_choice.rankings(cache, "cuda:0") == {}


def test_a_card_s_tiles_are_measured_before_the_weights_are_loaded(
    assets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For every matrix that Triton multiplies; a load goes on where none can be kept."""
    found: list[tuple[str, int]] = []

    def tune(cases: list[tuning.Case], folder: Path, device: torch.device) -> int:
        assert folder == cache
        found.extend((f"{case.scheme} {case.shape}", case.rows) for case in cases)
        raise OSError("read-only")

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr("quant.triton.missing", lambda device: None)
    monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: CARD)
    monkeypatch.setattr(accelerators, "release", lambda name: None)
    monkeypatch.setattr(loading, "memory_reported", lambda plan: nullcontext())
    monkeypatch.setattr(accelerators, "current", lambda name: nullcontext())
    monkeypatch.setattr(LanguageModel, "load", lambda files, model, plan, *_: plan)
    told: list[str] = []
    plan: Any = edgelm.load(
        assets / "nano" / "llama", device="cuda", quant="int4-g32", context=64, chunk=16,
        progress=lambda what, *_: told.append(what),
    )  # fmt: skip
    shapes = {f"{p.scheme} {p.shape}" for p in plan.products if p.kernel.startswith("triton.")}
    assert {name for name, _ in found} == shapes and {rows for _, rows in found} == {1, 16}
    assert len(told) == len(found) == len(set(found)) and "read-only" in caplog.text


def test_a_slow_kernel_is_never_silent(
    assets: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(quant: str, backend: str) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "edgelm"):
            edgelm.load(assets / "nano" / "llama", quant=quant, backend=backend).close()
        return caplog.text

    assert "slow kernel" not in warnings("int8-zint", "reference") + warnings("none", "auto")
    monkeypatch.setattr(native, "missing", lambda: "not built")
    told = warnings("int8-zint", "auto")
    assert "int8-zint" in told and "slow kernel `reference`" in told
