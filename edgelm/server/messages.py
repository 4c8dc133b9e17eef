"""``/v1/messages``: the same conversations in Anthropic's form."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from edgelm.model import LanguageModel
from edgelm.server.chat import MOST_MESSAGES, Chat, chat_request
from edgelm.server.desk import Desk
from edgelm.server.fields import Fields, is_list, is_text
from edgelm.server.refusals import Refusal
from edgelm.server.sampling import IGNORED, MOST_TOKENS, schema_of, stops
from edgelm.server.tool_calls import CallFinder, ToolCall
from edgelm.server.usage import Usage

_PLAIN = ("temperature", "top_p", "top_k", "seed")


@dataclass(frozen=True)
class MessagesCall(Chat):
    """One call; ``stops`` are its stop strings."""

    stops: tuple[str, ...]


def read_messages(fields: Fields, lm: LanguageModel) -> MessagesCall:
    """Raises Refusal or UsageError for what cannot be answered."""
    given = fields.require("messages", "a list of messages", is_list)
    if len(given) > MOST_MESSAGES:
        raise Refusal(400, f"{len(given)} messages are given; allowed: {MOST_MESSAGES}.")
    told = _system(fields)
    for at, own in enumerate(given):
        told += _turns(Fields(own, f"messages[{at}]"))
    limit = fields.require(
        "max_tokens", f"1 to {MOST_TOKENS}", lambda v: type(v) is int and 1 <= v <= MOST_TOKENS
    )
    options = {name: value for name in _PLAIN if (value := fields.take(name)) is not None}
    found = stops(fields, "stop_sequences")
    options |= {"max_new_tokens": limit, "stop": found}
    tools = [_tool(Fields(own, "tools")) for own in fields.take("tools", "a list", is_list, [])]
    choice = fields.within("tool_choice")
    if choice is not None:
        kind = choice.require("type", "auto, none", lambda v: v in ("auto", "none"))
        choice.finish()
        tools = tools if kind == "auto" else []
    if (thinking := fields.within("thinking")) is not None:
        thinking.require("type", "disabled", lambda v: v == "disabled")
        thinking.finish()
    if (config := fields.within("output_config")) is not None:
        if (schema := schema_of(config.within("format"))) is not None:
            options["schema"] = schema
        config.finish()
    stream = fields.truth("stream")
    fields.leave_out("model", "cache_control", *IGNORED)
    fields.finish()
    request = chat_request(lm, told, options, tools)
    return MessagesCall([request], bool(tools), stream, False, tuple(found or ()))


async def message_events(call: MessagesCall, desk: Desk) -> AsyncGenerator[dict[str, Any], None]:
    """The answer as Anthropic's events."""
    tokenizer, usage = desk.lm.tokenizer, Usage()
    message: dict[str, Any] = {
        "id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant",
        "model": desk.name, "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": len(call.requests[0].prompt_ids), "output_tokens": 0},
    }  # fmt: skip
    finder, blocks = CallFinder(tokenizer.chat_template, call.tools), _Blocks()
    ids: list[int] = []
    async with aclosing(desk.answers(call.requests)) as answers:
        begun = False
        async for _, chunk in answers:
            if not begun:
                begun = True
                yield {"type": "message_start", "message": message}
            ids += chunk.token_ids
            usage.add(0, chunk)
            for piece in finder.pieces(chunk):
                for event in blocks.push(piece):
                    yield event
    for event in blocks.close():
        yield event
    ended = bool(ids) and call.requests[0].ends(ids[-1], desk.lm.end_ids)
    found = None
    if chunk.finish_reason == "stop" and not ended and call.stops:
        found = _first_stop(call.stops, tokenizer.decode(ids, continues=True))
    reason = "max_tokens" if chunk.finish_reason == "length" else "end_turn"
    if blocks.called and reason == "end_turn":
        reason = "tool_use"
    elif found is not None:
        reason = "stop_sequence"
    delta = {"stop_reason": reason, "stop_sequence": found}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage.new}}
    yield {"type": "message_stop"}


class _Blocks:
    """Content blocks, one after the other."""

    def __init__(self) -> None:
        self._index, self._open = -1, False
        self.called = False

    def push(self, piece: str | ToolCall) -> list[dict[str, Any]]:
        if isinstance(piece, str):
            first = [] if self._open else self._start({"type": "text", "text": ""})
            self._open = True
            return [*first, self._delta({"type": "text_delta", "text": piece})]
        self.called = True
        block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": piece.arguments}
        ended = self.close()
        started = self._start(block)
        self._open = True
        return [*ended, *started, self._delta(delta), *self.close()]

    def close(self) -> list[dict[str, Any]]:
        was_open, self._open = self._open, False
        return [{"type": "content_block_stop", "index": self._index}] if was_open else []

    def _start(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        self._index += 1
        return [{"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def folded_message(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The events as the answer of a call without streaming."""
    message = dict(events[0]["message"], content=[])
    for event in events:
        if event["type"] == "content_block_start":
            message["content"].append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][-1], event["delta"]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            else:
                block["input"] = json.loads(delta["partial_json"])
        elif event["type"] == "message_delta":
            message |= event["delta"]
            message["usage"] = message["usage"] | event["usage"]
    return message


def _system(fields: Fields) -> list[dict[str, Any]]:
    given = fields.take("system", "a text, or blocks of text", lambda v: is_text(v) or is_list(v))
    return [{"role": "system", "content": _text(given, "system")}] if given else []


def _turns(fields: Fields) -> list[dict[str, Any]]:
    """A message as the template's turns: results of calls are turns of their own."""
    role = fields.require("role", "user, assistant", lambda v: v in ("user", "assistant"))
    content = fields.require("content", "a text, or a list", lambda v: is_text(v) or is_list(v))
    fields.finish()
    if is_text(content):
        return [{"role": role, "content": content}]
    found: list[dict[str, Any]] = []
    texts: list[Any] = []
    calls: list[dict[str, Any]] = []
    for given in content:
        block = Fields(given, "content")
        kind = block.require(
            "type", "text, tool_use, tool_result",
            lambda v: v in ("text", "tool_use", "tool_result"),
        )  # fmt: skip
        if kind == "text":
            texts.append(given)
        elif kind == "tool_use":
            function = {
                "name": block.require("name", "a text", is_text),
                "arguments": block.require("input", "an object", lambda v: isinstance(v, dict)),
            }
            identity = block.require("id", "a text", is_text)
            calls.append({"id": identity, "type": "function", "function": function})
            _finish(block)
        else:
            told = block.take("content", "a text, or blocks", lambda v: is_text(v) or is_list(v))
            identity = block.require("tool_use_id", "a text", is_text)
            text = _text(told or "", "content")
            found.append({"role": "tool", "tool_call_id": identity, "content": text})
            block.truth("is_error")  # templates have no word for it; the content says so
            _finish(block)
    if texts or calls:
        own: dict[str, Any] = {"role": role, "content": _text(texts, "content")}
        found.append(own | ({"tool_calls": calls} if calls else {}))
    return found


def _text(given: Any, where: str) -> str:
    """A text, or the texts of blocks; blocks of another kind are refused."""
    if is_text(given):
        return str(given)
    found = []
    for own in given:
        block = Fields(own, where)
        block.require("type", "text", lambda v: v == "text")
        found.append(block.require("text", "a text", is_text))
        block.leave_out("citations")
        _finish(block)
    return "\n".join(found)


def _finish(block: Fields) -> None:
    """Refuse what nobody took of a block; what it says of caches is ignored."""
    block.leave_out("cache_control")
    block.finish()


def _tool(fields: Fields) -> dict[str, Any]:
    function = {
        "name": fields.require("name", "a text", is_text),
        "description": fields.take("description", "a text", is_text, ""),
        "parameters": fields.require("input_schema", "an object", lambda v: isinstance(v, dict)),
    }
    fields.take("type", "custom", lambda v: v == "custom")
    _finish(fields)
    return {"type": "function", "function": function}


def _first_stop(stops: tuple[str, ...], text: str) -> str | None:
    """The stop string that a text was cut at."""
    places = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(places)[1] if places else None
