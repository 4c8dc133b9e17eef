"""Whether a change made anything slower: this tree against an installation of the commit before.

    python -m venv before && before/bin/pip install git+file://$PWD@COMMIT
    python benches/before_after.py before/bin/python --commit COMMIT --after-path . --write

Both are measured in turns, in pairs that begin with either one alternately; a turn is a process of
its own that runs ``edgelm bench`` outside any checkout. Each side has its own cache folder and one
short turn before the first pair, which fetches the demo and lays out its weights. A ratio is how
many times better the turn after was than the one before in the same pair: above 1 is faster. What
is told is the median of the pairs, with the lowest and the highest, and the machine's read
bandwidth (GB/s). Ends with 1 where decode or prefill of a model is below the floor. --write keeps
the rows in results/before_after.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from comparison.turns import order, ratios
from results_file import store

METRICS = {  # unit, and whether more is better
    "decode_tok_s": ("tok/s", True),
    "prefill_tok_s": ("tok/s", True),
    "load_s": ("s", False),
    "first_token_s": ("s", False),
}
BOUNDED = ("decode_tok_s", "prefill_tok_s")
SAME = ("scheme", "backend", "device", "threads")  # in both, or speeds say nothing of the change
SIDES = ("before", "after")
Told = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One of the two installations: a Python, what it finds first, and its cache folder."""

    python: Path
    path: Path | None
    cache: Path

    def run(self, *arguments: str) -> str:
        """What a process in the cache folder prints; its errors are shown and end this one."""
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        environment["EDGELM_CACHE"] = str(self.cache)
        if self.path is not None:
            environment["PYTHONPATH"] = str(self.path)
        done = subprocess.run(
            [self.python, "-P", *arguments],
            stdout=subprocess.PIPE, text=True, cwd=self.cache, env=environment,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{self.python} ended with {done.returncode}: {' '.join(arguments)}")
        return done.stdout

    def package(self) -> str:
        """The file of the package that is measured."""
        return self.run("-c", "import edgelm; print(edgelm.__file__)").strip()


def main() -> int:
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        cache = (options.cache or Path(folder)).resolve()
        sides = {
            "before": Side(options.before, None, cache / "before"),
            "after": Side(options.after, options.after_path, cache / "after"),
        }
        for side in sides.values():
            side.cache.mkdir(parents=True, exist_ok=True)
        packages = {name: side.package() for name, side in sides.items()}
        if len(set(packages.values())) < len(sides):
            sys.exit(f"before and after are both {packages['after']}; nothing to compare")
        say(", ".join(f"{name}: {path}" for name, path in packages.items()))
        rows = [
            row for model in options.models for row in compared(model, pairs(sides, model, options))
        ]
    for row in rows:
        print(line(row))
    if options.write:
        command = (
            f"python benches/before_after.py BEFORE --rounds {options.rounds} "
            f"--repeat {options.repeat} --models {','.join(options.models)}"
        )
        store("before_after", command, rows, before=options.commit, floor=options.floor)
    slower = [row for row in rows if row["metric"] in BOUNDED and row["ratio"] < options.floor]
    for row in slower:
        print(f"{row['model']} {row['metric']}: below the floor of {options.floor}")
    return 1 if slower else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="the Python that has the commit before installed")
    parser.add_argument("--after", type=Path, default=Path(sys.executable), help="the other Python")
    parser.add_argument("--after-path", type=Path, help="a checkout that --after finds first")
    parser.add_argument("--models", default="demo,llama-3.2-1b", help="demo, or names of shapes")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of turns for each model")
    parser.add_argument("--repeat", type=int, default=3, help="rounds within a turn")
    parser.add_argument("--floor", type=float, default=0.98, help="least ratio of decode, prefill")
    parser.add_argument("--cache", type=Path, help="where both cache folders stay")
    parser.add_argument("--commit", default="", help="what is installed before, to be written")
    parser.add_argument("--write", action="store_true", help="keep the rows in results/")
    options = parser.parse_args()
    if options.rounds < 1 or options.repeat < 1:
        parser.error("--rounds and --repeat must be at least 1")
    # Absolute, as the processes run elsewhere, but not resolved: a venv's Python is a link.
    options.before, options.after = options.before.absolute(), options.after.absolute()
    options.after_path = options.after_path and options.after_path.resolve()
    options.models = options.models.split(",")
    return options


def pairs(sides: dict[str, Side], model: str, options: argparse.Namespace) -> list[dict[str, Told]]:
    """What ``edgelm bench`` told of each side, for each round."""
    source = [model] if model == "demo" else ["--shape", model]
    bench = ("-m", "edgelm", "bench", *source, "--json", "--quiet", "--quant", "int4")
    bench = (*bench, "--context", "1024", "--prompt-tokens")
    for side in sides.values():
        side.run(*bench, "16", "--decode-tokens", "1", "--repeat", "1")
    arguments = (*bench, "512", "--decode-tokens", "64", "--repeat", str(options.repeat))
    found = []
    for round_ in range(options.rounds):
        told = {name: json.loads(sides[name].run(*arguments)) for name in order(SIDES, round_)}
        differing = [key for key in SAME if told["before"][key] != told["after"][key]]
        if differing:
            sys.exit(f"{model}: before and after differ in {', '.join(differing)}: {told}")
        speeds = {name: f"{own['decode_tok_s']:.1f}" for name, own in told.items()}
        say(f"{model}: pair {round_ + 1}: decode {speeds} tok/s")
        found.append(told)
    return found


def compared(model: str, found: list[dict[str, Told]]) -> Iterator[Told]:
    """A row for each metric: medians of both sides, and of the ratios within the pairs."""
    read = [own["read_gb_s"] for told in found for own in told.values()]
    for metric, (unit, more_is_better) in METRICS.items():
        before, after = (dict(enumerate(told[side][metric] for told in found)) for side in SIDES)
        better = [round(ratio, 4) for ratio in ratios(after, before, more_is_better)]
        yield {
            "model": model,
            "metric": metric,
            "unit": unit,
            "before": round(median(before.values()), 4),
            "after": round(median(after.values()), 4),
            "ratio": median(better),
            "lowest": min(better),
            "highest": max(better),
            "pairs": better,
            "read_gb_s": round(median(read), 2),
            "backend": found[0]["after"]["backend"],
        }


def line(row: Told) -> str:
    return (
        f"{row['model']:14} {row['metric']:14} {row['before']:9.2f} -> {row['after']:9.2f} "
        f"{row['unit']:5}  ratio {row['ratio']:.3f} ({row['lowest']:.3f} to {row['highest']:.3f}), "
        f"reading {row['read_gb_s']:.1f} GB/s"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
