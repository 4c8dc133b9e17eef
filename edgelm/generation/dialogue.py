"""A conversation as it goes on: turns, answers that were cut, and what a full context asks for.

Nothing that was said is lost but by a call that says so: an answer that is stopped keeps what came,
and a question that gets no answer is given back.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from edgelm.errors import UsageError
from edgelm.generation.request import Chunk, Result, collect

if TYPE_CHECKING:
    from edgelm.model import LanguageModel

ON_FULL = ("stop", "drop-oldest")
_RESERVED = 4  # a part of the context that an answer finds free where turns are dropped for it


class Dialogue:
    """Messages, the answers to them, and the options of the answers that follow.

    on_full: what happens to a question that does not fit the context: it is refused, or the oldest
    turns are forgotten for it (never the system message).
    """

    def __init__(
        self, lm: LanguageModel, options: dict[str, Any], system: str = "", on_full: str = "stop"
    ) -> None:
        if on_full not in ON_FULL:
            raise UsageError(f"on_full is {on_full!r:.40}; allowed: {', '.join(ON_FULL)}.")
        self.lm, self.options, self.on_full = lm, dict(options), on_full
        self.messages: list[dict[str, Any]] = []
        self.answers: list[Result] = []
        self.forgotten = 0  # turns, by full contexts
        self._repeats = 0
        self.system = system

    @property
    def system(self) -> str:
        """The system message; "" for none."""
        return str(self.messages[0]["content"]) if self._first() else ""

    @system.setter
    def system(self, text: str) -> None:
        self.messages[: self._first()] = [{"role": "system", "content": text}] if text else []

    @property
    def used_tokens(self) -> int:
        """Tokens that the messages take of the context, in the model's template."""
        if len(self.messages) == self._first():
            return 0
        told = ("tools", "template_variables")
        asked = {name: self.options[name] for name in told if name in self.options}
        return len(self.lm.chat_ids(self.messages, **asked))

    @property
    def free_tokens(self) -> int:
        """Tokens that are left for questions and answers."""
        return max(0, self.lm.plan.context - self.used_tokens)

    def ask(self, text: str, stop_event: Event | None = None) -> Generator[Chunk, None, None]:
        """The answer to a question, piece by piece. One without an answer never was.

        Raises:
            ContextLengthError: it does not fit, and nothing may be forgotten for it.
        """
        self._repeats = 0
        self.messages.append({"role": "user", "content": text})
        yield from self._answer(self.messages[:-1], stop_event)

    def again(self, stop_event: Event | None = None) -> Generator[Chunk, None, None]:
        """Another answer to the last question; the one before stays where none comes.

        Where the options name a seed, each further answer is drawn with the next one.
        """
        before = list(self.messages)
        question = self.undo()
        self._repeats += 1
        self.messages.append({"role": "user", "content": question})
        yield from self._answer(before, stop_event)

    def undo(self) -> str:
        """Take the last question and its answer back; the question.

        Raises:
            UsageError: there is none.
        """
        asked = self._questions()
        if not asked:
            raise UsageError("Nothing was asked yet.")
        question = str(self.messages[asked[-1]]["content"])
        del self.messages[asked[-1] :]
        return question

    def forget(self, turns: int = 1) -> int:
        """Drop the oldest questions with their answers; how many there were to drop."""
        asked = self._questions()[: turns + 1]
        count = min(turns, len(asked))
        if count:
            stop = asked[count] if len(asked) > count else len(self.messages)
            del self.messages[self._first() : stop]
        return count

    def reset(self) -> None:
        """Begin anew, with the same system message."""
        del self.messages[self._first() :]

    def save(self, path: str | Path) -> None:
        """Keep the conversation in a file; see ``LanguageModel.save_conversation``."""
        self.lm.save_conversation(path, self.messages)

    def load(self, path: str | Path) -> None:
        """Go on with a kept conversation; see ``LanguageModel.restore_conversation``."""
        self.messages[:] = self.lm.restore_conversation(path)

    def _answer(
        self, otherwise: list[dict[str, Any]], stop_event: Event | None
    ) -> Generator[Chunk, None, None]:
        """Answer the last message; ``otherwise`` are the messages where nothing is said."""
        said: list[Chunk] = []
        try:
            for chunk in self._stream(stop_event):
                said.append(chunk)
                yield chunk
        finally:
            text, ended = "".join(own.text for own in said), said and said[-1].finish_reason
            if text or ended in ("stop", "length"):
                self.messages.append({"role": "assistant", "content": text})
            else:
                self.messages[:] = otherwise
            if ended:
                self.answers.append(collect(said))

    def _stream(self, stop_event: Event | None) -> Generator[Chunk, None, None]:
        options = dict(self.options)
        if options.get("seed") is not None:
            options["seed"] += self._repeats
        if self.on_full == "drop-oldest":
            self._make_room()
        yield from self.lm.stream_chat(self.messages, stop_event=stop_event, **options)

    def _make_room(self) -> None:
        """Forget the oldest turns, but not the question, until an answer finds some room."""
        context = self.lm.plan.context
        wanted = min(self.options.get("max_new_tokens") or context, context // _RESERVED)
        while self.free_tokens < wanted and len(self._questions()) > 1:
            self.forgotten += self.forget()

    def _first(self) -> int:
        """The place of the first message that is not a system message."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _questions(self) -> list[int]:
        """Places of the user's messages."""
        return [at for at, own in enumerate(self.messages) if own["role"] == "user"]
