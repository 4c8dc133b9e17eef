"""``/v1/responses``: the same conversations in OpenAI's newer form; nothing is kept."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from edgelm.model import LanguageModel
from edgelm.server.chat import MOST_MESSAGES, ROLES, Chat, asked_call, chat_request
from edgelm.server.desk import Desk
from edgelm.server.fields import Fields, is_list, is_text
from edgelm.server.refusals import Refusal
from edgelm.server.sampling import IGNORED, MOST_TOKENS, schema_of
from edgelm.server.tool_calls import CallFinder, ToolCall
from edgelm.server.usage import Usage

_PLAIN = ("temperature", "top_p", "seed")
_TEXTS = ("input_text", "output_text")
_ITEMS = "message, function_call, function_call_output"


def read_response(fields: Fields, lm: LanguageModel) -> Chat:
    """Raises Refusal or UsageError for what cannot be answered."""
    given = fields.require("input", "a text, or a list", lambda v: is_text(v) or is_list(v))
    items = [{"role": "user", "content": given}] if is_text(given) else given
    if len(items) > MOST_MESSAGES:
        raise Refusal(400, f"{len(items)} items are given; allowed: {MOST_MESSAGES}.")
    told = [_message(Fields(own, f"input[{at}]")) for at, own in enumerate(items)]
    if instructions := fields.take("instructions", "a text", is_text):
        told.insert(0, {"role": "system", "content": instructions})
    options = {name: value for name in _PLAIN if (value := fields.take(name)) is not None}
    options["max_new_tokens"] = fields.whole("max_output_tokens", 1, MOST_TOKENS)
    if (text := fields.within("text")) is not None:
        if (schema := schema_of(text.within("format"))) is not None:
            options["schema"] = schema
        text.leave_out(*IGNORED)
        text.finish()
    tools = [_tool(Fields(own, "tools")) for own in fields.take("tools", "a list", is_list, [])]
    choice = fields.take("tool_choice", "auto, none", lambda v: v in ("auto", "none"), "auto")
    fields.take("parallel_tool_calls", "true", lambda v: v is True)
    fields.take("truncation", "disabled", lambda v: v == "disabled")
    stream = fields.truth("stream")
    fields.leave_out("model", "include", *IGNORED)
    fields.finish()
    tools = tools if choice == "auto" else []
    request = chat_request(lm, told, options, tools)
    return Chat([request], bool(tools), stream, False)


async def response_events(call: Chat, desk: Desk) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as OpenAI's events; the last one holds all of it."""
    response: dict[str, Any] = {
        "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time()),
        "model": desk.name, "status": "in_progress", "output": [], "error": None,
        "incomplete_details": None, "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": [], "metadata": {}, "store": False,
    }  # fmt: skip
    finder, usage = CallFinder(desk.lm.tokenizer.chat_template, call.tools), Usage()
    items, number = _Items(response["output"]), 0

    def numbered(event: dict[str, Any]) -> dict[str, Any]:
        nonlocal number
        number += 1
        return event | {"sequence_number": number - 1}

    async with aclosing(desk.answers(call.requests)) as answers:
        async for _, chunk in answers:
            if number == 0:
                yield numbered({"type": "response.created", "response": dict(response, output=[])})
            usage.add(0, chunk)
            for piece in finder.pieces(chunk):
                for event in items.push(piece):
                    yield numbered(event)
    for event in items.close():
        yield numbered(event)
    cut = chunk.finish_reason == "length"
    response["status"] = "incomplete" if cut else "completed"
    response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
    response["usage"] = {
        "input_tokens": usage.prompt, "output_tokens": usage.new,
        "total_tokens": usage.prompt + usage.new,
        "input_tokens_details": {"cached_tokens": usage.kept},
        "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    yield numbered({"type": f"response.{response['status']}", "response": response})


def folded_response(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of a call without streaming."""
    found: dict[str, Any] = events[-1]["response"]
    return found


class _Items:
    """Items of the output, one after the other: a message, and calls."""

    def __init__(self, output: list[dict[str, Any]]) -> None:
        self._output = output
        self._text: dict[str, Any] | None = None  # the message's part that is written

    def push(self, piece: str | ToolCall) -> Iterator[dict[str, Any]]:
        if isinstance(piece, ToolCall):
            yield from self.close()
            yield from self._call(piece)
            return
        if self._text is None:
            self._text = {"type": "output_text", "text": "", "annotations": []}
            item = {
                "type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant",
                "status": "in_progress", "content": [],
            }  # fmt: skip
            self._output.append(item)
            yield self._told("output_item.added", item=dict(item))
            yield self._part("content_part.added", part=dict(self._text))
        self._text["text"] += piece
        yield self._part("output_text.delta", delta=piece, logprobs=[])

    def close(self) -> Iterator[dict[str, Any]]:
        part, self._text = self._text, None
        if part is not None:
            item = self._output[-1]
            item |= {"status": "completed", "content": [part]}
            yield self._part("output_text.done", text=part["text"], logprobs=[])
            yield self._part("content_part.done", part=part)
            yield self._told("output_item.done", item=item)

    def _call(self, call: ToolCall) -> Iterator[dict[str, Any]]:
        item = {
            "type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": call.id,
            "name": call.name, "arguments": call.arguments, "status": "completed",
        }  # fmt: skip
        self._output.append(item)
        begun = item | {"arguments": "", "status": "in_progress"}
        yield self._told("output_item.added", item=begun)
        own = {"item_id": item["id"]}
        yield self._told("function_call_arguments.delta", delta=call.arguments, **own)
        yield self._told(
            "function_call_arguments.done", arguments=call.arguments, name=call.name, **own
        )
        yield self._told("output_item.done", item=item)

    def _part(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._told(kind, item_id=self._output[-1]["id"], content_index=0, **more)

    def _told(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "output_index": len(self._output) - 1, **more}


def _message(fields: Fields) -> dict[str, Any]:
    kind = fields.take("type", _ITEMS, lambda v: v in _ITEMS.split(", "), "message")
    fields.leave_out("id", "status")
    if kind == "function_call":
        name = fields.require("name", "a text", is_text)
        arguments = fields.take("arguments", "JSON in a text", is_text, "{}")
        function = {"name": name, "arguments": arguments}
        identity = fields.require("call_id", "a text", is_text)
        calls = [asked_call(Fields({"id": identity, "function": function}, "function_call"))]
        found: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    elif kind == "function_call_output":
        found = {"role": "tool", "content": fields.require("output", "a text", is_text)}
        found["tool_call_id"] = fields.require("call_id", "a text", is_text)
    else:
        role = fields.require("role", "a text", is_text)
        content = fields.require("content", "a text, or a list", lambda v: is_text(v) or is_list(v))
        found = {"role": ROLES.get(role, role), "content": _text(content)}
    fields.finish()
    return found


def _text(content: Any) -> str:
    if is_text(content):
        return str(content)
    found = []
    for own in content:
        part = Fields(own, "content")
        part.require("type", ", ".join(_TEXTS), lambda v: v in _TEXTS)
        found.append(part.require("text", "a text", is_text))
        part.leave_out("annotations", "logprobs")
        part.finish()
    return "\n".join(found)


def _tool(fields: Fields) -> dict[str, Any]:
    fields.require("type", "function", lambda v: v == "function")
    function = {
        "name": fields.require("name", "a text", is_text),
        "description": fields.take("description", "a text", is_text, ""),
        "parameters": fields.take("parameters", "an object", lambda v: isinstance(v, dict), {}),
    }
    fields.leave_out("strict")
    fields.finish()
    return {"type": "function", "function": function}
