"""The GPU benchmark as far as it needs no GPU: its refusal, its sums, its table."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from edgelm.errors import KernelUnavailableError
from edgelm.machine import accelerators

BENCHES = Path(__file__).resolve().parent.parent / "benches"
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("gpu")


def test_without_a_device_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(index: int) -> None:
        raise KernelUnavailableError("device 'cuda:0' cannot be used: there is none.")

    monkeypatch.setitem(accelerators.PROBES, "cuda", nothing)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "CUDA devices: device 'cuda:0' cannot be used" in told


def test_rows_follow_from_the_rounds(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 steps of 1 GB in 1.6 s are 80 GB/s; of the copy's 100 that is over the goal of 60 %."""
    plan = SimpleNamespace(predicted_device_peak_bytes=1000 * gpu.MIB)
    cases = [gpu.Case("llama-3-8b", "int4", plan, 1080 * gpu.MIB, 10**9, 10**9) for _ in range(3)]
    for case in cases:
        case.copy_gb_s, case.matrix_tflops = [100.0] * 3, [10.0] * 3
        case.seconds["edgelm"] = [(0.8192, 1.6), (0.8192, 1.6), (9.0, 9.0)]
    cases[0].seconds["torchao-int4"] = [(1.0, 2.0)] * 3
    cases[0].seconds["bfloat16"] = [(1.0, 8.0)] * 3
    cases[0].missing["bitsandbytes-nf4"] = "ImportError: none"
    found = {row["row"]: row for row in gpu.rows(*cases)}
    share = found["Llama-3-8B, int4 decode: share of the copy bandwidth"]
    assert (share["value"], share["reached"]) == (pytest.approx(0.8), "goal")
    peers = found["Llama-3-8B, int4 decode: times the best peer"]
    assert (peers["value"], peers["reached"]) == (pytest.approx(1.25), "floor")
    prefill = found["Llama-3-8B, prefill 2048: share of the bf16 rate"]
    assert (prefill["value"], prefill["reached"]) == (pytest.approx(0.5), "floor")
    memory = found["llama-3-8b int4, peak device memory: MiB off the plan"]
    assert (memory["value"], memory["reached"]) == (80, "floor")
    assert found["llama-3-8b int4: bitsandbytes-nf4"]["missing"] == "ImportError: none"
    start = gpu.row("second start", 2.5, 3, 3, True)
    assert start["reached"] == "goal" and gpu.row("", 3.1, 3, 3, True)["reached"] == "neither"
    tables = runpy.run_path(str(BENCHES / "tables.py"))
    cells = [[show(row) for show in tables["TABLES"]["gpu"].values()] for row in found.values()]
    assert ["0.8", "0.6", "0.45", "goal"] in [cell[1:] for cell in cells]


def test_a_peer_decodes_what_it_would_without_a_static_cache(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    peers = importlib.import_module("comparison.gpu_engine")
    torch.manual_seed(1)
    peer = peers.GpuPeer(TINY, "bfloat16", 24, "cpu")
    said: list[int] = []
    decode = peer._decode
    monkeypatch.setattr(
        peer, "_step", lambda *given: (said.append(int(given[0])), decode(*given))[1]
    )
    first, rest = peer.turn(12, 6, 3)
    assert first > 0 and rest > 0
    ids = torch.randint(128, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        for token in said:
            logits = peer._model(ids).logits[:, -1]
            assert float(logits.max() - logits[0, token]) < 0.02  # bfloat16's ties
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
