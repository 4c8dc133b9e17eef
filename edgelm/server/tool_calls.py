"""Calls of functions in an answer's text, in the form that the model's template teaches.

Two forms are known by what the template says: ``<tool_call>{…}</tool_call>`` (Hermes, Qwen, SmolLM)
and a bare JSON object with ``name`` and ``parameters`` (Llama 3). Of other models a call is text.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgelm.generation.request import Chunk

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """One call; ``arguments`` are JSON text, as OpenAI has them."""

    id: str
    name: str
    arguments: str


class CallFinder:
    """Splits an answer's text, as it comes, into text and calls.

    Args:
        template: the model's. offered: tools were; else all is text.
    """

    def __init__(self, template: str | None, offered: bool) -> None:
        self._tagged = offered and _OPEN in (template or "")
        self._bare = offered and not self._tagged and '"parameters"' in (template or "")
        self._held = ""
        self._inside = False

    def pieces(self, chunk: Chunk) -> list[str | ToolCall]:
        """What is certain after a chunk of the answer; after the last one, all."""
        found = [*self.push(chunk.text)]
        return found if chunk.finish_reason is None else [*found, *self.finish()]

    def push(self, text: str) -> Iterator[str | ToolCall]:
        """What is certain after a piece of text."""
        self._held += text
        if self._tagged:
            yield from self._between_tags()
        elif not (self._bare and self._held.lstrip()[:1] in ("", "{")):
            self._bare = False
            yield from self._text(len(self._held))

    def finish(self) -> Iterator[str | ToolCall]:
        """What was held back until the end; half a call is text."""
        whole = self._held
        if self._bare and (call := _read(whole)) is not None:
            yield call
        elif whole:
            yield (_OPEN if self._inside else "") + whole
        self._held, self._inside = "", False

    def _between_tags(self) -> Iterator[str | ToolCall]:
        while True:
            mark = _CLOSE if self._inside else _OPEN
            at = self._held.find(mark)
            if at < 0:
                break
            if self._inside:
                text = self._held[:at]
                yield _read(text) or f"{_OPEN}{text}{_CLOSE}"
            else:
                before = self._held[:at]
                if before.strip():
                    yield before
            self._held = self._held[at + len(mark) :]
            self._inside = not self._inside
        if not self._inside:
            kept = max(n for n in range(len(_OPEN)) if self._held.endswith(_OPEN[:n]))
            yield from self._text(len(self._held) - kept)

    def _text(self, count: int) -> Iterator[str]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield text


def _read(text: str) -> ToolCall | None:
    """The call in a JSON text; None for anything else."""
    try:
        told: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        return None
    given = told.get("arguments", told.get("parameters"))
    if isinstance(given, dict | None):
        given = json.dumps(given or {}, ensure_ascii=False)
    if not isinstance(given, str):
        return None
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", told["name"], given)
