"""A context and its continuation as token ids, of which the continuation's are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgelm import values
from edgelm.errors import UsageError
from edgelm.text.tokenizer import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """Ids of a context and its continuation; the last ``count`` ids are the continuation's."""

    ids: Ids
    count: int


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, **how: Any) -> Encoded:
    """Ids of both texts, split where the continuation begins.

    White space at the context's end goes over to the continuation, as in lm-eval. If the context's
    ids begin those of the whole text, the rest are the continuation's; else a token joins the two
    texts, and the continuation is encoded by itself. An empty continuation has no ids. ``how``:
    keywords of ``Tokenizer.encode``, for texts that a chat template wrote.

    Raises:
        UsageError: nothing stands before the first id that would be scored, or the tokenizer has
            no token for the continuation.
    """
    if not continuation:
        return Encoded(tuple(tokenizer.encode(context, **how)), 0)
    start = tokenizer.encode(context.rstrip(), **how)
    whole = tokenizer.encode(context + continuation, **how)
    if whole[: len(start)] != start or len(whole) == len(start):
        spaces = context[len(context.rstrip()) :]
        whole = start + tokenizer.encode_later(spaces + continuation)
    if len(whole) == len(start):
        raise UsageError(
            f"The continuation {continuation!r:.80} has no tokens in this tokenizer, so it cannot "
            "be scored. Give some text."
        )
    if not start:
        raise UsageError(
            "The context is empty, and this tokenizer puts no BOS token before a text: nothing "
            "predicts the first token. Give a context."
        )
    return Encoded(tuple(whole), len(whole) - len(start))


def read_pairs(given: Any) -> list[tuple[str, str]]:
    """Pairs of texts; UsageError for anything else."""
    try:
        pairs = [tuple(map(values.text, values.items(pair))) for pair in values.items(given)]
        return [(context, continuation) for context, continuation in pairs]
    except (TypeError, ValueError):
        raise UsageError(
            f"The texts to be scored are {values.shown(given)}; allowed: a list of pairs of texts, "
            "(prompt, continuation)."
        ) from None


def split_shared(choices: Sequence[Encoded]) -> tuple[Ids, list[Ids]]:
    """Split into the ids that all choices begin with, and the remaining ids of each.

    All ids of a choice except the last are run; ids that predict a continuation are never shared.
    """
    inputs = [choice.ids[:-1] for choice in choices]
    kept = min(len(ids) - choice.count for ids, choice in zip(inputs, choices, strict=True))
    shared = 0
    while shared < kept and len({ids[shared] for ids in inputs}) == 1:
        shared += 1
    return inputs[0][:shared], [ids[shared:] for ids in inputs]
