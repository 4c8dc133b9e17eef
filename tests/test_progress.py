"""Progress bars: on a terminal only, never in a pipe, and as quiet as they are told to be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from terminal import COLOUR, ROOT, edgelm_on_terminal

import edgelm

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals here")

CURSOR = "\x1b[?25l"  # hidden while a bar is drawn


def commands(assets: Path, out: Path) -> dict[str, tuple[list[object], list[str]]]:
    """What -> a command and the titles of its bars."""
    nano, text = assets / "nano" / "llama", assets / "nano" / "heldout.txt"
    task = f"piqa={assets / 'tasks' / 'piqa.jsonl'}"
    evaluated = ["eval", nano, "--text", text, "--window", 64, "--task", task, "--limit", 2]
    return {
        "loading": (["generate", nano, "Once", "--max-tokens", 2], [f"loading {nano}"]),
        "quantizing": (
            ["quantize", nano, out / "int8", "--quant", "int8", "--no-certificate"],
            [f"quantizing {nano}"],
        ),
        "evaluating": (evaluated, [
            "reading with the baseline", "baseline answering piqa", "measuring the noise floor",
            "bfloat16 answering piqa", f"loading {nano}", "reading the text", "answering piqa",
        ]),
    }  # fmt: skip


def squeezed(text: str) -> str:
    """Without white space, which is where a narrow terminal breaks a title."""
    return "".join(text.split())


@pytest.mark.parametrize("what", ["loading", "quantizing", "evaluating"])
def test_bars_on_a_terminal_and_none_in_a_pipe(assets: Path, tmp_path: Path, what: str) -> None:
    command, titles = commands(assets, tmp_path)[what]
    shown = edgelm_on_terminal(command)
    assert shown.code == 0, shown.terminal
    for title in titles:
        assert squeezed(title) in squeezed(shown.terminal), title
    assert CURSOR in shown.terminal and "100%" in shown.terminal
    assert "\x1b" not in shown.out and "%|" not in shown.out
    again = [tmp_path / "again" if part == tmp_path / "int8" else part for part in command]
    piped = subprocess.run(
        [sys.executable, "-m", "edgelm", *map(str, again)], capture_output=True, text=True, cwd=ROOT
    )
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "\x1b" not in piped.stdout


def test_how_much_is_said(assets: Path) -> None:
    """Bars and a line of statistics; -q neither; NO_COLOR no colour; a dumb terminal no bars."""
    command = ["generate", assets / "nano" / "llama", "Once", "--max-tokens", 2]
    plain = edgelm_on_terminal(command)
    assert CURSOR in plain.terminal and "tok/s" in plain.terminal and COLOUR.search(plain.terminal)
    bare = edgelm_on_terminal(command, {"NO_COLOR": "1"})
    assert CURSOR in bare.terminal and "tok/s" in bare.terminal
    assert not COLOUR.search(bare.terminal)
    assert edgelm_on_terminal([*command, "-q"]).terminal == ""
    dumb = edgelm_on_terminal(command, {"TERM": "dumb"})
    assert "\x1b" not in dumb.terminal and "tok/s" in dumb.terminal.splitlines()[0]


def test_loading_counts_every_byte(assets: Path) -> None:
    """Each matrix as many bytes as it weighs, the embedding too, and the rest at the end."""
    told: list[tuple[str, int, int]] = []
    with edgelm.load(
        assets / "nano" / "llama",
        quant="int8",
        context=64,
        progress=lambda *call: told.append(call),
    ) as lm:
        products = {product.names[0]: product.nbytes for product in lm.plan.products}
        total = lm.plan.weight_bytes
    before = [0, *(done for _, done, _ in told)]
    grown = {name: done - start for (name, done, _), start in zip(told, before, strict=False)}
    assert grown == products | {"norms": total - sum(products.values())}
    assert {all_bytes for _, _, all_bytes in told} == {told[-1][1]} == {total}
