"""The options of ``forward``."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict, cast

import torch
from torch import Tensor

from edgelm import values
from edgelm.budget.dtypes import KV_DTYPES
from edgelm.budget.plan import Plan
from edgelm.ops.cache import KVCache
from edgelm.option import Call, Option, checked, declare, options_in


def _tensor(value: Any) -> Tensor:
    """A tensor of numbers, or what torch makes one of: an array or a list of lists."""
    found = torch.as_tensor(value)
    if found.is_complex() or found.layout != torch.strided or found.is_quantized:
        raise TypeError
    return found


def _whole_tensor(value: Any) -> Tensor:
    """As ``_tensor``, of whole numbers."""
    found = _tensor(value)
    if found.is_floating_point() or found.dtype == torch.bool:
        raise TypeError
    return found


def _columns(value: Any) -> int | Tensor:
    return _whole_tensor(value) if getattr(value, "ndim", 0) else values.whole(value)


def _cache(value: Any) -> KVCache:
    if not isinstance(value, KVCache):
        raise TypeError
    return value


_POSITIONS = Option(
    "[B], of question answering.", "a tensor of whole numbers [B]", kind=_whole_tensor
)


class ForwardOptions(TypedDict, total=False):
    """Options of ``forward`` beside ids and a cache; None means not given."""

    inputs_embeds: Annotated[
        Tensor | None,
        Option("[B, T, N] in place of ids.", "a tensor of numbers [B, T, N]", kind=_tensor),
    ]
    attention_mask: Annotated[
        Tensor | None,
        Option(
            "[B, T], zeros at padding; the cache's tokens may stand before.",
            "a tensor of zeros and ones [B, T]",
            lambda mask: bool(((mask == 0) | (mask == 1)).all()),
            kind=_tensor,
        ),
    ]
    position_ids: Annotated[
        Tensor | None,
        Option(
            "[B, T] or [1, T]; default: from the cache on.",
            "a tensor of whole numbers [B, T]",
            kind=_whole_tensor,
        ),
    ]
    logits_to_keep: Annotated[
        int | Tensor | None,
        Option(
            "The last n columns (0: all), or a 1-D tensor of columns.",
            "a count, or a 1-D tensor of columns",
            kind=_columns,
        ),
    ]
    labels: Annotated[
        Tensor | None,
        Option("For a loss, as transformers takes them.", "a tensor of numbers", kind=_tensor),
    ]
    start_positions: Annotated[Tensor | None, _POSITIONS]
    end_positions: Annotated[Tensor | None, _POSITIONS]
    output_hidden_states: Annotated[
        bool | None, Option("Whether to give hidden states.", "True, False", kind=values.truth)
    ]
    output_attentions: Annotated[
        bool | None, Option("Whether to give attentions.", "True, False", kind=values.truth)
    ]


FORWARD = declare(
    Call(
        "forward()",
        ForwardOptions,
        {
            "input_ids": Option(
                "Token ids.", "a tensor of token ids [B, T]", kind=_whole_tensor, optional=True
            ),
            "cache": Option(
                "What rows hold already.", "a cache of new_cache()", kind=_cache, optional=True
            ),
        },
    )
)


def read_forward(given: ForwardOptions) -> ForwardOptions:
    """The options that are not None, as tensors and numbers.

    Raises:
        UsageError: an unknown name, with the nearest one; a value of another kind.
    """
    table = options_in(ForwardOptions)
    read = {
        name: table[name].require(name, value)
        for name, value in checked(given, FORWARD).items()
        if value is not None
    }
    return cast(ForwardOptions, read)


def read_cache(
    plan: Plan, rows: int, context: int | None, kv: str | None
) -> tuple[int, int, torch.dtype]:
    """Rows, context and type of a cache beside a plan's own; None is as in the plan.

    Raises:
        UsageError: a value that the plan does not allow.
    """
    count = Option("Rows.", "1 or more", lambda n: n >= 1, kind=values.whole)
    length = Option(
        "Tokens of a row.", f"1 to {plan.context}, the context of the model's plan",
        lambda n: 1 <= n <= plan.context, kind=values.whole,
    )  # fmt: skip
    kind = Option(
        "Type of keys and values.", ", ".join(KV_DTYPES), KV_DTYPES.__contains__, kind=values.text
    )
    return (
        count.require("rows", rows),
        length.require("context", plan.context if context is None else context),
        KV_DTYPES[kind.require("kv", plan.kv if kv is None else kv)],
    )
