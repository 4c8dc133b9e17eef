"""``edgelm chat`` as a person sees it: typed into tmux, read from its screen."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
NEEDED_S = 120.0
PROMPT = re.compile(r"\d+ free> ?$")


class Screen:
    """A terminal of tmux's own server in a folder, with the chat in it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._tmux = ("tmux", "-S", str(folder / "tmux"), "-f", "/dev/null", "-u")
        command = [sys.executable, "-m", "edgelm", "chat", str(model), "--context", "256"]
        command += ["--max-tokens", "8", "--on-full", "drop-oldest", "--temperature", "0"]
        self.run("new-session", "-d", "-s", "chat", "-x", "100", "-y", "30", *command)
        self.run("set-option", "-g", "remain-on-exit", "on")

    def run(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def send(self, text: str, *keys: str) -> None:
        """Type a text, then keys by tmux's names."""
        if text:
            self.run("send-keys", "-t", "chat", "-l", text)
        if keys:
            self.run("send-keys", "-t", "chat", *keys)

    def paste(self, text: str) -> None:
        self.run("set-buffer", text)
        self.run("paste-buffer", "-p", "-t", "chat")

    def lines(self) -> list[str]:
        """What is on the screen and above it; lines that were wrapped are whole."""
        return self.run("capture-pane", "-p", "-J", "-S", "-", "-t", "chat").rstrip().splitlines()

    def at_prompt(self, holds: str = "") -> list[str]:
        """The screen when the last line is an empty prompt and the words are above it."""
        end = time.monotonic() + NEEDED_S
        while time.monotonic() < end:
            lines = self.lines()
            if lines and PROMPT.search(lines[-1]) and holds in "\n".join(lines):
                return lines
            time.sleep(0.05)
        raise AssertionError(f"not at a prompt below {holds!r}: {self.lines()[-15:]}")

    def is_alive(self) -> bool:
        return self.run("list-panes", "-t", "chat", "-F", "#{pane_dead}").strip() == "0"

    def status(self) -> str:
        """The exit code, when it has ended."""
        end = time.monotonic() + NEEDED_S
        while self.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        return self.run("list-panes", "-t", "chat", "-F", "#{pane_dead_status}").strip()


@pytest.fixture
def screen(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    model = tmp_path / "model"
    shutil.copytree(assets / "nano" / "llama", model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LANG", "C.UTF-8")
    screen = Screen(tmp_path, model)
    yield screen
    screen.run("kill-server")


def test_forty_turns_and_everything_that_disturbs(screen: Screen, tmp_path: Path) -> None:
    screen.at_prompt()
    for state in ("", "a line", '"""an open block', "你好"):
        screen.send(state, "C-c")
        screen.at_prompt()
    screen.send("你好世界 🎉 naïve", "Enter")
    assert any("你好世界 🎉 naïve" in line for line in screen.at_prompt("你好世界"))
    screen.paste("pasted one\npasted two\n")
    screen.send("", "Enter")
    screen.at_prompt("pasted two")
    screen.send("/set max_tokens 100", "Enter")
    screen.at_prompt("max_new_tokens 100")
    screen.send("a long answer", "Enter")
    time.sleep(0.2)
    screen.send("", "C-c")  # in the answer, or at the prompt after it
    screen.at_prompt("a long answer")
    screen.send("/set max_tokens 8", "Enter")
    for width in ("60", "35", "120"):
        screen.run("resize-window", "-t", "chat", "-x", width, "-y", "12")
        screen.send(f"in {width} columns", "Enter")
        screen.at_prompt(f"in {width} columns")
    for turn in range(40):
        screen.send(f"turn {turn} of a long conversation", "Enter")
        screen.at_prompt(f"turn {turn} of")
    screen.send(f"/save {tmp_path / 'kept'}", "Enter")
    screen.at_prompt("saved to")
    assert screen.is_alive() and "turn 39 of" in (tmp_path / "kept").read_text()
    screen.send("/exit", "Enter")
    assert screen.status() == "0"
    assert not any("Traceback" in line for line in screen.lines())
