"""Help and wrong usage come at once: without torch, whatever the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.cli.commands import VERBS

ROOT = Path(__file__).resolve().parent.parent
# Modules that take longer than all of a help together.
SLOW = ("torch", "numpy", "transformers", "huggingface_hub", "tokenizers", "jinja2")
PROGRAM = f"""
import sys
from edgelm.cli.main import main
code = main(sys.argv[1:])
print([name for name in {SLOW} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


def run(*words: str) -> tuple[int, str, list[str]]:
    """Exit code, what was shown, and what was told last: slow modules, after an error's lines."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, cwd=ROOT
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), (), *((verb, "--help") for verb in VERBS)], ids=" ".join
)
def test_help_imports_nothing_slow(words: tuple[str, ...]) -> None:
    code, shown, told = run(*words)
    assert told == ["[]"], told
    assert code == (0 if words else 2) and "edgelm" in shown


WRONG = {
    ("chta",): "No such command 'chta'. Did you mean 'chat'? See edgelm --help.",
    ("generate",): "Missing argument 'model'. See edgelm generate --help.",
    ("chat", "demo", "--temprature", "1"): "--temperature",
    ("chat", "demo", "--temperature", "hot"): "--temperature",
    ("chat", "demo", "--temperature", "-1"): "--temperature is -1",
    ("bench", "demo", "--prompt-tokens", "many"): "'many' is not a count; write 4096 or 4k.",
    ("chat", "demo", "--budget", "8"): "--budget '8' has no unit; did you mean 8GiB?",
    ("chat", "demo", "--quant", "q4_k_m"): "--quant: unknown scheme 'q4_k_m'; did you mean int4?",
    ("plan", "demo", "--context", "4g"): "--context is '4g'; allowed: auto, or a count",
    ("generate", "demo", "x", "--max-tokens", "4g"): "--max-tokens is '4g'; allowed: a count",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_usage_imports_nothing_slow(words: tuple[str, ...]) -> None:
    code, _, told = run(*words)
    assert code == 2 and told[-1] == "[]", told
    assert WRONG[words] in told[0]


def test_help_is_what_the_flag_of_the_command_shows() -> None:
    """The quick way to it prints what the slow way through the parser prints."""
    for words in ((), ("plan",)):
        quick, slow = run(*words, "--help"), run(*words, "-h", "--help")
        assert quick[:2] == slow[:2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgelm"], capture_output=True, text=True, cwd=ROOT,
        env={"_EDGELM_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert "_EDGELM_COMPLETE" in done.stdout and not done.stderr, done
