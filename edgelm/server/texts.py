"""The small endpoints: the model and its plan, embeddings, labels, tokens."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from edgelm.model import LanguageModel
from edgelm.server.completions import is_prompts, prompts_of
from edgelm.server.desk import Desk
from edgelm.server.fields import Fields, is_ids, is_list, is_text
from edgelm.server.refusals import Refusal
from edgelm.server.sampling import IGNORED

MOST_INPUTS = 256
_INPUTS = "a text, token ids, or a list of texts or of ids"


def models(lm: LanguageModel) -> dict[str, Any]:
    """``/v1/models``: the one model, with the plan that it was loaded by."""
    plan = lm.plan.to_dict()
    plan.pop("products")
    plan.pop("rejected")
    own = {
        "id": lm.name, "object": "model", "created": int(time.time()), "owned_by": "edgelm",
        "context_length": lm.plan.context, "plan": plan,
    }  # fmt: skip
    return {"object": "list", "data": [own]}


async def embeddings(fields: Fields, desk: Desk) -> dict[str, Any]:
    """``/v1/embeddings``: of length 1, as numbers or as base64 of float32."""
    prompts = prompts_of(fields.require("input", _INPUTS, is_prompts))
    form = fields.take("encoding_format", "float, base64", lambda v: v in ("float", "base64"))
    fields.leave_out("model", *IGNORED)
    fields.finish()
    _require_few(prompts)
    lm = desk.lm
    ids = await desk.read(lambda: [lm.encode(p) if is_text(p) else p for p in prompts])
    vectors = await desk.call(lambda stop: lm.embed(ids, stop_event=stop))
    if form == "base64":
        told: list[Any] = [base64.b64encode(own.numpy().tobytes()).decode() for own in vectors]
    else:
        told = vectors.tolist()
    count = sum(map(len, ids))
    data = [{"object": "embedding", "index": at, "embedding": own} for at, own in enumerate(told)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "model": desk.name, "data": data, "usage": usage}


async def classify(fields: Fields, desk: Desk) -> dict[str, Any]:
    """``/classify``: what the model's head says of each input."""
    given = fields.require("input", "a text or a list of texts", lambda v: is_text(v) or is_list(v))
    fields.leave_out("model", *IGNORED)
    fields.finish()
    texts = [given] if is_text(given) else given
    _require_few(texts)
    lm = desk.lm
    found = await desk.call(lambda _: lm.predict([_pair(own) for own in texts]))
    data = [
        [asdict(token) for token in own] if isinstance(own, tuple) else asdict(own) for own in found
    ]
    return {"object": "list", "model": desk.name, "data": data}


async def tokenize(fields: Fields, desk: Desk) -> dict[str, Any]:
    """``/tokenize``: ids of a text."""
    text = fields.require("text", "a text", is_text)
    add, parse = fields.truth("add_special", True), fields.truth("parse_special")
    fields.leave_out("model")
    fields.finish()
    encode: Callable[[], list[int]] = partial(
        desk.lm.tokenizer.encode, text, add_special=add, parse_special=parse
    )
    ids = await desk.read(encode)
    return {"tokens": ids, "count": len(ids)}


async def detokenize(fields: Fields, desk: Desk) -> dict[str, Any]:
    """``/detokenize``: the text of ids."""
    ids = fields.require("tokens", "a list of token ids", lambda v: v == [] or is_ids(v))
    special = fields.truth("keep_special", True)
    fields.leave_out("model")
    fields.finish()
    tokenizer = desk.lm.tokenizer
    if beyond := [own for own in ids if not 0 <= own < tokenizer.vocab_size]:
        allowed = f"0-{tokenizer.vocab_size - 1}"
        raise Refusal(400, f"Token id {beyond[0]} is out of range; allowed: {allowed}.")
    return {"text": await desk.read(lambda: tokenizer.decode(ids, skip_special=not special))}


def _require_few(inputs: list[Any]) -> None:
    if len(inputs) > MOST_INPUTS:
        told = f"{len(inputs)} inputs are given; allowed: {MOST_INPUTS}."
        raise Refusal(400, told, None, "input")


def _pair(given: Any) -> Any:
    """A pair (question, context) comes as a list."""
    return tuple(given) if is_list(given) else given
