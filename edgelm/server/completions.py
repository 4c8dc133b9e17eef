"""``/v1/completions``: a prompt goes on; its own text and log-probabilities where asked for."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from edgelm.generation.options import samples
from edgelm.generation.request import Request
from edgelm.model import LanguageModel
from edgelm.server.desk import Desk
from edgelm.server.fields import Fields, is_ids, is_list, is_text
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
from edgelm.server.token_names import text_logprobs
from edgelm.server.usage import Usage

MOST_PROMPTS = 128
USUAL_TOKENS = 16  # OpenAI's


@dataclass(frozen=True)
class Completion:
    """One call.

    Attributes:
        requests: one for each choice. prompts: their texts, for ``echo``. count: choices of each.
    """

    requests: list[Request]
    prompts: list[str]
    echo: bool
    logprobs: int | None
    stream: bool
    include_usage: bool
    count: int


def read_completion(fields: Fields, lm: LanguageModel) -> Completion:
    """Raises Refusal or UsageError for what cannot be answered."""
    prompts = prompts_of(fields.require("prompt", _PROMPTS, is_prompts))
    echo, count = fields.truth("echo"), answer_count(fields)
    fields.whole("best_of", count, count)  # more than are given back would be made in vain
    logprobs = fields.whole("logprobs", 0, MOST_LOGPROBS)
    limit = fields.whole("max_tokens", 0, MOST_TOKENS, USUAL_TOKENS)
    options = sampling_options(fields)
    if (schema := schema_of(fields.within("response_format"))) is not None:
        options["schema"] = schema
    stream, include_usage = streaming(fields)
    fields.leave_out("model", *IGNORED)
    fields.finish()
    options |= {
        "parse_special": True,
        "logprobs": logprobs,
        "keep_prefix": True,
        "max_new_tokens": limit or None,
    }
    requests: list[Request] = []
    for prompt in prompts:
        made = lm.request(prompt, **options)
        if limit == 0:
            made = replace(made, prompt_only=True, max_new_tokens=None)
        if echo and logprobs is not None:
            made = replace(made, prompt_logprobs=logprobs)
        requests += samples(made, count)
    if len(requests) > MOST_PROMPTS:
        raise Refusal(400, f"{len(requests)} answers are asked for; allowed: {MOST_PROMPTS}.")
    texts = [
        p if isinstance(p, str) else lm.tokenizer.decode(p, skip_special=False) for p in prompts
    ]
    told = [text for text in texts for _ in range(count)]
    return Completion(requests, told, echo, logprobs, stream, include_usage, count)


async def completion_parts(call: Completion, desk: Desk) -> AsyncGenerator[dict[str, Any], None]:
    """The call's answer in parts, the last one with the usage."""
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion",
        "created": int(time.time()), "model": desk.name,
    }  # fmt: skip
    told, usage = [0] * len(call.requests), Usage(call.count)
    begun: set[int] = set()
    async with aclosing(desk.answers(call.requests)) as answers:
        async for index, chunk in answers:
            request, text, entries = call.requests[index], chunk.text, list(chunk.logprobs)
            if call.echo and index not in begun:
                text = call.prompts[index] + text
                if call.logprobs is not None:
                    entries = [request.prompt_ids[0], *chunk.prompt_logprobs, *entries]  # type: ignore
            begun.add(index)
            logprobs = None
            if call.logprobs is not None:
                logprobs = text_logprobs(desk.lm.tokenizer, entries, told[index])
                told[index] += sum(map(len, logprobs["tokens"]))
            choice = {
                "index": index, "text": text, "logprobs": logprobs,
                "finish_reason": chunk.finish_reason,
            }  # fmt: skip
            usage.add(index, chunk)
            yield head | {"choices": [choice]}
    yield head | {"choices": [], "usage": usage.to_dict()}


def folded_completion(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts as the answer of a call without streaming."""
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        for new in part["choices"]:
            own = choices.setdefault(new["index"], new | {"text": "", "logprobs": None})
            own["text"] += new["text"]
            own["finish_reason"] = new["finish_reason"]
            if new["logprobs"] is not None:
                before = own["logprobs"] or {name: [] for name in new["logprobs"]}
                own["logprobs"] = {k: [*before[k], *new["logprobs"][k]] for k in before}
    return parts[-1] | {"choices": [choices[index] for index in sorted(choices)]}


_PROMPTS = "a text, token ids, or a list of texts or of ids"


def is_prompts(value: Any) -> bool:
    """True for a text, ids, or a list of either."""
    if is_text(value) or is_ids(value):
        return True
    return is_list(value) and bool(value) and (all(map(is_text, value)) or all(map(is_ids, value)))


def prompts_of(value: Any) -> list[Any]:
    return [value] if is_text(value) or is_ids(value) else list(value)
