"""Layers on the CPU beside an accelerator: planned by the device's memory, run on two devices.

Both devices are the CPU here: what is tested is which layer runs where, with whose buffers, and
that plan and ledger agree. Nothing of it has been run on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.budget.placement import host_layers
from edgelm.budget.plan import Plan
from edgelm.machine import accelerators
from edgelm.machine.accelerators import Accelerator
from quant import native, sqnr_db

FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
# float32 on either device, activations never rounded: what the order of additions leaves.
LOGITS_FLOOR_DB = 100.0
OWN: dict[str, Any] = {
    "quant": "int4", "context": 64, "chunk": 16, "rows": 2, "dtype": "float32", "kv": "float32",
    "activations": "float",
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a card with so many bytes free, whose tensors lie on the CPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(accelerators, "torch_device", lambda name: torch.device("cpu"))

    def put(free_bytes: int) -> None:
        found = Accelerator("cuda:0", "made-up card", free_bytes, 1 << 40, bfloat16=True)
        monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: found)

    return put


def plan_with(folder: Path, card: Any, free_bytes: int, **settings: Any) -> Plan:
    card(free_bytes)
    return edgelm.plan(folder, device="cuda", **(OWN | settings))


def test_no_more_layers_than_needed_stay_on_the_host(assets: Path, card: Any) -> None:
    folder = assets / "nano" / "gemma2"
    whole = plan_with(folder, card, 1 << 40, offload="cpu")
    assert host_layers(whole) == 0 and set(whole.placement) == {"cuda:0"}
    needed, layers = whole.predicted_device_peak_bytes, len(whole.placement)
    assert not plan_with(folder, card, needed - 1).fits
    counts = []
    for share in (1.0, 0.95, 0.9, 0.8, 0.6, 0.3):
        made = plan_with(folder, card, int(needed * share), offload="cpu")
        counts.append(host_layers(made))
        assert made.fits == (made.predicted_device_peak_bytes <= int(needed * share))
        assert made.placement == ("cpu",) * counts[-1] + ("cuda:0",) * (layers - counts[-1])
        assert made.fits or counts[-1] == layers
    print(f"{counts} of {layers} layers on the host")
    assert counts == sorted(counts) and counts[0] == 0 and len(set(counts)) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_model_says_what_the_whole_one_says(assets: Path, card: Any, family: str) -> None:
    """Prompts in chunks, single tokens past the window, a second cache; the ledger is exact."""
    folder, ids = assets / "nano" / family, torch.arange(7, 51).repeat(2, 1)
    needed = plan_with(folder, card, 1 << 40).predicted_device_peak_bytes
    made = plan_with(folder, card, int(needed * 0.85), offload="cpu")
    with (
        edgelm.load(folder, device="cuda", offload="cpu", **OWN) as lm,
        edgelm.load(folder, device="cpu", **OWN) as exact,
    ):
        assert 0 < host_layers(lm.plan) == host_layers(made) < len(made.placement)
        card(1 << 40)  # room for a second cache, which nobody planned
        lm.ledger.device_headroom_bytes = 1 << 30
        before = dict(lm.ledger.taken)
        out = lm.forward(ids, output_hidden_states=True)
        expected = exact.forward(ids, output_hidden_states=True)
        assert out.hidden_states is not None and expected.hidden_states is not None
        measured = [sqnr_db(expected.logits, out.logits)]
        measured += map(sqnr_db, expected.hidden_states[1:], out.hidden_states[1:])
        print(f"{family}: {host_layers(lm.plan)} layers on the host, {min(measured):.1f} dB")
        assert min(measured) >= LOGITS_FLOOR_DB
        answers = [
            own.generate(ids[0].tolist(), max_new_tokens=12, temperature=0.0).token_ids
            for own in (lm, exact)
        ]
        assert answers[0] == answers[1]
        taken, planned = dict(lm.ledger.taken), dict(lm.ledger.planned)
        assert taken == before == {name: planned[name] for name in taken}
        assert set(planned) - set(taken) == {"runtime", "kernel scratch"}
        mine = sum(n for name, n in taken.items() if name.startswith("kv cache"))
        theirs = exact.ledger.taken.items()
        assert mine == sum(n for name, n in theirs if name.startswith("kv cache"))
        devices = {p.device for p in lm.plan.products}
        assert devices == {"cpu", "cuda:0"}


def test_what_cannot_be_split_is_refused(assets: Path, card: Any) -> None:
    folder = assets / "nano" / "llama"
    needed = plan_with(folder, card, 1 << 40).predicted_device_peak_bytes
    with pytest.raises(edgelm.UsageError, match="offload 'cpu' runs layers natively"):
        plan_with(folder, card, int(needed * 0.9), offload="cpu", kv="float16")
    with pytest.raises(edgelm.UsageError, match="allowed: none, disk"):
        edgelm.plan(folder, device="cpu", offload="cpu")
