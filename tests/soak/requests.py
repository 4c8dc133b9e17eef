"""Thousands of mixed requests to one open model: memory, handles and threads stay as they were.

    python tests/soak/requests.py [--requests 10000] [--family gemma2] [--seed 1]

Batches, streams that are left, cancelled and refused requests, schemas, beams, conversations and
scores, of random lengths. Printed: resident MiB, open files and threads after the first tenth and
after each further one. Exits 1 where memory grew by more than 20 MiB, or a file or thread was left.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import edgelm
from edgelm.machine.hardware import resident_bytes

MIB = 1 << 20
GROWTH_LIMIT_BYTES = 20 * MIB
ASSETS = Path(
    os.environ.get("EDGELM_ASSETS") or Path(__file__).resolve().parents[3] / "shared" / "assets"
)
CONTEXT = 320
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}},
          "required": ["name"], "additionalProperties": False}  # fmt: skip

Request = Callable[[edgelm.LanguageModel, random.Random], Any]


def words(generator: random.Random, most: int = 40) -> str:
    return " ".join(
        "".join(generator.choices("abcdeilnorst", k=generator.randint(2, 7)))
        for _ in range(generator.randint(1, most))
    )


def options(generator: random.Random) -> dict[str, Any]:
    return {
        "max_new_tokens": generator.randint(1, 12),
        "temperature": generator.choice((0.0, 0.7, 1.2)),
        "seed": generator.randrange(1 << 32),
        **generator.choice(
            (
                {},
                {"top_k": 20},
                {"top_p": 0.9},
                {"repetition_penalty": 1.1},
                {"stop": ["e"]},
                {"logprobs": 2},
            )
        ),
    }


def single(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    lm.generate(words(generator), **options(generator))


def together(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    lm.generate([words(generator, 20) for _ in range(generator.randint(2, 6))],
                **options(generator))  # fmt: skip


def left(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    """A stream that is read for a while: closed, or dropped without a word."""
    stream = lm.stream(words(generator), **options(generator))
    for _ in zip(range(generator.randint(0, 3)), stream, strict=False):
        pass
    if generator.random() < 0.5:
        stream.close()


def cancelled(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    event = threading.Event()
    event.set()
    with suppress(edgelm.CancelledError):
        lm.generate(words(generator), stop_event=event)


def refused(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"prompt": "word " * 4 * CONTEXT},
        {"prompt": words(generator), "temperature": -1.0},
        {"prompt": words(generator), "schema": {"type": "nothing"}},
        {"prompt": [10**9]},
    )
    given = dict(generator.choice(wrong))
    try:
        lm.generate(given.pop("prompt"), **given)
    except edgelm.EdgeLMError:
        return
    raise AssertionError(f"{given} was not refused")


def constrained(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    lm.generate(words(generator, 5), schema=SCHEMA, max_new_tokens=16, temperature=0.0)


def several(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    kind = generator.choice(({"n": 3, "temperature": 1.0}, {"beams": 2}))
    lm.generate(words(generator, 10), max_new_tokens=5, **kind)


def scored(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    if generator.random() < 0.5:
        lm.score(words(generator, 30), words(generator, 5))
    else:
        lm.score_all([(words(generator, 10), words(generator, 5)) for _ in range(4)])


def kept(lm: edgelm.LanguageModel, generator: random.Random) -> None:
    """Two turns that share their beginning."""
    start = words(generator, 20)
    lm.generate(start, max_new_tokens=3, keep_prefix=True)
    lm.generate(f"{start} {words(generator, 5)}", max_new_tokens=3, keep_prefix=True)


REQUESTS: tuple[Request, ...] = (
    single, single, single, together, left, cancelled, refused, constrained, several, scored, kept,
)  # fmt: skip


def state() -> tuple[int, int, int]:
    """Resident bytes, open files, threads."""
    return resident_bytes(), *(len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--family", default="gemma2")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    generator, seen, done = random.Random(given.seed), [], Counter[str]()
    start = time.monotonic()
    with edgelm.load(ASSETS / "nano" / given.family, context=CONTEXT, rows=3) as lm:
        for index in range(1, given.requests + 1):
            request = generator.choice(REQUESTS)
            request(lm, generator)
            done[request.__name__] += 1
            if index % (given.requests // 10) == 0:
                seen.append(state())
                told = "{:.1f} MiB, {} files, {} threads".format(seen[-1][0] / MIB, *seen[-1][1:])
                print(f"{index} requests, {time.monotonic() - start:.0f} s: {told}", flush=True)
    growth = max(bytes_ for bytes_, *_ in seen) - seen[0][0]
    left_behind = any(
        after > before for after, before in zip(seen[-1][1:], seen[0][1:], strict=True)
    )
    print(f"{dict(done)}; at most {growth / MIB:+.1f} MiB after the first tenth")
    return int(growth > GROWTH_LIMIT_BYTES or left_behind)


if __name__ == "__main__":
    sys.exit(main())
