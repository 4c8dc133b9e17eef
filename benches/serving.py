"""`edgelm serve` and llama-server on the same GGUF file and threads: 1, 4 and 8 clients at once.

    pip install 'edgelm[peers]' httpx
    python benches/serving.py --llama-server PATH [--kinds Q4_0 Q8_0] [--rounds 5] [--files DIR]

llama-server is built from the sources in the sdist of llama-cpp-python, the version installed:

    pip download --no-deps --no-binary :all: llama-cpp-python==VERSION && tar xzf llama_cpp_python-*
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DLLAMA_BUILD_SERVER=ON -DLLAMA_CURL=OFF
    cmake --build build --target llama-server

Both servers are up at once, with rows for 8 answers; in each round they take turns, one beginning
in every other round. Each client sends requests one after the other, of random ids that nobody
sent before, and reads the stream. Throughput is new tokens over the time from the first request to
the last token, so prompts count; the time to the first token is that of each request under this
load. Writes results/serving.json: medians over rounds, and the median ratio of turns side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from comparison.gguf_models import gguf_file
from provenance import announce
from results_file import store

CLIENTS = (1, 4, 8)
SLOTS, CONTEXT = max(CLIENTS), 512
READY_S = 300.0


@dataclass(frozen=True)
class Engine:
    """A server: its command without the port, and what its requests have beside the common fields.

    Neither may end an answer early, nor keep prompts.
    """

    name: str
    command: tuple[str, ...]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """New tokens a second of all clients together; seconds to the first token of each request."""

    tok_s: float
    first_s: tuple[float, ...]


def engines(file: Path, llama_server: str, threads: int, new: int) -> tuple[Engine, Engine]:
    own = (
        *(sys.executable, "-m", "edgelm", "serve", str(file), "--threads", str(threads)),
        *("--context", str(CONTEXT), "--users", str(SLOTS)),
    )
    theirs = (
        *(llama_server, "-m", str(file), "-t", str(threads), "-tb", str(threads)),
        *("-c", str(CONTEXT * SLOTS), "-np", str(SLOTS), "--cache-ram", "0", "--no-webui"),
    )
    return (
        Engine("edgelm serve", own, {"min_tokens": new}),
        Engine("llama-server", theirs, {"ignore_eos": True, "cache_prompt": False}),
    )


@contextmanager
def started(engine: Engine) -> Iterator[str]:
    """The address of a server that is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*engine.command, "--port", str(port)], stdout=log, stderr=log)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{process.args!r:.200} does not become ready: run it by hand to see why")


async def turn(
    engine: Engine, url: str, clients: int, each: int, prompt: int, new: int, seed: int
) -> Turn:
    """All clients' requests, ``each`` of them one after the other."""
    generator = np.random.default_rng(seed)
    firsts: list[float] = []
    tokens = 0

    async def ask(client: httpx.AsyncClient, ids: list[int]) -> None:
        nonlocal tokens
        body = {
            "prompt": ids, "max_tokens": new, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, **engine.extra,
        }  # fmt: skip
        start, first = time.perf_counter(), None
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise SystemExit(f"{engine.name}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.perf_counter() - start
                    tokens += (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", 0)
        assert first is not None
        firsts.append(first)

    async def work(ids: list[list[int]]) -> None:
        async with httpx.AsyncClient(timeout=None) as client:
            for own in ids:
                await ask(client, own)

    start = time.perf_counter()
    given = generator.integers(300, 2000, (clients, each, prompt)).tolist()
    await asyncio.gather(*map(work, given))
    if tokens != clients * each * new:
        raise SystemExit(f"{engine.name} made {tokens} tokens instead of {clients * each * new}")
    return Turn(tokens / (time.perf_counter() - start), tuple(firsts))


def measured(pair: tuple[Engine, Engine], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of clients."""
    turns: dict[tuple[str, int], list[Turn]] = {}
    with ExitStack() as stack:
        urls = {engine.name: stack.enter_context(started(engine)) for engine in pair}
        for number in range(-1, given.rounds):  # the first one warms up and does not count
            for clients in CLIENTS:
                for engine in pair if number % 2 == 0 else reversed(pair):
                    time.sleep(1)
                    sizes = (clients, given.each, given.prompt, given.new)
                    seed = 1000 * (number + 1) + clients
                    one = asyncio.run(turn(engine, urls[engine.name], *sizes, seed))
                    print(f"round {number + 1}, {clients} clients, {engine.name}: "
                          f"{one.tok_s:.1f} tok/s, first token after "
                          f"{statistics.median(one.first_s):.2f} s", flush=True)  # fmt: skip
                    if number >= 0:
                        turns.setdefault((engine.name, clients), []).append(one)
    return [row(clients, *(turns[engine.name, clients] for engine in pair)) for clients in CLIENTS]


def row(clients: int, own: list[Turn], theirs: list[Turn]) -> dict[str, Any]:
    ratios = [a.tok_s / b.tok_s for a, b in zip(own, theirs, strict=True)]
    told: dict[str, Any] = {"clients": clients}
    for name, turns in (("edgelm", own), ("llama_server", theirs)):
        firsts = [first for one in turns for first in one.first_s]
        told |= {
            f"{name}_tok_s": round(statistics.median(one.tok_s for one in turns), 2),
            f"{name}_first_s": round(statistics.median(firsts), 3),
            f"{name}_slowest_first_s": round(max(firsts), 3),
        }
    told |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llama-server", required=True, help="the program; see above")
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--kinds", nargs="+", default=["Q4_0", "Q8_0"])
    parser.add_argument("--files", type=Path, help="a folder where the models are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", type=int, default=2, help="requests of a client in a turn")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    given = parser.parse_args()
    asked = [given.llama_server, "--version"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        files = given.files or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for kind in given.kinds:
            file = gguf_file(files, given.shape, kind, given.threads)
            pair = engines(file, given.llama_server, given.threads, given.new)
            rows += [{"file": file.name, **own} for own in measured(pair, given)]
    store(
        "serving", f"python benches/serving.py --llama-server PATH --rounds {given.rounds}", rows,
        threads=given.threads, requests_of_a_client=given.each, prompt_tokens=given.prompt,
        new_tokens=given.new, llama_server=(said.stderr or said.stdout).splitlines()[0],
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    announce()
    sys.exit(main())
