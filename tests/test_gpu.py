"""What only a CUDA device can show: the families there, captured steps, the plan's bytes.

`pytest -m gpu` runs it, without TRITON_INTERPRET; skipped by name where there is no device.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edgelm
from edgelm.engine.cuda_graphs import GraphedSteps
from quant import sqnr_db

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
# Logits of the same integers on the CPU in float32: what bfloat16's roundings leave, and float32's.
LOGITS_DB = {"bfloat16": 25.0, "float32": 60.0}


@pytest.mark.parametrize("dtype", LOGITS_DB)
@pytest.mark.parametrize("quant", ["int4-g32", "int8", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_cpu_s(assets: Path, family: str, quant: str, dtype: str) -> None:
    nano, ids = assets / "nano" / family, torch.arange(7, 47)[None]
    with (
        edgelm.load(nano, device="cpu", quant=quant, backend="reference", context=64) as exact,
        edgelm.load(nano, device="cuda", quant=quant, dtype=dtype, context=64) as lm,
    ):
        assert {p.kernel.partition(".")[0] for p in lm.plan.products} <= {"triton", "reference"}
        measured = sqnr_db(exact.forward(ids).logits, lm.forward(ids).logits.cpu())
    print(f"{family} {quant} {dtype}: {measured:.1f} dB, bound {LOGITS_DB[dtype]:.0f}")
    assert measured >= LOGITS_DB[dtype]


@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_say_what_eager_ones_say(assets: Path, family: str, kv: str) -> None:
    """Beyond Gemma 2's window, whose ring goes round in the middle of the answer."""
    with edgelm.load(
        assets / "nano" / family, device="cuda", quant="int4-g32", kv=kv, context=128
    ) as lm:
        engine = lm._session.engine
        assert isinstance(engine._recorded, GraphedSteps)
        prompt = list(range(5, 25))
        replayed = lm.generate(prompt, max_new_tokens=80, temperature=0.0).token_ids
        assert engine._recorded._steps
        engine._recorded = None
        assert lm.generate(prompt, max_new_tokens=80, temperature=0.0).token_ids == replayed


def test_the_plan_s_device_bytes_are_what_is_taken(assets: Path) -> None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with edgelm.load(
        assets / "nano" / "gemma2", device="cuda", quant="int4-g32", context=128
    ) as lm:
        lm.generate(list(range(5, 60)), max_new_tokens=40, temperature=0.0)
        planned, taken = lm.plan.predicted_device_peak_bytes, torch.cuda.max_memory_allocated()
    print(f"{taken - before} bytes of {planned} planned")
    assert taken - before <= planned * 1.02 + (50 << 20)
