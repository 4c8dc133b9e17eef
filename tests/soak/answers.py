"""The same tokens for a seed, whatever runs beside: random cases against a plain run of each.

    python tests/soak/answers.py [--cases 1000] [--seed 1]

A case draws a nano model, a scheme, a type of cache and the options of some prompts. Its plain run
has one row, one thread, whole chunks and no guesses; the other one a drawn number of rows, threads
and tokens a chunk, and guesses by text or by a draft model. Exits 1 where a token differs.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgelm
from edgelm.machine import hardware

ASSETS = Path(
    os.environ.get("EDGELM_ASSETS") or Path(__file__).resolve().parents[3] / "shared" / "assets"
)
FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
SCHEMES = ("int8", "int4", "int4-g32", "int4-g64", "nf4")
CACHES = ("float32", "bfloat16", "int8")
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 0.9, "typical_p": 0.8},
    {"temperature": 0.8, "repetition_penalty": 1.2},
    {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.3},
)
CONTEXT, NEW_TOKENS = 256, 24


@dataclass(frozen=True)
class Case:
    """``plain``: settings of both runs; ``other``: what the second run has beside them."""

    family: str
    plain: dict[str, Any]
    other: dict[str, Any]
    prompts: list[str]
    options: dict[str, Any]
    speculate: str
    drafted: bool

    def run(self, settings: dict[str, Any], **options: Any) -> list[tuple[int, ...]]:
        folder = ASSETS / "nano" / self.family
        with edgelm.load(folder, context=CONTEXT, **self.plain, **settings) as lm:
            answers = lm.generate(self.prompts, **self.options, **options)
            return [answer.token_ids for answer in answers]

    def differs(self) -> bool:
        expected = self.run({"rows": 1, "threads": 1}, speculate="off")
        draft = {"draft": ASSETS / "nano" / self.family} if self.drafted else {}
        return self.run(self.other | draft, speculate=self.speculate) != expected


def draw(generator: random.Random, texts: list[str]) -> Case:
    rows = generator.choice((1, 2, 3, 5, 8))
    count = generator.randint(1, rows + 1)
    chunk = generator.choice((1, 3, 7, 16, 64, "auto"))
    # A step of one token leaves a draft model nothing to guess.
    guesses = generator.choice(("off", "auto") if chunk == 1 else ("off", "auto", "draft"))
    return Case(
        family=generator.choice(FAMILIES),
        plain={"quant": generator.choice(SCHEMES), "kv": generator.choice(CACHES)},
        other={
            "rows": rows,
            "threads": generator.choice((1, 2)),
            "chunk": chunk,
        },
        prompts=[prompt(generator, texts) for _ in range(count)],
        options={
            **generator.choice(SAMPLERS),
            "seed": [generator.randrange(1 << 32) for _ in range(count)],
            "max_new_tokens": NEW_TOKENS,
        },
        speculate="off" if guesses == "off" else "auto",
        drafted=guesses == "draft",
    )


def prompt(generator: random.Random, texts: list[str]) -> str:
    """A stretch of the held-out text; sometimes said twice, so that guesses by text happen."""
    words = generator.choice(texts).split()
    start = generator.randrange(max(1, len(words) - 8))
    chosen = " ".join(words[start : start + generator.randint(3, 25)])
    return f"{chosen} {chosen}" if generator.random() < 0.5 else chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    held_out = (ASSETS / "nano" / "heldout.txt").read_text(encoding="utf-8")
    texts = [text for text in held_out.split("\n") if len(text.split()) > 12]
    start, different = time.monotonic(), 0
    for index in range(given.cases):
        case = draw(generator, texts)
        if case.differs():
            different += 1
            print(f"case {index} differs: {case}", flush=True)
        if (index + 1) % 100 == 0:
            print(f"{index + 1} cases, {different} differ, {time.monotonic() - start:.0f} s",
                  flush=True)  # fmt: skip
    print(
        f"{given.cases} cases (seed {given.seed}), {different} differ; peak "
        f"{hardware.peak_resident_bytes() >> 20} MiB"
    )
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
