"""Agents on a model with a sliding window: how many tokens of their prompts are run again.

    python tests/soak/agent.py [--requests 10000] [--agents 3] [--seed 1]

An agent sends its whole conversation with each request, as every client of the interface does: the
answer that it got and a tool's result are added, until the context is full and a new conversation
begins. Nano Gemma 2 sees 64 tokens in every other layer; conversations grow to 1024. A token is
new if no request before it in its conversation had it, as a prompt or as an answer; what else of
the prompts was not kept was run again. Exits 1 where that is 2 % of the prompts' tokens or more.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from served import MIB, NEEDED_S, Served, serving, with_template

LIMIT = 0.02
CONTEXT = 1024
ANSWER = 24


@dataclass
class Counts:
    """Tokens of prompts; of these, new ones and those that a row held."""

    requests: int = 0
    prompt: int = 0
    new: int = 0
    kept: int = 0

    @property
    def again(self) -> int:
        return self.prompt - self.new - self.kept


async def agent(
    client: httpx.AsyncClient, generator: random.Random, counts: Counts, most: int
) -> None:
    """Conversations, one after the other, until all agents together made ``most`` requests."""
    while counts.requests < most:
        await conversation(client, generator, counts, most)


async def conversation(
    client: httpx.AsyncClient, generator: random.Random, counts: Counts, most: int
) -> None:
    messages: list[dict[str, str]] = []
    known = 0  # tokens of the last prompt and its answer
    while counts.requests < most:
        messages.append({"role": "user", "content": result(generator)})
        body = {"messages": messages, "max_tokens": ANSWER, "temperature": 0.8}
        answer = await client.post("/v1/chat/completions", json=body)
        told = answer.json()
        if answer.status_code == 400 and told["error"]["code"] == "context_length_exceeded":
            return
        assert answer.status_code == 200, told
        usage = told["usage"]
        prompt, kept = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
        counts.requests += 1
        counts.prompt += prompt
        counts.new += max(0, min(prompt - known, prompt - kept))
        counts.kept += kept
        known = prompt + usage["completion_tokens"]
        messages.append({"role": "assistant", "content": told["choices"][0]["message"]["content"]})


def result(generator: random.Random) -> str:
    """What a tool might have found: words, numbers, lines."""
    words = ["".join(generator.choices("abcdeilnorst", k=generator.randint(2, 7)))
             for _ in range(generator.randint(3, 12))]  # fmt: skip
    return f"The tool said:\n{generator.randrange(1000)} {' '.join(words)}"


async def worked(served: Served, requests: int, agents: int, seed: int) -> Counts:
    counts, generator, start = Counts(), random.Random(seed), time.monotonic()
    async with httpx.AsyncClient(base_url=served.url, timeout=NEEDED_S) as client:
        running = asyncio.gather(
            *(agent(client, random.Random(generator.random()), counts, requests)
              for _ in range(agents))
        )  # fmt: skip
        for tenth in range(1, 11):
            while counts.requests < requests * tenth // 10 and not running.done():
                await asyncio.sleep(0.1)
            print(f"{time.monotonic() - start:.0f} s: {counts}, {counts.again} again, "
                  f"{served.memory_bytes() / MIB:.1f} MiB", flush=True)  # fmt: skip
        await running
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    options: tuple[Any, ...] = ("--context", str(CONTEXT), "--users", str(given.agents))
    with tempfile.TemporaryDirectory() as folder:
        model = with_template("gemma2", Path(folder))
        with serving(model, *options) as own:
            counts = asyncio.run(worked(own, given.requests, given.agents, given.seed))
            kept = own.measure("edgelm_kept_tokens_total")
            prompt = own.measure("edgelm_prompt_tokens_total")
    share = counts.again / counts.prompt
    print(
        f"{counts.requests} requests: {counts.prompt} tokens of prompts, {counts.again} run "
        f"again: {share:.2%}; the server counts {kept:.0f} kept of {prompt:.0f}"
    )
    return int(share >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
