"""What ``auto`` prefers: measured once, kept in the cache folder, read by every plan."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

import edgelm
from edgelm import kernel_choice
from quant import Scheme, choose, native
from quant.backends.timing import time_kernels

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
