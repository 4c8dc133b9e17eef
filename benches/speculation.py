"""What guessing tokens ahead gains where a text repeats itself, and costs where it does not.

    python benches/speculation.py     writes results/speculation.json; exits 1 beyond a limit

Three greedy answers of the demo model, with and without guesses in turns, in one process: to a
passage and its first third again (the model copies the rest), to a question, and to that question
with guesses that are never right. One thread and processor time, which others on the machine hardly
touch; a ratio is the median over the pairs of turns, of time without guesses to time with them.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

from provenance import announce
from results_file import store

import edgelm
from edgelm.generation.processors import SoFar
from edgelm.generation.request import Request, Stats
from edgelm.generation.speculation import Drafter, Speculation
from edgelm.machine import hardware

BENCHES = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("EDGELM_ASSETS") or BENCHES.parent.parent / "shared" / "assets")
PAIRS = 5
NEW_TOKENS = 96
QUESTION = "Explain in your own words why the sky is blue in the day and red in the evening."
COPY_FLOOR = 1.7  # times the speed without guesses
COST_LIMIT = 0.03  # of the time without guesses


class NeverRight:
    """Looks the text up as always and says another token."""

    greedy_only = True

    def __init__(self, drafter: Drafter) -> None:
        self.begin, self.strength, self._drafter = drafter.begin, drafter.strength, drafter

    def guess(self, ids: SoFar, count: int) -> list[int]:
        return [token ^ 1 for token in self._drafter.guess(ids, count)]


def main() -> int:
    with edgelm.load("demo", context=2048, threads=1) as lm:
        rows = [compare(lm, name, prompt) for name, prompt in prompts(lm).items()]
        made = lm._session.speculation
        assert made is not None
        lm._session.speculation = Speculation(NeverRight(made.drafter), made.depth)
        rows.append(compare(lm, "question, never right", prompts(lm)["question"]))
        plan = lm.plan
    read_gb_s = hardware.read_gb_s()
    store(
        "speculation", "python benches/speculation.py", rows,
        model=f"demo, {plan.scheme}, {plan.products[1].kernel}", threads=1,
        draft_depth=plan.draft_depth, pairs=PAIRS, read_gb_s=read_gb_s,
    )  # fmt: skip
    failed = rows[0]["speed_ratio"] < COPY_FLOOR
    failed |= any(row["speed_ratio"] < 1 / (1 + COST_LIMIT) for row in rows)
    print("FAILED" if failed else "within the limits")
    return int(failed)


def prompts(lm: edgelm.LanguageModel) -> dict[str, list[int]]:
    """Ids of a prompt that asks for copying and of one that does not."""
    text = (ASSETS / "text" / "frankenstein.txt").read_text(encoding="utf-8")
    start = text.index("You will rejoice to hear")
    passage = text[start : start + 900]
    return {
        "copy": lm.encode(f"{passage}\n\n{passage[:300]}"),
        "question": lm.chat_ids([{"role": "user", "content": QUESTION}]),
    }


def compare(lm: edgelm.LanguageModel, name: str, prompt: list[int]) -> dict[str, Any]:
    """One prompt with and without guesses in turns, after a pair that warms up."""
    turns: dict[str, list[tuple[Stats, float]]] = {"off": [], "auto": []}
    for turn in range(PAIRS + 1):
        for speculate in ("off", "auto") if turn % 2 else ("auto", "off"):
            turns[speculate].append(answer(lm, prompt, speculate))
    off, on = turns["off"][1:], turns["auto"][1:]
    ratios = [slow / fast for (_, slow), (_, fast) in zip(off, on, strict=True)]
    row = {
        "prompt": name,
        "prompt_tokens": len(prompt),
        "new_tokens": NEW_TOKENS,
        "decode_tok_s": median(stats.decode_tok_s for stats, _ in on),
        "decode_tok_s_off": median(stats.decode_tok_s for stats, _ in off),
        "speed_ratio": median(ratios),
        "speed_ratios": [round(ratio, 3) for ratio in ratios],
        "drafted_tokens": sum(stats.drafted_tokens for stats, _ in on),
        "accepted_tokens": sum(stats.accepted_tokens for stats, _ in on),
    }
    print(json.dumps(row), flush=True)
    return row


def answer(lm: edgelm.LanguageModel, prompt: list[int], speculate: str) -> tuple[Stats, float]:
    """A greedy answer that no end token stops, and the processor time after its first token."""
    request = Request(tuple(prompt), NEW_TOKENS, speculate=speculate)
    with lm.batch([request], end_ids=frozenset()) as batch:
        tokens = batch.tokens()
        next(tokens)
        start = time.process_time()
        for _ in tokens:
            pass
        return batch.stats(0), time.process_time() - start


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
