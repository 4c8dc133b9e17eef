"""Writer: one answer's ids to text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.generation.request import Request
from edgelm.text.tokenizer import Tokenizer

_ANOTHER = chr(0xDFFF)  # of a special token that no stop string holds


class Writer:
    """Turns one answer's ids into text: whole characters, nothing of a stop string.

    Special tokens have no text in an answer. A stop string that holds some is looked for in a text
    where a character stands for each of these, half a surrogate pair, which no answer holds.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.decoder = tokenizer.stream(continues=request.continues)
        names = [name for name, special in tokenizer.cut_tokens.items() if special and name]
        held = [name for name in names if any(name in stop for stop in request.stop)]
        self._signs = {name: chr(0xD800 + index) for index, name in enumerate(held)}
        signed = [self._signed(stop) for stop in request.stop]
        self._special_stops = StopStrings(
            tuple(new for new, old in zip(signed, request.stop, strict=True) if new != old)
        )
        self._stops = StopStrings(request.stop)
        self._ids: list[int] = []

    @property
    def stopped(self) -> bool:
        """True once a stop string was found."""
        return self._special_stops.found or self._stops.found

    def push(self, token: int, ends: bool) -> str:
        """The text that is certain after a token; an end token has none."""
        self._ids.append(token)
        text = "" if ends else self.decoder.push(token)
        if self._signs and self._tokenizer.is_special(token):
            text = self._signs.get(self._tokenizer.token_of(token) or "", _ANOTHER)
        text = self._special_stops.push(text)
        pending = self._unsigned(text + self._special_stops.held)
        if self._special_stops.found or self._stops.completed_by(pending):
            text += self._special_stops.finish()
        return self._stops.push(self._unsigned(text))

    def finish(self) -> str:
        """Text held back until the end of the answer."""
        if self.stopped:
            return self._stops.finish()
        text = self._special_stops.push(self.decoder.finish()) + self._special_stops.finish()
        return self._stops.push(self._unsigned(text)) + self._stops.finish()

    def take_ids(self) -> tuple[int, ...]:
        """The ids since the last call."""
        ids, self._ids = tuple(self._ids), []
        return ids

    def _signed(self, stop: str) -> str:
        for name in sorted(self._signs, key=len, reverse=True):
            stop = stop.replace(name, self._signs[name])
        return stop

    def _unsigned(self, text: str) -> str:
        for sign in (*self._signs.values(), _ANOTHER):
            text = text.replace(sign, "")
        return text


def write(
    request: Request, tokenizer: Tokenizer, ids: Sequence[int], end_ids: frozenset[int]
) -> tuple[str, bool]:
    """The text of an answer's ids, and whether a stop string ended it."""
    writer = Writer(request, tokenizer)
    text = "".join(writer.push(token, request.ends(token, end_ids)) for token in ids)
    return text + writer.finish(), writer.stopped


class StopStrings:
    """Holds text back while it could still become a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.found = False
        self.held = ""

    def push(self, text: str) -> str:
        """The text that is certain now; everything before a stop string once one is found."""
        self.held += text
        positions = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if positions:
            self.found = True
            self.held = self.held[: min(positions)]
            return ""
        keep = max((_overlap(self.held, stop) for stop in self.stops), default=0)
        certain = self.held[: len(self.held) - keep]
        self.held = self.held[len(certain) :]
        return certain

    def completed_by(self, text: str) -> bool:
        """True if pushing a text would find a stop string."""
        return any(stop in self.held + text for stop in self.stops)

    def finish(self) -> str:
        """Text held back until the end of the answer."""
        rest, self.held = self.held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
