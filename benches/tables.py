"""Renders the README's measured tables from ``benches/results/*.json``; nobody types a number.

    python benches/tables.py           writes the tables between their markers in README.md
    python benches/tables.py --check   writes nothing; exits 1 when README.md would change

Between ``<!-- table:NAME -->`` and ``<!-- /table -->`` stands what ``results/NAME.json`` says:
``{"machine": …, "date": …, "command": …, "rows": [{key: value, …}, …]}``, where a row has the keys
of ``edgelm bench --json`` and ``ppl``, the perplexity of the same weights. Rows of ``compare``
have those that ``compare.py`` writes; a key that a row lacks leaves its cell empty.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHES = Path(__file__).resolve().parent
README = BENCHES.parent / "README.md"
MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Row = dict[str, Any]


def bandwidth(row: Row) -> str:
    """What decoding read, and its share of what plain reading reached in the same run."""
    share = row["decode_gb_s"] / row["read_gb_s"]
    return f"{row['decode_gb_s']:.1f} of {row['read_gb_s']:.1f} ({share:.0%})"


def mib(key: str) -> Callable[[Row], str]:
    """A column of whole MiB from a key in bytes."""
    return lambda row: f"{row[key] / 2**20:,.0f}"


def ratio(row: Row) -> str:
    """How many times better we were, and the range of the pairs."""
    if "missing" in row:
        return "not measured"
    if "ratio" not in row:
        return ""
    return f"**{row['ratio']:.2f}x** ({min(row['pairs']):.2f}–{max(row['pairs']):.2f})"


def measured(row: Row) -> str:
    return "" if "value" not in row else f"{row['value']:.4g} {row['unit']}"


def of_limit(key: str, limit: str) -> Callable[[Row], str]:
    """A rate, and its share of what the machine reached in the same run."""

    def show(row: Row) -> str:
        if key not in row:
            return ""
        share = f" ({row[key] / row[limit]:.0%})" if row.get(limit) else ""
        return f"{row[key]:,.4g}{share}"

    return show


def shown(key: str) -> Callable[[Row], str]:
    """A number with three digits, or why there is none."""
    return lambda row: f"{row[key]:.3g}" if key in row else ""


UNMEASURED = {"gpu": "Nothing has been measured on a GPU yet; `python benches/gpu.py` does it."}
"""What stands in place of tables that need a machine which may never have been at hand."""

TABLES: dict[str, dict[str, Callable[[Row], str]]] = {
    "backends": {
        "model": lambda row: row["model"],
        "scheme": lambda row: row["scheme"],
        "backend": lambda row: row["backend"],
        "bits per weight": lambda row: f"{row['bits_per_weight']:.2f}",
        "prefill tok/s": lambda row: f"{row['prefill_tok_s']:.0f}",
        "decode tok/s": lambda row: f"{row['decode_tok_s']:.1f}",
        "decode GB/s": bandwidth,
        "peak MiB": mib("peak_rss_bytes"),
        "predicted MiB": mib("predicted_peak_bytes"),
        "perplexity": lambda row: f"{row['ppl']:.2f}",
    },
    "compare": {
        "case": lambda row: row["case"],
        "engine": lambda row: row["engine"],
        "type": lambda row: row.get("type", ""),
        "bits per weight": lambda row: (
            f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else ""
        ),
        "measured": measured,
        "we are better by": ratio,
        "GB/s (of reading)": of_limit("gb_s", "read_gb_s"),
        "GF (of the 8-bit peak)": of_limit("gf", "vnni_gops"),
    },
    "promises": {
        "method": lambda row: row["method"],
        "weights GB": lambda row: f"{row['source_bytes'] / 1e9:.1f}",
        "written GB": lambda row: f"{row['written_bytes'] / 1e9:.1f}",
        "allowed MiB": mib("allowed_bytes"),
        "promised MiB": mib("promised_peak_bytes"),
        "measured MiB": mib("peak_rss_bytes"),
    },
    "accuracy": {
        "model": lambda row: row["model"],
        "asked": lambda row: row["asked"],
        "run by": lambda row: row["backend"],
        "bits per weight": lambda row: f"{row['bits_per_weight']:.2f}",
        "token perplexity": lambda row: f"{row['ppl']:.2f} ± {row['ppl_stderr']:.2f}",
        "KLD": lambda row: f"{row['kld_mean']:.5f}",
        "KLD 99 %": lambda row: f"{row['kld_p99']:.4f}",
        "KLD floor": lambda row: f"{row['noise_floor']['kld_mean']:.5f}",
        "same top": lambda row: f"{row['top1_agreement']:.1%}",
        "decode tok/s": lambda row: f"{row['decode_tok_s']:.0f}",
        "decode GB/s": bandwidth,
    },
    "gpu": {
        "on a GPU": lambda row: row["row"],
        "measured": lambda row: row.get("missing") or f"{row['value']:.3g}",
        "goal": shown("goal"),
        "floor": shown("floor"),
        "reached": lambda row: row.get("reached", ""),
    },
}


def render(name: str) -> str:
    """The Markdown of one table with the machine and the command that made it."""
    if name in UNMEASURED and not (BENCHES / "results" / f"{name}.json").exists():
        return f"{UNMEASURED[name]}\n"
    result = json.loads((BENCHES / "results" / f"{name}.json").read_text(encoding="utf-8"))
    columns = TABLES[name]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(show(row) for show in columns.values()) for row in result["rows"]]
    table = "\n".join(f"| {line} |" for line in lines)
    return f"{table}\n\n{result['machine']}, {result['date']}: `{result['command']}`.\n"


def main(arguments: list[str]) -> int:
    """Writes or checks README.md; 0 when it says what the results say."""
    check = arguments == ["--check"]
    if arguments and not check:
        print(f"given {arguments}; the only option is --check", file=sys.stderr)
        return 2
    before = README.read_text(encoding="utf-8")
    marked = {name for _, name, _ in MARKED.findall(before)}
    if marked != set(TABLES):
        print(f"README.md marks {marked}, the tables are {set(TABLES)}", file=sys.stderr)
        return 1
    try:
        after = MARKED.sub(lambda m: m[1] + render(m[2]) + m[3], before)
    except FileNotFoundError as error:
        print(f"README.md has a table without results: {error.filename}", file=sys.stderr)
        return 1
    if after == before:
        return 0
    if check:
        difference = difflib.unified_diff(
            before.splitlines(), after.splitlines(), "README.md", "rendered", lineterm=""
        )
        print(*difference, sep="\n", file=sys.stderr)
        return 1
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
