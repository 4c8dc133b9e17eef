"""How much of a decoded token's time is Python's: all of it but the native library's calls.

    python benches/python_share.py     writes results/python_share.json; exits 1 beyond the limit

Greedy answers of the demo model through the generation loop, as `edgelm bench` runs them; recorded
steps are timed from the call to its return, and what is left is ours, waiting for nothing.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from provenance import announce
from results_file import store

import edgelm
from edgelm.machine import hardware
from edgelm.reports.benchmark import Workload, run_round
from quant.native.tape import Tape

ROUNDS = 7
LIMIT_US = 50.0
WORK = Workload(prompt_tokens=16, decode_tokens=128)


def main() -> int:
    spent = watched_tapes()
    rows = [measured(threads, spent) for threads in range(1, hardware.default_threads() + 1)]
    store("python_share", "python benches/python_share.py", rows, limit_us=LIMIT_US)
    for row in rows:
        print(row)
    return int(any(row["python_us"] > LIMIT_US for row in rows))


def watched_tapes() -> list[float]:
    """Seconds that recorded calls took, in a list of one number that grows."""
    spent, call = [0.0], Tape.__call__

    def timed(tape: Tape) -> None:
        began = time.perf_counter()
        call(tape)
        spent[0] += time.perf_counter() - began

    Tape.__call__ = timed  # type: ignore[method-assign]
    return spent


def measured(threads: int, spent: list[float]) -> dict[str, Any]:
    """Microseconds of a token, medians over the rounds; the first one only records."""
    natively, ours, rates = [], [], []
    with edgelm.load("demo", threads=threads, quant="int4") as lm:
        for number in range(ROUNDS + 1):
            spent[0] = 0.0
            stats = run_round(lm, WORK)
            if number == 0:
                continue
            rates.append(stats.decode_tok_s)
            natively.append(spent[0] / WORK.decode_tokens * 1e6)
            ours.append(stats.decode_s / WORK.decode_tokens * 1e6 - natively[-1])
    return {
        "model": "demo",
        "quant": "int4",
        "threads": threads,
        "rounds": ROUNDS,
        "decode_tok_s": round(median(rates), 1),
        "native_us": round(median(natively), 1),
        "python_us": round(median(ours), 1),
    }


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
