"""Many clients at once for long: each answer is that of the same request alone; memory is bounded.

    python tests/soak/server.py [--clients 64] [--minutes 30] [--seed 1]

Requests of mixed lengths, kinds and samplers, streamed or not; some are cancelled, some wrong. Each
runs alone first. Printed ten times: requests, and resident MiB. Exits 1 where an answer differs
from the one alone, a wrong request is not refused, resident memory grows by 20 MiB or more after
the first tenth, or the peak is above the plan's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from served import MIB, NEEDED_S, Served, serving, with_template

CONTEXT = 512
GROWTH_LIMIT_BYTES = 20 * MIB
KINDS = ("/v1/completions", "/v1/completions", "/v1/chat/completions", "/v1/messages")
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0}, {"temperature": 0.8}, {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20},
)  # fmt: skip
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}},
          "required": ["name"], "additionalProperties": False}  # fmt: skip
WRONG: tuple[tuple[str, Any], ...] = (
    ("/v1/completions", {"prompt": [5] * (CONTEXT + 1)}),
    ("/v1/completions", {"prompt": [10**7]}),
    ("/v1/completions", {"prompt": "x", "unknown": 1}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}]}),
    ("/tokenize", {"text": 3}),
)
Asked = tuple[str, dict[str, Any]]


def requests(generator: random.Random, count: int) -> list[Asked]:
    """Bodies by their paths; some share their beginnings."""
    beginnings = [words(generator, 60) for _ in range(8)]
    return [one(generator, beginnings) for _ in range(count)]


def words(generator: random.Random, most: int) -> str:
    return " ".join(
        "".join(generator.choices("abcdeilnorst", k=generator.randint(2, 7)))
        for _ in range(generator.randint(1, most))
    )


def one(generator: random.Random, beginnings: list[str]) -> Asked:
    path = generator.choice(KINDS)
    prompt = words(generator, 40)
    if generator.random() < 0.5:
        prompt = f"{generator.choice(beginnings)} {prompt}"
    body = {"max_tokens": generator.choice((1, 4, 16, 64)), **generator.choice(SAMPLERS)}
    if path != "/v1/messages":
        body["seed"] = generator.randrange(1 << 32)
    elif body["temperature"]:
        body["temperature"] = 0  # has no seed
    if path == "/v1/completions":
        ids = [generator.randrange(5, 500) for _ in range(generator.randint(1, 300))]
        return path, body | {"prompt": generator.choice((prompt, ids)), "logprobs": 0}
    body["messages"] = [{"role": "user", "content": prompt}]
    if path == "/v1/chat/completions" and generator.random() < 0.3:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        body |= {"response_format": form}
    return path, body


async def whole(client: httpx.AsyncClient, asked: Asked) -> Any:
    """What tells a right answer from a wrong one: text, why it ended, tokens; None for 429."""
    path, body = asked
    answer = await client.post(path, json=body)
    if answer.status_code == 429:
        return None
    assert answer.status_code == 200, f"{path} {body}: {answer.text}"
    told = answer.json()
    if path == "/v1/messages":
        text = "".join(block["text"] for block in told["content"])
        return text, told["stop_reason"], told["usage"]["output_tokens"], None
    [choice] = told["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return text, choice["finish_reason"], told["usage"]["completion_tokens"], choice["logprobs"]


async def streamed(client: httpx.AsyncClient, asked: Asked, most: int = 1 << 30) -> Any:
    """The same of a stream; after ``most`` lines the client goes, and there is nothing to tell."""
    path, body = asked
    more = {} if path == "/v1/messages" else {"stream_options": {"include_usage": True}}
    found = _Parts()
    async with client.stream("POST", path, json=body | {"stream": True} | more) as answer:
        if answer.status_code == 429:
            return None
        assert answer.status_code == 200, f"{path} {body}: {await answer.aread()!r}"
        async for line in answer.aiter_lines():
            most -= 1
            if most < 0:
                return None
            if line.startswith("data: {"):
                found.add(json.loads(line.removeprefix("data: ")))
    return found.text, found.reason, found.tokens, found.logprobs


@dataclass
class _Parts:
    """The parts of a stream, put together."""

    text: str = ""
    reason: Any = None
    tokens: int = 0
    logprobs: Any = None

    def add(self, part: dict[str, Any]) -> None:
        assert "error" not in part, part
        if "type" in part:
            self.text += part.get("delta", {}).get("text", "")
            if part["type"] == "message_delta":
                self.reason = part["delta"]["stop_reason"]
                self.tokens = part["usage"]["output_tokens"]
            return
        if part["usage"]:
            self.tokens = part["usage"]["completion_tokens"]
        for choice in part["choices"]:
            delta = choice.get("delta") or {}
            self.text += choice["text"] if "text" in choice else delta.get("content") or ""
            self.reason = choice["finish_reason"] or self.reason
            if told := choice.get("logprobs"):
                own = self.logprobs or {name: [] for name in told}
                self.logprobs = {name: [*own[name], *told[name]] for name in told}


@dataclass
class Soak:
    """Clients, and what they saw."""

    served: Served
    asked: list[Asked]
    alone: list[Any]
    until: float
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def client(self, generator: random.Random) -> None:
        """Asks one thing after the other, with a new connection now and then."""
        while time.monotonic() < self.until:
            async with httpx.AsyncClient(base_url=self.served.url, timeout=NEEDED_S) as client:
                for _ in range(20):
                    if time.monotonic() < self.until:
                        await self._ask(client, generator)

    async def _ask(self, client: httpx.AsyncClient, generator: random.Random) -> None:
        drawn, index = generator.random(), generator.randrange(len(self.asked))
        asked = self.asked[index]
        if drawn < 0.1:
            self.done["cancelled"] += 1
            await streamed(client, asked, generator.randint(0, 20))
        elif drawn < 0.2:
            self.done["cancelled"] += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(client.post(asked[0], json=asked[1]), generator.random())
        elif drawn < 0.3:
            path, body = generator.choice(WRONG)
            status = (await client.post(path, json=body)).status_code
            self._judge("refused", status == 400, f"{path} {body}: {status}")
        else:
            ask = streamed if generator.random() < 0.5 else whole
            told = await ask(client, asked)
            if told is None:
                self.done["429"] += 1
                await asyncio.sleep(1)
            else:
                said = f"{ask.__name__} {asked}: {told}, alone {self.alone[index]}"
                self._judge(ask.__name__, told == self.alone[index], said)

    def _judge(self, kind: str, right: bool, said: str) -> None:
        self.done[kind] += 1
        if not right:
            self.wrong.append(said)
            print(f"WRONG: {said}", flush=True)


async def soaked(served: Served, clients: int, minutes: float, seed: int) -> int:
    generator = random.Random(seed)
    asked = requests(generator, 200)
    async with httpx.AsyncClient(base_url=served.url, timeout=NEEDED_S) as client:
        alone = [await whole(client, own) for own in asked]
        again = [await streamed(client, own) for own in asked]
    start = time.monotonic()
    soak = Soak(served, asked, alone, start + 60 * minutes)
    soak.wrong += [f"{own}: streamed otherwise" for own, a, b in
                   zip(asked, alone, again, strict=True) if a != b]  # fmt: skip
    running = asyncio.gather(
        *(soak.client(random.Random(generator.random())) for _ in range(clients))
    )
    seen = []
    for tenth in range(1, 11):
        await asyncio.sleep(max(0.0, start + 6 * minutes * tenth - time.monotonic()))
        seen.append(served.memory_bytes())
        print(f"{time.monotonic() - start:.0f} s: {dict(soak.done)}, {seen[-1] / MIB:.1f} MiB",
              flush=True)  # fmt: skip
    await running
    growth = max(seen) - seen[0]
    peak, planned = served.memory_bytes("VmHWM"), served.measure("edgelm_planned_peak_bytes")
    left = served.measure("edgelm_answers_running"), served.measure("edgelm_answers_waiting")
    print(f"{sum(soak.done.values())} requests of {clients} clients, {len(soak.wrong)} wrong; at "
          f"most {growth / MIB:+.1f} MiB after the first tenth; peak {peak / MIB:.1f} MiB, planned "
          f"{planned / MIB:.1f}; {left} running and waiting at the end")  # fmt: skip
    print("\n".join(soak.wrong[:5]))
    return int(bool(soak.wrong) or growth >= GROWTH_LIMIT_BYTES or peak > planned or any(left))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    options = ("--context", str(CONTEXT), "--users", "8", "--quant", "int8")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(with_template("llama", Path(folder)), *options) as served,
    ):
        return asyncio.run(soaked(served, given.clients, given.minutes, given.seed))


if __name__ == "__main__":
    sys.exit(main())
