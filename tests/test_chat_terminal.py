"""``edgelm chat`` on a terminal: its commands, its prompt, Markdown, and a whole chat on a pty."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from terminal import ROOT
from test_cli import TEMPLATE, nano  # noqa: F401  (a fixture)

from edgelm.cli.chat_commands import COMMANDS
from edgelm.cli.chat_terminal import (
    HISTORY,
    Terminal,
    history,
    is_open,
    prompt_session,
    unquoted,
)
from edgelm.cli.markdown_writer import MarkdownWriter, whole_blocks
from edgelm.cli.options import OutputOptions
from edgelm.errors import ContextLengthError
from edgelm.generation.dialogue import Dialogue
from edgelm.generation.request import Chunk, Stats


class Model:
    """A model that says what it was asked, in two pieces, in a context of 100 characters."""

    name = "folder/echo"
    plan = SimpleNamespace(context=100)

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.options: dict[str, Any] = {}
        self.between: Callable[[], None] = lambda: None

    def chat_ids(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        return [0] * sum(len(own["content"]) for own in messages)

    def stream_chat(
        self, messages: list[dict[str, str]], *, stop_event: Any, **options: Any
    ) -> Iterator[Chunk]:
        text, self.options = messages[-1]["content"], options
        if (size := len(self.chat_ids(messages))) >= 100:
            raise ContextLengthError("too long", size, 100)
        self.asked.append(text)
        yield Chunk("you said ")
        self.between()
        end = "cancelled" if stop_event and stop_event.is_set() else "stop"
        yield Chunk("" if end == "cancelled" else text, (), end, Stats(size, 0, 2, 0.1, 0.1, 0))


class Ran:
    def __init__(self, dialogue: Dialogue, model: Model, err: str) -> None:
        self.dialogue, self.asked, self.options, self.err = (
            dialogue, model.asked, model.options, err
        )  # fmt: skip


Type = Callable[..., Ran]


@pytest.fixture
def type_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Type:
    """Types keys into a chat with ``Model``, until they end it."""
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgelm.cli.console.statistics_line", lambda plan, stats: "fast")

    def run(*lines: str, between: Callable[[], None] = lambda: None, **given: Any) -> Ran:
        model = Model()
        model.between = between
        dialogue = Dialogue(model, {}, **given)  # type: ignore[arg-type]
        with create_pipe_input() as keys:
            session = prompt_session(input=keys, output=DummyOutput())
            keys.send_text(
                "".join(line if line[-1:] in "\r\x03" else line + "\r" for line in lines)
            )
            keys.send_text("\x04")
            Terminal(dialogue, OutputOptions(), session).run()
        return Ran(dialogue, model, capsys.readouterr().err)

    return run


def contents(ran: Ran) -> list[str]:
    return [own["content"] for own in ran.dialogue.messages]


def test_lines_are_questions_and_other_slashes_text(type_in: Type) -> None:
    ran = type_in("Hello", "", "  ", "/etc/hosts?", "/halp")
    assert ran.asked == ["Hello", "/etc/hosts?", "/halp"]
    assert contents(ran)[:2] == ["Hello", "you said Hello"]


def test_every_command_is_explained(type_in: Type) -> None:
    told = type_in("/help").err
    assert all(name in told for name in COMMANDS) and "Ctrl-C" in told
    assert type_in("Hi", "/exit", "never").asked == ["Hi"]


def test_commands_change_the_conversation(type_in: Type) -> None:
    ran = type_in("/system Be brief.", "one", "two", "/undo", "/system", "/stats")
    assert contents(ran) == ["Be brief.", "one", "you said one"]
    for words in ("taken back: two", "system: Be brief.", "3 messages take 24 of 100 tokens"):
        assert words in ran.err
    assert contents(type_in("/system S", "/system -", "one", "/reset")) == []
    ran = type_in("one", "/regen")
    assert ran.asked == ["one", "one"] and len(contents(ran)) == 2
    ran = type_in("a", "b", "c", "/forget 2", "/forget x")
    assert contents(ran) == ["c", "you said c"]
    assert "forgot 2" in ran.err and "give a number of turns" in ran.err
    ran = type_in("/undo", "/regen", "/edit", "ok")
    assert ran.err.count("Nothing was asked yet") == 3 and ran.asked == ["ok"]


def test_edit_gives_the_question_back(type_in: Type) -> None:
    assert type_in("Helo", "/edit", "\x7flo").asked == ["Helo", "Hello"]


def test_set(type_in: Type) -> None:
    ran = type_in("/set temperature 0.7", "/set max-tokens 4k", "/set top_k=3", "/set", "x")
    assert ran.options == {"temperature": 0.7, "max_new_tokens": 4096, "top_k": 3}
    assert "temperature 0.7, max_new_tokens 4096, top_k 3" in ran.err
    ran = type_in("/set temperature 1", "/set temperature", "/set temp 1", "/set top_p 7",
                  "/set top_k x", "/set stop x", "x")  # fmt: skip
    assert ran.options == {} and ran.asked == ["x"]
    for words in ("did you mean temperature", "top_p is 7.0", "top_k is 'x'", "cannot be set here"):
        assert words in ran.err


def test_a_full_context_ends_nothing_and_gives_the_question_back(type_in: Type) -> None:
    long = "x" * 30
    ran = type_in(long, "y" * 40, "\x03", "/forget", "short")
    assert "too long" in ran.err
    assert contents(ran) == ["short", "you said short"]
    again = type_in(long, "y" * 40, "\x15/forget", "z")  # what was given back is cleared by Ctrl-U
    assert again.asked == [long, "z"]
    ran = type_in(long, "y" * 40, on_full="drop-oldest")
    assert "the oldest 1 turns were dropped" in ran.err and contents(ran)[0] == "y" * 40


def test_ctrl_c_clears_the_line(type_in: Type) -> None:
    assert type_in("never sent\x03", "Hello").asked == ["Hello"]


def test_ctrl_c_in_an_answer_keeps_what_came(type_in: Type) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    ran = type_in("one", "two", between=press)
    assert contents(ran) == ["one", "you said ", "two", "you said "] and "[stopped]" in ran.err

    def press_twice() -> None:
        press()
        press()

    assert contents(type_in("one", "two", between=press_twice))[1::2] == ["you said "] * 2
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "keys",
    ['"""one\rtwo"""\r', '"""\rone\rtwo\r"""\r', "\x1b[200~one\ntwo\x1b[201~\r", "one\x1b\rtwo\r"],
    ids=["quotes", "quotes on lines", "paste", "Esc Enter"],
)
def test_many_lines_are_one_question(type_in: Type, keys: str) -> None:
    assert type_in(keys).asked == ["one\ntwo"]


def test_quotes() -> None:
    assert is_open('"""') and is_open('  """a\nb') and not is_open('"""a"""') and not is_open("a")
    assert unquoted('"""a"""') == "a" and unquoted('say """a"""') == 'say """a"""'
    assert unquoted('""') == '""' and unquoted('""""""') == ""


def test_history_is_private_and_kept(type_in: Type, tmp_path: Path) -> None:
    type_in("Hello")
    path = tmp_path / "cache" / HISTORY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "Hello" in path.read_text()
    kept = history(path)
    assert list(kept.load_history_strings()) == ["Hello"]
    path.unlink()
    path.mkdir()
    assert list(kept.load_history_strings()) == []  # as of a disk that fails
    kept.store_string("lost")
    assert type_in("Still there?").asked == ["Still there?"]


def test_blocks_that_are_whole() -> None:
    for text in ("", "a", "a\n", "```\na\n\nb\n", "~~~\n\n"):
        assert whole_blocks(text) == 0
    assert whole_blocks("a\n\nb") == 3 and whole_blocks("```\na\n\n```\n\nb\n\nc") == 15


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_markdown_is_shown_whole_whatever_the_pieces(size: int) -> None:
    """Tags are text, wide characters are whole, and nothing steers the terminal."""
    text = "# Title\n\nSome *words* <think>here</think> 你好世界\n\n"
    text += "```\nx\n\ny\n```\n\n<div>\nin\n</div>\n"
    page = io.StringIO()
    with MarkdownWriter(Console(file=page, force_terminal=True, width=40)) as writer:
        for at in range(0, len(text), size):
            writer.write(text[at : at + size])
        writer.write("\x1b]0;title\x07end")
    final = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", page.getvalue())
    for words in ("Title", "<think>here</think> 你好世界", "x", "y", "<div>", "in", "0;title"):
        assert words in final
    assert "\x1b]" not in page.getvalue() and "\x07" not in page.getvalue()


class Pty:
    """``edgelm chat`` on a pseudo-terminal that answers."""

    def __init__(self, model: Path, cache: Path, *options: str) -> None:
        import pty

        self.outer, inner = pty.openpty()
        self.resize(30, 100)
        own = {"TERM": "xterm", "PYTHONPATH": str(ROOT), "EDGELM_CACHE": str(cache)}
        words = ("chat", str(model), "--quant", "none", "--context", "200", *options)
        self.program = subprocess.Popen(
            [sys.executable, "-m", "edgelm", *words], stdin=inner, stdout=inner, stderr=inner,
            env=os.environ | own, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(inner)
        self.seen = ""

    def resize(self, rows: int, columns: int) -> None:
        import termios

        termios.tcsetwinsize(self.outer, (rows, columns))

    def wait(self, words: str, timeout_s: float = 300.0) -> str:
        """What was shown until these words, which it takes."""
        end = time.monotonic() + timeout_s
        while words not in self.seen:
            assert time.monotonic() < end, f"no {words!r} in {self.seen[-2000:]!r}"
            if select.select([self.outer], [], [], 1.0)[0]:
                try:
                    piece = os.read(self.outer, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"ended: {self.seen[-2000:]!r}") from None
                if "\x1b[6n" in piece:  # prompt_toolkit asks where the cursor is
                    os.write(self.outer, b"\x1b[1;1R")
                self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]", "", piece)
        shown, _, self.seen = self.seen.partition(words)
        return shown

    def send(self, keys: str) -> None:
        os.write(self.outer, keys.encode())

    def end(self) -> int:
        try:
            return self.program.wait(60)
        finally:
            self.program.kill()
            os.close(self.outer)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_whole_chat_on_a_terminal(nano: Path, tmp_path: Path) -> None:  # noqa: F811
    (nano / "chat_template.jinja").write_text(TEMPLATE)
    chat = Pty(nano, tmp_path / "cache", "--max-tokens", "8", "--temperature", "0", "--verbose")
    try:
        chat.wait("nano, 200 free> ")
        chat.send("\x03never sent\x03")  # at the prompt: the line is cleared
        chat.send("你好 wide\r")
        assert "8 tokens," in chat.wait("free> ")
        chat.resize(20, 40)
        os.kill(chat.program.pid, signal.SIGWINCH)
        chat.send("\x1b[200~pasted\nlines\x1b[201~\r")
        chat.wait("8 tokens,")
        chat.wait("free> ")
        chat.send("/set max_tokens 150\r")
        chat.wait("max_new_tokens 150")
        chat.wait("free> ")
        chat.send("go on\r")
        time.sleep(0.05)
        chat.send("\x03")  # in an answer, or at the prompt behind it
        chat.wait("free> ")
        chat.send("/set max_tokens 8\r")
        for turn in range(40):
            chat.send(f"turn {turn}\r")
            shown = chat.wait("free> ")
            if "context" in shown:
                break
        else:
            raise AssertionError("the context never became full")
        chat.send("\x15/forget 99\r")
        chat.wait("tokens are free")
        chat.wait("free> ")
        chat.send("still there?\r")
        chat.wait("8 tokens,")
        chat.wait("free> ")
        chat.send(f"/save {tmp_path / 'kept'}\r")
        chat.wait("saved to")
        chat.send("/exit\r")
    finally:
        assert chat.end() == 0
    assert (tmp_path / "kept").is_file()
