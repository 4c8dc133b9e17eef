"""Prompts: what callers give to be answered, read as texts and token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from edgelm import values
from edgelm.errors import UsageError

Prompt = str | Sequence[int]
Prompts = list[str] | tuple[str, ...] | Sequence[Sequence[int]]
Read = str | tuple[int, ...]


def read_prompts(given: Any) -> tuple[list[Read], bool]:
    """Each prompt, and whether a list of them was given.

    A prompt is a text or ids: a list, a tuple, an array or a tensor. Rows of ids, also of an array
    [B, T], are a list of prompts. What a tokenizer returns counts as its ``input_ids``.

    Raises:
        UsageError: something else, no prompt, or padding.
    """
    if isinstance(given, str):
        return [given], False
    try:
        items = values.items(_without_padding(given))
    except (TypeError, ValueError, RuntimeError):
        _refuse("The prompt", given)
    if not items:
        raise UsageError("The prompt is empty; give at least one token.")
    if not all(map(_is_prompt, items)):
        return [_read_one("The prompt", items)], False
    return [_read_one(f"Prompt {index}", own) for index, own in enumerate(items)], True


def read_prompt(given: Any) -> Read:
    """The one prompt that is given; rows of ids may hold one row."""
    prompts, _ = read_prompts(given)
    if len(prompts) > 1:
        raise UsageError(
            f"{len(prompts)} prompts are given, and this call answers one; call generate() with a "
            "list."
        )
    return prompts[0]


def _read_one(which: str, given: Any) -> Read:
    if isinstance(given, str):
        return given
    try:
        ids = values.token_ids(given)
    except (TypeError, ValueError, RuntimeError):
        _refuse(which, given)
    if not ids:
        raise UsageError(f"{which} is empty; give at least one token.")
    return ids


def _is_prompt(item: Any) -> bool:
    """True for a text or a row of ids, as opposed to one id."""
    return isinstance(item, str | Sequence) or bool(getattr(item, "ndim", 0))


def _without_padding(given: Any) -> Any:
    """The ids of a tokenizer's result; anything else as it is."""
    if not isinstance(given, Mapping) or "input_ids" not in given:
        return given
    mask = given.get("attention_mask")
    rows = [] if mask is None else values.items(mask)
    if any(0 in (row if isinstance(row, Sequence) else [row]) for row in rows):
        raise UsageError(
            "The prompts are padded (attention_mask has zeros); give texts, or a list of id lists "
            "of their own lengths."
        )
    return given["input_ids"]


def _refuse(which: str, given: Any) -> NoReturn:
    raise UsageError(
        f"{which} is {values.shown(given)}; allowed: a text, token ids (a list, a tuple or a "
        "tensor of whole numbers), or a list of those."
    ) from None
