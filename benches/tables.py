"""Renders every measured table from ``benches/results/*.json``; nobody types a number.

    python benches/tables.py           writes README.md and benches/RESULTS.md between their markers
    python benches/tables.py --check   writes nothing; exits 1 when either would change

Between ``<!-- table:NAME -->`` and ``<!-- /table -->`` stands what the results say: the rows of
``table_rows.py`` under the columns of ``table_columns.py``, then the machine, the day and the
command. A result file is ``{"machine": …, "date": …, "command": …, "rows": [{key: value, …}, …]}``.
``plan`` is the output of a command that ``plans.py`` ran, as it came.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

from table_columns import TABLES
from table_rows import RESULTS, caption_of, result, rows_of

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

PLACES: dict[str, tuple[str, ...]] = {
    "README.md": ("plan", "sizes", "schemes"),
    "benches/RESULTS.md": tuple(name for name in TABLES if name not in ("sizes", "schemes")),
}
"""Which file shows which tables."""

UNMEASURED = {
    "calibration": "Nothing has been measured yet; `python benches/calibration.py` does it.",
    "gpu": "Nothing has been measured on a GPU yet; `python benches/gpu.py` does it.",
    "real_model": "Nothing has been measured yet; `python benches/real_model.py` does it.",
}
"""What stands in place of tables that need a machine, or hours, that were not at hand."""


def render(name: str) -> str:
    """The Markdown of one table with the machine and the command that made it."""
    if name == "plan":
        return render_plan()
    if name in UNMEASURED and not (RESULTS / f"{name}.json").exists():
        return f"{UNMEASURED[name]}\n"
    columns = TABLES[name]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(show(row) for show in columns.values()) for row in rows_of(name)]
    table = "\n".join(f"| {line} |" for line in lines)
    return f"{table}\n\n{caption_of(name)}\n"


def render_plan() -> str:
    """A command and its whole output, as a code block."""
    plans = result("plans")
    example = plans["example"]
    lines = [f"$ {example['command']}", *example["output"]]
    made = f"{plans['machine']}, {plans['date']}: `{plans['command']}`"
    read = example["read_gb_s"]
    made += f"; read bandwidth {read} GB/s, as beside the 8B below." if read else "."
    return "\n".join(("```text", *lines, "```", "", made, ""))


def rendered(path: str) -> str:
    """A file with its tables as the results have them.

    Raises ValueError where it marks other tables than it should, or one without results.
    """
    before = (ROOT / path).read_text(encoding="utf-8")
    marked = [name for _, name, _ in MARKED.findall(before)]
    if sorted(marked) != sorted(PLACES[path]):
        raise ValueError(f"{path} marks {marked}, its tables are {list(PLACES[path])}")
    try:
        return MARKED.sub(lambda m: m[1] + render(m[2]) + m[3], before)
    except FileNotFoundError as error:
        raise ValueError(f"{path} has a table without results: {error.filename}") from error


def main(arguments: list[str]) -> int:
    """Writes or checks the files; 0 when they say what the results say."""
    check = arguments == ["--check"]
    if arguments and not check:
        print(f"given {arguments}; the only option is --check", file=sys.stderr)
        return 2
    differing = 0
    for path in PLACES:
        before = (ROOT / path).read_text(encoding="utf-8")
        try:
            after = rendered(path)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        if after == before:
            continue
        if check:
            differing += 1
            lines = before.splitlines(), after.splitlines()
            difference = difflib.unified_diff(*lines, path, "rendered", lineterm="")
            print(*difference, sep="\n", file=sys.stderr)
        else:
            (ROOT / path).write_text(after, encoding="utf-8")
    return int(bool(differing))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
