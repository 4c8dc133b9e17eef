"""Messages of a chat: checked, with contents that a template prints, and none of them lost.

A template is a program: one that does not know a role, or cannot read a content, prints something
else or nothing, and says nothing. ``probes`` and ``require_told`` find that out by trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgelm.errors import UsageError

Message = Mapping[str, Any]
Messages = Sequence[Message]
_EXAMPLE = "{'role': 'user', 'content': 'Hello!'}"


def checked_messages(messages: Messages, takes_parts: Callable[[], bool]) -> list[dict[str, Any]]:
    """Copies of the messages, with contents in parts joined by line ends.

    takes_parts: whether the template prints parts itself, asked where there are any; it gets them
    as they are then.

    Raises UsageError for what is no message, or has a content that is no text.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f"A chat needs a list of at least one message, e.g. [{_EXAMPLE}].")
    return [_checked(index, message, takes_parts) for index, message in enumerate(messages)]


def _checked(index: int, message: Any, takes_parts: Callable[[], bool]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(
            f"Message {index} is {message!r:.80}; each must be a mapping with 'role' and "
            f"'content', e.g. {_EXAMPLE}."
        )
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and not _is_list_of_mappings(calls):
        raise UsageError(
            f"{_named(index, message)} has tool_calls {calls!r:.60}; give a list of mappings, "
            "each with a 'function' that has 'name' and 'arguments'."
        )
    if content is None and not calls:
        raise UsageError(
            f"{_named(index, message)} has no content; give a text ('' for none). Only a message "
            "with tool_calls may go without."
        )
    if isinstance(content, list | tuple):
        texts = [_part_text(index, message, part) for part in content]
        content = list(content) if takes_parts() else "\n".join(texts)
    elif not isinstance(content, str | None):
        raise UsageError(
            f"{_named(index, message)} has the content {content!r:.60}; give a text, or a list of "
            "parts {'type': 'text', 'text': …}."
        )
    return {**message, "content": content}


def _part_text(index: int, message: Message, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    given = f"a part of type {kind!r:.40}" if kind not in (None, "text") else f"{part!r:.60}"
    raise UsageError(
        f"{_named(index, message)} has {given} in its content; this engine reads text only: each "
        "part must be {'type': 'text', 'text': …}."
    )


def probes(messages: Messages) -> list[dict[str, Any]]:
    """The messages with digits in place of what they say, for ``require_told``."""
    return [_probe(index, message) for index, message in enumerate(messages)]


def _probe(index: int, message: Message) -> dict[str, Any]:
    content: Any = _digits(index)
    if isinstance(message["content"], list):
        content = [{"type": "text", "text": content}]
    if not _says(message["content"]):
        content = message["content"]
    found = {**message, "content": content}
    if message.get("tool_calls"):
        found["tool_calls"] = [_probe_call(index, call) for call in message["tool_calls"]]
    return found


def _probe_call(index: int, call: Message) -> Message:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return {**call, "name": _digits(-1 - index)}
    return {**call, "function": {**function, "name": _digits(-1 - index)}}


def require_told(messages: Messages, shown: str) -> None:
    """Raise UsageError for a message that is not in the text that its probes were rendered to."""
    for index, message in enumerate(messages):
        if _says(message["content"]) and _digits(index) not in shown:
            raise UsageError(
                f"{_named(index, message)} would be missing from the prompt: the model's chat "
                "template does not print its text. Use the roles that the template knows (mostly "
                "system, user and assistant), or put the text into a message that is printed."
            )
        if message.get("tool_calls") and _digits(-1 - index) not in shown:
            raise UsageError(
                f"{_named(index, message)} has tool_calls, which the model's chat template does "
                "not print. Leave them out, or write them into the content."
            )


def continued(messages: Messages, end: str) -> list[dict[str, Any]]:
    """The messages with ``end`` behind the last one's text."""
    *before, last = messages
    content = last["content"]
    if isinstance(content, str):
        return [*map(dict, before), {**last, "content": content + end}]
    if not content:
        raise UsageError(
            f"{_named(len(before), last)} has no content to go on with; leave out "
            "continue_final_message."
        )
    parts = [*content[:-1], {**content[-1], "text": content[-1]["text"] + end}]
    return [*map(dict, before), {**last, "content": parts}]


def is_tools(tools: Any) -> bool:
    """True for a list of functions' JSON schemas."""
    return _is_list_of_mappings(tools) and bool(tools)


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def _digits(number: int) -> str:
    """A text of its own for each number, which no filter changes and no other text holds.

    So long that a template which cuts texts short is noticed.
    """
    return f"{number % 10**9:09d}" * 8


def _says(content: Any) -> bool:
    texts = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
    return any(text.strip() for text in texts)


def _named(index: int, message: Message) -> str:
    return f"Message {index} (role {message['role']!r:.40})"
