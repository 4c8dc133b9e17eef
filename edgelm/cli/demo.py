"""``edgelm demo``: one question to a small model in four bits."""

from __future__ import annotations

from edgelm.cli import console
from edgelm.cli.opening import load_for_text
from edgelm.cli.options import (
    GuessOptions,
    LoadOptions,
    OutputOptions,
    RunOptions,
    SourceOptions,
)

QUESTION = "What is the capital of France?"


def demo(source: SourceOptions, load: LoadOptions, run: RunOptions, output: OutputOptions) -> None:
    """Ask the demo model, a file of 4-bit weights, for the capital of France."""
    guess = GuessOptions()
    with load_for_text("demo", source, load, guess, run, output, chat=True) as lm:
        if not output.json:
            print(console.plan_line(lm.plan))
            print(f"> {QUESTION}")
        asked = [{"role": "user", "content": QUESTION}]
        chunks = lm.stream_chat(asked, max_new_tokens=64, temperature=0.0, seed=run.seed)
        answer = console.say(chunks, output)
        if output.json:
            console.print_json(answer.to_dict() | {"plan": lm.plan.to_dict()})
        else:
            print(console.statistics_line(lm.plan, answer.stats))
