"""SIGKILL while it answers, and start again: how long until the server is ready.

    python tests/soak/restart.py [--kills 10]

Printed: seconds from the start of ``edgelm serve`` to its first 200, and seconds of a Python that
imports torch, in turns. Exits 1 where the medians differ by 2 seconds or more, or where an answer
after the kill differs from the first one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import httpx
from served import ASSETS, NEEDED_S, serving

LIMIT_S = 2.0
ASKED = {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}


def import_s() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start


def killed_while_answering() -> tuple[float, str]:
    """How long the start took, and what the server answered before it was killed."""
    with serving(ASSETS / "nano" / "llama", "--context", "512", "--users", "4") as served:
        address = f"{served.url}/v1/completions"
        told = httpx.post(address, json=ASKED, timeout=NEEDED_S).json()["choices"][0]["text"]
        with httpx.stream("POST", address, json=ASKED | {"stream": True}) as stream:
            next(stream.iter_bytes())
            served.kill()
    return served.ready_s, told


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args()
    imports, starts, texts = [], [], []
    killed_while_answering()  # what a first start writes is there from now on
    for _ in range(given.kills):
        imports.append(import_s())
        ready_s, text = killed_while_answering()
        starts.append(ready_s)
        texts.append(text)
    beyond = statistics.median(starts) - statistics.median(imports)
    print(f"{given.kills} kills; ready after {statistics.median(starts):.2f} s, at most "
          f"{max(starts):.2f} s; import torch {statistics.median(imports):.2f} s; "
          f"{beyond:.2f} s beyond it, {len(set(texts))} answer(s)")  # fmt: skip
    return int(beyond >= LIMIT_S or len(set(texts)) > 1)


if __name__ == "__main__":
    sys.exit(main())
