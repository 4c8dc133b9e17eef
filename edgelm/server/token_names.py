"""Tokens as texts, and their log-probabilities in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgelm.generation.request import TokenLogprob
from edgelm.text.tokenizer import Tokenizer


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; what is not a whole character is written as ``bytes:\\xe2\\x82``."""
    if token >= tokenizer.vocab_size:
        return f"token:{token}"
    if tokenizer.is_special(token):
        return tokenizer.token_of(token) or f"token:{token}"
    data = tokenizer.bytes_of(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """As ``/v1/chat/completions`` tells them."""

    def told(token: int, value: float) -> dict[str, Any]:
        special = token >= tokenizer.vocab_size or tokenizer.is_special(token)
        data = None if special else list(tokenizer.bytes_of(token))
        return {"token": token_name(tokenizer, token), "logprob": value, "bytes": data}

    content = [
        told(e.token_id, e.logprob) | {"top_logprobs": [told(*pair) for pair in e.top]}
        for e in entries
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprob | int], start: int
) -> dict[str, Any]:
    """As ``/v1/completions`` tells them; an id stands for a first token, which has none.

    Args:
        start: characters before the first token.
    """
    names, values, tops, offsets = [], [], [], []
    for entry in entries:
        first = isinstance(entry, int)
        names.append(token_name(tokenizer, entry if first else entry.token_id))  # type: ignore
        values.append(None if first else entry.logprob)  # type: ignore[union-attr]
        tops.append(None if first else _by_name(tokenizer, entry))  # type: ignore[arg-type]
        offsets.append(start)
        start += len(names[-1])
    return {
        "tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets,
    }  # fmt: skip


def _by_name(tokenizer: Tokenizer, entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens; the chosen one, if it is not among them, comes last."""
    pairs = [*entry.top, (entry.token_id, entry.logprob)]
    found: dict[str, float] = {}
    for token, value in pairs:
        found.setdefault(token_name(tokenizer, token), value)
    return found
