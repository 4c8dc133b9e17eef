"""Execution of a plan: its operations, recorded steps, and the source of guessed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from edgelm.budget.plan import Execution, MatrixPlan, decode_tokens
from edgelm.errors import UsageError
from edgelm.models.decoder import Decoder
from edgelm.ops.native import runs_natively
from edgelm.ops.triton import serves

# A CUDA graph must ask the host for nothing while it runs.
_CAPTURABLE = ("triton.", "torch.mm", "torch.int4tile", "reference")
# Products of other libraries round activations otherwise for one row than for many: guesses, whose
# number follows the clock, would change greedy texts from run to run.
_ROWS_STAND_ALONE = ("native.", "reference", "torch.mm")


def execution_of(
    products: Sequence[MatrixPlan], dtype: torch.dtype, accelerator: torch.device | None, *,
    rows: int, draft_depth: int, drafted: bool, streams: bool, method: str,
) -> Execution:  # fmt: skip
    """Decide how a plan runs.

    Args:
        accelerator: None on the CPU.
        draft_depth: most tokens guessed at once, as ``draft_depth`` below decided.
        drafted: a smaller model guesses. streams: some layers are read from disk in every step.
    """
    ops: Literal["native", "triton", "reference"] = "reference"
    recorded = False
    if accelerator is None and runs_natively(products, dtype):
        # A step that waits for the disk between its layers is not one native call.
        ops, recorded = "native", not streams
    elif accelerator is not None and serves(accelerator) is None:
        ops, recorded = "triton", all(_starts(p, _CAPTURABLE) for p in products)
    drafter: Literal["none", "lookup", "model"] = "model" if drafted else "lookup"
    return Execution(
        ops=ops,
        decode_tokens=decode_tokens(rows, draft_depth),
        recorded=recorded,
        drafter=drafter if draft_depth else "none",
        method=method,
    )


def draft_depth(
    asked: int, decoder: Decoder, products: Sequence[MatrixPlan], tokens: int, *, drafted: bool
) -> int:
    """The most tokens guessed ahead: a step of ``tokens`` holds them and the one before them.

    0 where nothing guesses: in a model without a language head, and without a draft model where
    a token among guesses would not get what it gets alone.

    Raises:
        UsageError: fewer than none.
    """
    if asked < 0:
        raise UsageError(f"draft_depth is {asked}; allowed: 0 (no guesses) or above.")
    if decoder.head is None or not decoder.head.is_language_model:
        return 0
    if not drafted and not rows_stand_alone(products):
        return 0
    return min(asked, tokens - 1)


def rows_stand_alone(products: Sequence[MatrixPlan]) -> bool:
    """True if a row of every product is the same alone and among others, to float32's last bits."""
    return all(_starts(product, _ROWS_STAND_ALONE) for product in products)


def _starts(product: MatrixPlan, kernels: tuple[str, ...]) -> bool:
    return product.kernel.startswith(kernels)
