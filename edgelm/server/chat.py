"""``/v1/chat/completions``: a conversation answered in the model's own template."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from edgelm.generation.options import samples
from edgelm.generation.request import Chunk, Request
from edgelm.model import LanguageModel
from edgelm.server.desk import Desk
from edgelm.server.fields import Fields, is_list, is_text
from edgelm.server.refusals import Refusal
from edgelm.server.sampling import (
    IGNORED,
    MOST_LOGPROBS,
    MOST_TOKENS,
    answer_count,
    sampling_options,
    schema_of,
    streaming,
)
from edgelm.server.token_names import chat_logprobs
from edgelm.server.tool_calls import CallFinder, ToolCall
from edgelm.server.usage import Usage

MOST_MESSAGES = 2000
ROLES = {"developer": "system"}  # OpenAI's new name, which few templates know


@dataclass(frozen=True)
class Chat:
    """One call; ``tools``: functions were offered."""

    requests: list[Request]
    tools: bool
    stream: bool
    include_usage: bool


def read_chat(fields: Fields, lm: LanguageModel) -> Chat:
    """Raises Refusal or UsageError for what cannot be answered."""
    messages = fields.require("messages", "a list of messages", is_list)
    if len(messages) > MOST_MESSAGES:
        raise Refusal(400, f"{len(messages)} messages are given; allowed: {MOST_MESSAGES}.")
    told = [_message(Fields(own, f"messages[{at}]")) for at, own in enumerate(messages)]
    tools = _tools(fields)
    count = answer_count(fields)
    options = sampling_options(fields)
    options["max_new_tokens"] = _limit(fields)
    options["logprobs"] = _logprobs(fields)
    if (schema := schema_of(fields.within("response_format"))) is not None:
        options["schema"] = schema
    variables = fields.take("chat_template_kwargs", "an object", lambda v: isinstance(v, dict))
    stream, include_usage = streaming(fields)
    fields.leave_out("model", *IGNORED)
    fields.finish()
    request = chat_request(lm, told, options, tools, variables)
    return Chat(samples(request, count), bool(tools), stream, include_usage)


def chat_request(
    lm: LanguageModel, messages: list[dict[str, Any]], options: dict[str, Any],
    tools: list[Any] | None, variables: dict[str, Any] | None = None,
) -> Request:  # fmt: skip
    """The request for a conversation; the text of an assistant's last message is continued."""
    last = messages[-1] if messages else {}
    goes_on = last.get("role") == "assistant" and not last.get("tool_calls")
    ids = lm.chat_ids(
        messages, tools=tools or None, template_variables=variables,
        continue_final_message=goes_on,
    )  # fmt: skip
    return replace(lm.request(ids, keep_prefix=True, **options), continues=goes_on)


async def chat_parts(call: Chat, desk: Desk) -> AsyncGenerator[dict[str, Any], None]:
    """The call's answer in parts, the last one with the usage."""
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk",
        "created": int(time.time()), "model": desk.name,
    }  # fmt: skip
    usage = Usage(len(call.requests))
    writers = [_Choice(index, call, desk.lm) for index in range(len(call.requests))]
    async with aclosing(desk.answers(call.requests)) as answers:
        async for index, chunk in answers:
            usage.add(index, chunk)
            for choice in writers[index].push(chunk):
                yield head | {"choices": [choice]}
    yield head | {"choices": [], "usage": usage.to_dict()}


class _Choice:
    """One answer as deltas."""

    def __init__(self, index: int, call: Chat, lm: LanguageModel) -> None:
        self._index, self._lm = index, lm
        self._finder = CallFinder(lm.tokenizer.chat_template, call.tools)
        self._logprobs = call.requests[index].logprobs is not None
        self._begun = False
        self._calls = 0

    def push(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if not self._begun:
            self._begun = True
            yield self._told({"role": "assistant", "content": ""})
        pieces = self._finder.pieces(chunk)
        logprobs = None
        if self._logprobs and chunk.logprobs:
            logprobs = chat_logprobs(self._lm.tokenizer, chunk.logprobs)
        for piece in pieces or ([""] if logprobs else []):
            yield self._told(self._delta(piece), logprobs)
            logprobs = None
        if chunk.finish_reason is not None:
            called = self._calls and chunk.finish_reason == "stop"
            yield self._told({}, None, "tool_calls" if called else chunk.finish_reason)

    def _delta(self, piece: str | ToolCall) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"content": piece}
        self._calls += 1
        function = {"name": piece.name, "arguments": piece.arguments}
        call = {"index": self._calls - 1, "id": piece.id, "type": "function", "function": function}
        return {"tool_calls": [call]}

    def _told(
        self, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {
            "index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason,
        }  # fmt: skip


def folded_chat(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts as the answer of a call without streaming."""
    choices: dict[int, dict[str, Any]] = {}
    for new in (choice for part in parts for choice in part["choices"]):
        message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        own = choices.setdefault(
            new["index"], {"index": new["index"], "message": message, "logprobs": None}
        )
        message, delta = own["message"], new["delta"]
        message["content"] += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            message.setdefault("tool_calls", []).append(
                {name: value for name, value in call.items() if name != "index"}
            )
        if new["logprobs"] is not None:
            before = own["logprobs"] or {"content": [], "refusal": None}
            content = [*before["content"], *new["logprobs"]["content"]]
            own["logprobs"] = before | {"content": content}
        own["finish_reason"] = new["finish_reason"]
    for own in choices.values():
        if own["message"].get("tool_calls") and not own["message"]["content"]:
            own["message"]["content"] = None
    told = parts[-1] | {"object": "chat.completion"}
    return told | {"choices": [choices[index] for index in sorted(choices)]}


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.require("role", "a text", is_text)
    found = {"role": ROLES.get(role, role), "content": fields.take("content")}
    for name in ("name", "tool_call_id"):
        if (value := fields.take(name, "a text", is_text)) is not None:
            found[name] = value
    if calls := fields.take("tool_calls", "a list", is_list):
        found["tool_calls"] = [asked_call(Fields(own, "tool_calls")) for own in calls]
    fields.leave_out("refusal", "annotations", "audio", "function_call")
    fields.finish()
    return found


def asked_call(fields: Fields) -> dict[str, Any]:
    """A call that an earlier answer made; templates want its arguments as an object."""
    function = fields.within("function")
    if function is None:
        raise Refusal(400, "A message's tool_calls hold no function.", None, "messages")
    name = function.require("name", "a text", is_text)
    given = function.take("arguments", default="{}")
    function.finish()
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise Refusal(400, f"The arguments of {name!r:.40} are not JSON ({error}).") from error
    found = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if (identity := fields.take("id", "a text", is_text)) is not None:
        found["id"] = identity
    fields.leave_out("type", "index")
    fields.finish()
    return found


def _tools(fields: Fields) -> list[Any] | None:
    tools: list[Any] | None = fields.take("tools", "a list of functions", is_list)
    choice = fields.take("tool_choice", "auto, none", lambda v: v in ("auto", "none"), "auto")
    fields.take("parallel_tool_calls", "true", lambda v: v is True)
    return tools if choice == "auto" else None


def _limit(fields: Fields) -> int | None:
    given = [fields.whole(name, 1, MOST_TOKENS) for name in ("max_tokens", "max_completion_tokens")]
    limits = [limit for limit in given if limit is not None]
    return min(limits) if limits else None


def _logprobs(fields: Fields) -> int | None:
    wanted, count = fields.truth("logprobs"), fields.whole("top_logprobs", 0, MOST_LOGPROBS)
    if count is not None and not wanted:
        raise Refusal(400, "top_logprobs is given without logprobs: true.", None, "top_logprobs")
    return (count or 0) if wanted else None
