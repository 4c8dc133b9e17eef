"""``edgelm chat`` on a terminal: its prompt, its history, Ctrl-C, and answers as Markdown."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.defaults import create_output
from rich.console import Console

from edgelm.cli import console
from edgelm.cli.chat_commands import COMMANDS, command_in
from edgelm.cli.chat_state import Chat
from edgelm.cli.markdown_writer import MarkdownWriter
from edgelm.cli.options import OutputOptions
from edgelm.cli.streams import OutputError
from edgelm.errors import EdgeLMError
from edgelm.generation.request import Chunk, Result, collect
from edgelm.hub.references import cache_dir
from edgelm.machine import private_files

if TYPE_CHECKING:
    from edgelm.generation.dialogue import Dialogue

HISTORY = "chat_history"  # in the cache folder
QUOTES = '"""'
Ask = Callable[..., Generator[Chunk, None, None]]


class Terminal(Chat):
    """Lines typed or pasted, where no mistake ends the conversation, nor does Ctrl-C."""

    def __init__(
        self, dialogue: Dialogue, output: OutputOptions, session: PromptSession[str] | None = None
    ) -> None:
        super().__init__(dialogue, output)
        self._session = session or prompt_session(sys.stderr if output.json else None)

    def run(self) -> None:
        """Ask for lines and obey them until the user ends it."""
        self.tell("/help shows the commands, /exit ends.")
        while not self.ended:
            try:
                default, self.offered = self.offered, ""
                text = self._session.prompt(self._prompt(), default=default)
                if text.strip():
                    self._obey(unquoted(text))
            except KeyboardInterrupt:  # at the prompt it clears the line
                continue
            except EOFError:
                return

    def answer(self, ask: Ask) -> None:
        with stopped_by_ctrl_c() as event:
            super().answer(partial(ask, stop_event=event))
        if event.is_set():
            self.tell("[stopped]")

    def show(self, ask: Ask) -> Result:
        if self.output.json or not sys.stdout.isatty():
            return super().show(ask)
        chunks: list[Chunk] = []
        with MarkdownWriter(Console(highlight=False, emoji=False)) as writer:
            for chunk in ask():
                chunks.append(chunk)
                writer.write(chunk.text)
        return collect(chunks)

    def _obey(self, text: str) -> None:
        found = command_in(text)
        try:
            if found:
                found[0].call(self, found[1])
            else:
                self.answer(partial(self.dialogue.ask, text))
        except OutputError:
            raise
        except EdgeLMError as error:
            console.print_error(error, as_json=False)
        except KeyboardInterrupt:  # pressed twice
            self.tell("[stopped]")
        asked = self.dialogue.messages[-2:-1]
        if not found and asked != [{"role": "user", "content": text}]:
            self.offered = text  # no answer came, so that the question is given back

    def _prompt(self) -> str:
        """The model's name, and how many tokens are free."""
        name = Path(self.dialogue.lm.name).name
        with suppress(EdgeLMError):  # a template that refuses these messages will say so itself
            return f"{name}, {self.dialogue.free_tokens} free> "
        return f"{name}> "


def prompt_session(shown_on: Any = None, **given: Any) -> PromptSession[str]:
    """A prompt with history and completion; Enter sends unless a quotation is open.

    Args:
        shown_on: a stream; None means the one of stdout and stderr that is a terminal.
    """
    keys = KeyBindings()
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    given = {"output": create_output(shown_on, always_prefer_tty=True), **given}
    return PromptSession(
        history=history(cache_dir() / HISTORY),
        completer=WordCompleter([*COMMANDS], sentence=True),
        complete_while_typing=False,
        multiline=Condition(lambda: is_open(get_app().current_buffer.text)),
        key_bindings=keys,
        prompt_continuation="... ",
        **given,
    )


def is_open(text: str) -> bool:
    """True within a quotation that begins a message and is not closed."""
    begun = text.lstrip()
    return begun.startswith(QUOTES) and not begun.rstrip().endswith(QUOTES, len(QUOTES))


def unquoted(text: str) -> str:
    """A message without the quotes around it."""
    bare = text.strip()
    if bare.startswith(QUOTES) and bare.endswith(QUOTES) and len(bare) >= 2 * len(QUOTES):
        return bare[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


class _Kept(FileHistory):
    """History in a file; one that fails later, as on a full disk, ends no chat."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return super().load_history_strings()
        except OSError:
            return ()

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def history(path: Path) -> History:
    """Lines of earlier chats in a file that only this user reads; none where that is refused."""
    try:
        private_files.make_folder(path.parent)
        if not path.exists():
            private_files.create(path).close()
        if path.is_file():
            path.chmod(private_files.FILE_MODE)
            return _Kept(path)
    except OSError:
        pass
    return InMemoryHistory()


@contextmanager
def stopped_by_ctrl_c() -> Iterator[Event]:
    """An event that the first Ctrl-C sets, between two tokens; the second one interrupts."""
    event = Event()

    def stop(*_: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
