"""How fast and how large we are on a CUDA device, beside other engines, in one interleaved run.

    pip install 'edgelm[peers]'
    python benches/gpu.py                    every row: about half an hour on a large card
    python benches/gpu.py --rounds 3 --no-peers

Writes results/gpu.json, from which tables.py renders the README. Each model is loaded alone first
(its peak of device memory against its plan), then beside transformers with bitsandbytes' nf4,
torchao's int4 (tile-packed, compiled, static cache) and bfloat16 (compiled, CUDA graphs). In each
round everybody has one turn, beginning with the next one each time; in between the card's copy
bandwidth (reads and writes both counted) and its rate of bfloat16 products are measured, and shares
are of those. Who could not take part is named with the reason. Without a CUDA device it says so and
ends with 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from checkpoints import write_model
from provenance import announce
from results_file import store
from second_start import IMPORT_TORCH, START, fresh_process

import edgelm
from edgelm.budget.plan import Plan
from edgelm.checkpoint.shapes import shape_config
from edgelm.machine import accelerators

PROMPT, STEPS = 2048, 128
FAR = 8192  # twice Gemma 2's window
MIB = 1 << 20
Turn = Callable[[int, int, int], tuple[float, float]]


@dataclass
class Case:
    """One of our models, and what its rounds gave."""

    shape: str
    quant: str
    plan: Plan | None = None
    peak_bytes: int = 0
    bytes_per_token: int = 0
    matrix_numbers: int = 0
    copy_gb_s: list[float] = field(default_factory=list)
    matrix_tflops: list[float] = field(default_factory=list)
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def decode_tok_s(self, engine: str) -> float:
        return STEPS / median(decode for _, decode in self.seconds[engine])

    def decode_share(self) -> float:
        """Of the copy bandwidth, round by round."""
        rates = [self.bytes_per_token * STEPS / s / 1e9 for _, s in self.seconds["edgelm"]]
        return median(r / limit for r, limit in zip(rates, self.copy_gb_s, strict=True))

    def prefill_share(self) -> float:
        """Of the rate of bfloat16 products; attention and the head's one row are not counted."""
        work = 2 * self.matrix_numbers * PROMPT / 1e12
        rates = [work / s for s, _ in self.seconds["edgelm"]]
        return median(r / limit for r, limit in zip(rates, self.matrix_tflops, strict=True))

    def peer_ratio(self) -> float | None:
        peers = [self.decode_tok_s(name) for name in self.seconds if name != "edgelm"]
        return self.decode_tok_s("edgelm") / max(peers) if peers else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        card = accelerators.find("cuda")
    except edgelm.EdgeLMError as error:
        print(f"benches/gpu.py measures CUDA devices: {error}", file=sys.stderr)
        return 1
    assert card is not None
    big, small = Case("llama-3-8b", "int4"), Case("gemma-2-2b", "int4")
    wide = Case("llama-3-8b", "int8")
    for case in (big, small, wide):
        with_peers = case is big and not options.no_peers
        run(case, options.rounds, with_peers)
        say(f"{case.shape} {case.quant}: {case.decode_tok_s('edgelm'):.1f} tok/s")
    found = rows(big, small, wide)
    found.insert(
        0, row("Llama-3.2-1B, second start beyond `import torch`: s", second_start_s(), 3, 3, True)
    )
    found.insert(
        1, row("Gemma-2-2B in bfloat16: tokens until a number is not finite", far(), FAR, FAR)
    )
    command = f"python benches/gpu.py --rounds {options.rounds}"
    store("gpu", command, found, machine=card.name, cuda=torch.version.cuda)
    return 0


def run(case: Case, rounds: int, with_peers: bool) -> None:
    """Everybody loaded, one turn to warm up, then the rounds."""
    from comparison.edgelm_engine import EdgeLM

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = EdgeLM(
        case.shape, os.cpu_count() or 1, shape=True, quant=case.quant, device="cuda",
        context=PROMPT + STEPS + 16, chunk=PROMPT,
    )  # fmt: skip
    engines: dict[str, Turn] = {"edgelm": ours.turn}
    ours.turn(PROMPT, STEPS, 0)
    case.plan, case.bytes_per_token = ours.plan, ours.about["bytes_per_token"]
    case.matrix_numbers = sum(
        p.shape[0] * p.shape[1] for p in ours.plan.products if p.names[0].startswith("layers.")
    )
    case.peak_bytes = torch.cuda.max_memory_allocated() - before
    if with_peers:
        load_peers(case, engines)
    names = list(engines)
    for number in range(rounds):
        case.copy_gb_s.append(accelerators.copy_gb_s("cuda:0"))
        case.matrix_tflops.append(matrix_tflops())
        turn = names[number % len(names) :] + names[: number % len(names)]
        for name in turn:
            case.seconds.setdefault(name, []).append(engines[name](PROMPT, STEPS, number + 1))
    engines.clear()
    ours.close()
    gc.collect()
    torch.cuda.empty_cache()


def far() -> int:
    """How many tokens of one text Gemma 2 goes without a non-finite number, its window passed."""
    from comparison.edgelm_engine import EdgeLM

    ours = EdgeLM(
        "gemma-2-2b", os.cpu_count() or 1, shape=True, quant="int4", device="cuda",
        context=FAR + 16, chunk=512, dtype="bfloat16",
    )  # fmt: skip
    reached = 0
    try:
        for count in (FAR // 4, FAR // 2, FAR - STEPS):
            ours.turn(count, STEPS, 0)
            reached = count + STEPS
    except edgelm.NonFiniteError as error:
        say(f"gemma-2-2b: {error}")
    ours.close()
    return reached


def second_start_s(rounds: int = 3) -> float:
    """Process start to first token of 16, kernels compiled, tiles measured and weights laid out."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "model", str(Path(scratch) / "cache")
        write_model(shape_config("llama-3.2-1b"), folder)
        fresh_process(START, str(folder), "512", cache=cache)
        pairs = [
            (
                fresh_process(IMPORT_TORCH, cache=cache),
                fresh_process(START, str(folder), "512", cache=cache),
            )
            for _ in range(rounds)
        ]
    return median(ours["process_s"] - bare["process_s"] for bare, ours in pairs)


def load_peers(case: Case, engines: dict[str, Turn]) -> None:
    """Those that load and answer once; the others with their reason."""
    try:
        from comparison.gpu_engine import LAYERS, GpuPeer
    except ImportError as error:
        case.missing["transformers"] = str(error)
        return
    for layers in LAYERS:
        try:
            peer = GpuPeer(case.shape, layers, PROMPT + STEPS)
            for _ in range(2):  # compiling, and the capture after it
                peer.turn(PROMPT, 8, 0)
            engines[layers] = peer.turn
        except Exception as error:  # theirs, of whatever kind
            case.missing[layers] = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"{layers} takes no part: {case.missing[layers]}")
            gc.collect()
            torch.cuda.empty_cache()


def matrix_tflops(size: int = 8192, rounds: int = 5) -> float:
    """Rate of bfloat16 products of square matrices, the best of some."""
    left, right = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    out, best = torch.empty_like(left), 0.0
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


def rows(big: Case, small: Case, wide: Case) -> list[dict[str, Any]]:
    """Issue 8's table with what was measured."""
    made = [
        row("Llama-3-8B, int4 decode: share of the copy bandwidth", big.decode_share(), 0.6, 0.45),
        row("Gemma-2-2B, int4 decode: share of the copy bandwidth", small.decode_share(), 0.4, 0.3),
        row("Llama-3-8B, int8 decode: share of the copy bandwidth", wide.decode_share(), 0.75, 0.6),
        row("Llama-3-8B, int4 decode: times the best peer", big.peer_ratio(), 1.3, 1.1),
        row("Llama-3-8B, prefill 2048: share of the bf16 rate", big.prefill_share(), 0.6, 0.45),
    ]
    for case in (big, small, wide):
        assert case.plan is not None
        planned = case.plan.predicted_device_peak_bytes
        off = abs(case.peak_bytes - planned)
        bounds = (0.02 * planned + 50 * MIB, 0.04 * planned + 100 * MIB)
        what = f"{case.shape} {case.quant}, peak device memory: MiB off the plan"
        made.append(row(what, off / MIB, *(bound / MIB for bound in bounds), lower=True))
    return made + [engine for case in (big, small, wide) for engine in speeds(case)]


def row(
    what: str, value: float | None, goal: float, floor: float, lower: bool = False
) -> dict[str, Any]:
    """A line of the table; ``value`` None where nobody could be measured."""
    told: dict[str, Any] = {"row": what, "goal": goal, "floor": floor}
    if value is None:
        return told | {"missing": "no peer could be measured"}
    sign = -1 if lower else 1
    reached = "goal" if sign * value >= sign * goal else "floor"
    reached = reached if sign * value >= sign * floor else "neither"
    return told | {"value": value, "reached": reached}


def speeds(case: Case) -> list[dict[str, Any]]:
    """Every engine's own speed on a case."""
    limits = {"copy_gb_s": median(case.copy_gb_s), "matrix_tflops": median(case.matrix_tflops)}
    found: list[dict[str, Any]] = [
        {
            "row": f"{case.shape} {case.quant}: {name}, decode tok/s",
            "value": case.decode_tok_s(name),
            "prefill_tok_s": PROMPT / median(prefill for prefill, _ in case.seconds[name]),
            **limits,
        }
        for name in case.seconds
    ]
    for name, reason in case.missing.items():
        found.append({"row": f"{case.shape} {case.quant}: {name}", "missing": reason})
    return found


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
