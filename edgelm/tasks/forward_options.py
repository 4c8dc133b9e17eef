"""The options of ``forward``."""

from __future__ import annotations

from typing import Annotated, TypedDict

from torch import Tensor

from edgelm.option import Call, Option, declare


class ForwardOptions(TypedDict, total=False):
    """Options of ``forward`` beside ids and a cache; None means not given."""

    inputs_embeds: Annotated[Tensor | None, Option("[B, T, N] in place of ids.")]
    attention_mask: Annotated[
        Tensor | None, Option("[B, T], zeros at padding; the cache's tokens may stand before.")
    ]
    position_ids: Annotated[Tensor | None, Option("[B, T] or [1, T]; default: from the cache on.")]
    logits_to_keep: Annotated[
        int | Tensor | None, Option("The last n columns (0: all), or a 1-D tensor of columns.")
    ]
    labels: Annotated[Tensor | None, Option("For a loss, as transformers takes them.")]
    start_positions: Annotated[Tensor | None, Option("[B], of question answering.")]
    end_positions: Annotated[Tensor | None, Option("[B], of question answering.")]
    output_hidden_states: Annotated[bool | None, Option("Whether to give hidden states.")]
    output_attentions: Annotated[bool | None, Option("Whether to give attentions.")]


FORWARD = declare(Call("forward()", ForwardOptions, ("input_ids", "cache")))
