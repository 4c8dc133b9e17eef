"""Every operation of a step compiled for real cards, none of which need be present.

The interpreter runs what a kernel says; whether Triton's compiler takes it, and with how much
shared memory, shows here. The test runs this file as a process of its own, because kernels
elsewhere are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up_cards import pretend

from edgelm.ops.position import Angles
from edgelm.ops.reference import ACTIVATIONS, Scoring
from edgelm.ops.triton import TritonOps

CARDS = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 90: 227 << 10}
"""Compute capability -> shared memory that one program may take (CUDA's programming guide)."""
HEADS = ((32, 8, 128), (8, 4, 256), (64, 64, 64), (5, 5, 80), (9, 3, 64))
"""Query heads, key heads and their size: Llama 3, Gemma 2, Persimmon, an odd size, SmolLM2."""


def rows(ops: TritonOps, dtype: torch.dtype, size: int) -> None:
    """Norms and maps."""
    x, weight = torch.zeros(2, size, dtype=dtype), torch.zeros(size)
    ops.rms_norm(x, weight, 1e-5, torch.empty_like(x), weight)
    ops.layer_norm(x, weight, weight, 1e-5, torch.empty_like(x), weight)
    for name in ACTIVATIONS:
        ops.activation(x, name, torch.empty_like(x))
        ops.gated_activation(x, name, torch.empty(2, size // 2, dtype=dtype))
    ops.scale_(x, 2.0)
    ops.softcap_(x, 30.0)
    ops.add_(x, x.clone())


def attention(
    ops: TritonOps, dtype: torch.dtype, storage: torch.dtype, heads: tuple[int, int, int],
    window: int | None, scoring: Scoring,
) -> None:  # fmt: skip
    """Rotation, writing, single tokens and a prompt over one cache."""
    count, groups, size = heads
    slots, scales = 512, storage == torch.int8
    held = [torch.zeros(2, groups, slots, size, dtype=storage) for _ in range(2)]
    held += [torch.zeros(2, groups, slots, 1, dtype=torch.bfloat16) for _ in range(2 * scales)]
    cache = SimpleNamespace(tensors_of=lambda layer: held, window_of=lambda layer: window)
    for tokens in (1, 70):
        places = torch.zeros(2, tokens, dtype=torch.int64)
        segment = SimpleNamespace(row=0, position=0, count=tokens, start=0)
        step: Any = SimpleNamespace(
            cache=cache, rows=places[0], positions=places[1], segments=[segment]
        )
        both = torch.zeros(tokens, count + groups, size, dtype=dtype)
        angles = Angles(torch.zeros(2, 600, size // 2, dtype=dtype), places[1])
        rope: Any = SimpleNamespace(interleaved=tokens > 1)
        step.angles = angles
        ops.rotate_and_store(step, 0, both, both[:, count:], rope, torch.empty_like(both))
        ops.store(step, 0, both[:, count:], both[:, count:])
        queries = both[:, :count]
        ops.attend(step, 0, queries, scoring, torch.empty(tokens, count, size, dtype=dtype))


def main() -> None:
    made: list[Any] = []
    found: dict[str, Any] = {}
    for card in CARDS:
        pretend(card, made)
        dtypes = (torch.float16, torch.float32) if card < 80 else (torch.bfloat16, torch.float32)
        ops = TritonOps(torch.zeros(64 * 2 * (256 + 2)), 16)
        first = len(made)
        for dtype in dtypes:
            # On the newest all heads; elsewhere the largest, which ask for most memory (on cards
            # without bfloat16 Gemma 2's are float32).
            largest = HEADS[0] if dtype == torch.float16 else HEADS[1]
            for heads in HEADS if card == 90 and dtype != torch.float32 else [largest]:
                attention(ops, dtype, dtype, heads, 300, Scoring(0.1, softcap=50.0))
        if card == 90:
            rows(ops, torch.bfloat16, 4096)
            attention(ops, torch.bfloat16, torch.int8, HEADS[0], None, Scoring(0.1))
            slopes = Scoring(0.1, slopes=torch.zeros(64))
            attention(ops, torch.bfloat16, torch.float32, HEADS[2], None, slopes)
        own = made[first:]
        found[str(card)] = {
            "kernels": len(own),
            "shared bytes": max(code.metadata.shared for code in own),
            "products": sum("mma" in code.asm["ptx"] for code in own),
        }
    print(json.dumps(found), flush=True)
    os._exit(0)  # what Triton leaves behind without a driver may crash on the way out


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_all_operations_compile_for_every_card(tmp_path: Path) -> None:
    """Within the shared memory that a card has; bfloat16 on its tensor cores."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", ""))
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for card, counts in json.loads(done.stdout).items():
        print(f"compute capability {card}: {counts}, bound {CARDS[int(card)]} shared bytes")
        assert counts["shared bytes"] <= CARDS[int(card)]
        assert counts["products"] > 0 or int(card) < 80  # Triton uses tensor cores from Ampere on


if __name__ == "__main__":
    main()
