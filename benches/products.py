"""Products of one linear layer, every kernel in turn: GB/s for one row of activations, GF for more.

    python benches/products.py [--rows 1 4 32 256] [--threads 2] [--rounds 7] [KERNEL:SCHEME ...]
    python benches/products.py native.int4:int4-g32 torch.int4pack:int4-g32 torch.mm:bfloat16

Each round times every case once and reads plain memory once; a line has the medians. Weights are
rotated through more than the last cache holds. `of read` is the share of the bandwidth that
plain reading reached in the same run. A native kernel's name may say an instruction set:
native.int4@avx2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from provenance import announce

from edgelm.machine import hardware
from quant import PackedWeight, Scheme, find, native

SHAPE = (11008, 4096)
BEYOND_CACHE_BYTES = 160 * 2**20
CASES = (
    *("native.int4:int4-g32", "native.int4:int4-g64", "native.int4:int4-g128"),
    *("native.int8:int8", "native.int8:int8-g32", "native.int4@avx2:int4-g32"),
    *("native.int4:q4_k", "native.int5:q5_k", "native.int6:q6_k", "native.iq4:iq4_xs"),
    *("torch.int4pack:int4-g32", "torch.int8pack:int8", "torch.mm:bfloat16"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 32, 256])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for rows in options.rows:
        works = {case: product(case, rows) for case in options.cases}
        times: dict[str, list[float]] = {case: [] for case in works}
        reads = []
        for _ in range(options.rounds):
            reads.append(hardware.read_gb_s(rounds=1))
            for case, (work, _) in works.items():
                times[case].append(timed(work, rows))
        read_gb_s = statistics.median(reads)
        for case, (_, nbytes) in works.items():
            seconds = statistics.median(times[case])
            row = {"case": case, "rows": rows, "threads": options.threads}
            if rows == 1:
                row["gb_s"] = round(nbytes / seconds / 1e9, 1)
                row["of_read"] = round(nbytes / seconds / 1e9 / read_gb_s, 2)
            row["gf"] = round(2 * rows * SHAPE[0] * SHAPE[1] / seconds / 1e9)
            row["us"] = round(seconds * 1e6)
            print(json.dumps(row | {"read_gb_s": round(read_gb_s, 1)}), flush=True)
    return 0


def product(case: str, rows: int) -> tuple[Callable[[], None], int]:
    """(one product over the next copy of the weights, bytes that it reads)."""
    name, text = case.split(":")
    name, _, isa = name.partition("@")
    kernel, scheme = find(name), Scheme.parse(text)
    layout = kernel.prepare(random_weight(scheme))
    nbytes = kernel.nbytes(scheme, SHAPE)
    copies = [
        {n: t.clone() for n, t in layout.items()} for _ in range(BEYOND_CACHE_BYTES // nbytes)
    ]
    dtype = torch.float32 if kernel.backend == "native" else torch.bfloat16
    x, out = torch.randn(rows, SHAPE[1]).to(dtype), torch.empty(rows, SHAPE[0], dtype=dtype)
    turn = 0

    def work() -> None:
        nonlocal turn
        if kernel.backend == "native":
            native.use_isa(isa or native.isas()[-1])
        turn = (turn + 1) % len(copies)
        kernel.multiply(x, copies[turn], scheme, None, out)

    return work, nbytes


def random_weight(scheme: Scheme) -> PackedWeight:
    packed = PackedWeight.empty(SHAPE, scheme)
    if scheme.is_float:
        packed.qweight.normal_()
    else:
        packed.qweight.view(torch.uint8).random_(256)
    for numbers in (packed.scales, packed.zeros, packed.supers):
        if numbers is not None:
            numbers.fill_(0.01 if numbers.is_floating_point() else 8)
    return packed


def timed(work: Callable[[], None], rows: int) -> float:
    """Seconds of one product: the mean over a run of some milliseconds."""
    work()
    count = max(1, 8 // rows)
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
