"""Quantizing rows: seconds per billion weights in torch and in the native library, and the error.

    python benches/methods.py [--threads 1] [--rounds 3] [--rows 512] [METHOD:SCHEME ...]
    python benches/methods.py mse:q4_k rtn:int4-g32

Each round packs Gaussian rows of 4096 inputs once with each, one after the other, as loading does:
codes, scales and the error in dB. A line has the medians: `native_s` and `torch_s` of the clock,
`native_cpu_s` and `torch_cpu_s` of the processor, which counts all threads and little of what other
programs do. hqq has no native loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from unittest.mock import patch

import torch
from provenance import announce
from torch import Tensor

from quant import Scheme, pack

INPUTS = 4096
CASES = [
    f"{method}:{scheme}"
    for scheme in ("int4-g32", "int4-g32-zfloat", "q4_k", "iq4_xs", "q6_k", "nf4", "int8")
    for method in ("rtn", "mse")
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = torch.randn(options.rows, INPUTS, generator=torch.Generator().manual_seed(1)) * 0.02
    for case in options.cases:
        method, scheme = case.split(":")
        rounds = [timed_both(weights, Scheme.parse(scheme), method) for _ in range(options.rounds)]
        medians = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        row = {"method": method, "scheme": scheme, "threads": options.threads}
        print(json.dumps(row | {k: round(v, 2) for k, v in medians.items()}), flush=True)
    return 0


def timed_both(weights: Tensor, scheme: Scheme, method: str) -> dict[str, float]:
    """Seconds per billion weights of either, and the decibels, which are the same."""
    native_s, native_cpu_s, native_db = timed(weights, scheme, method)
    with patch("quant.native.search.missing", lambda: "left out"):
        torch_s, torch_cpu_s, torch_db = timed(weights, scheme, method)
    assert abs(native_db - torch_db) < 1e-3
    return {
        "native_s": native_s, "torch_s": torch_s, "native_cpu_s": native_cpu_s,
        "torch_cpu_s": torch_cpu_s, "db": torch_db,
    }  # fmt: skip


def timed(weights: Tensor, scheme: Scheme, method: str) -> tuple[float, float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    _, db = pack([(0, weights)], (len(weights), INPUTS), scheme, method)
    billions = weights.numel() / 1e9
    assert db is not None
    return (time.perf_counter() - start) / billions, (time.process_time() - cpu) / billions, db


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
