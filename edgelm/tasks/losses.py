"""Losses of all heads, defined as in transformers (``loss/loss_utils.py``).

Targets are checked before anything is computed. Padding is ignored: it is not computed, whereas
transformers includes its results in the mean if it has a target.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgelm.errors import UsageError
from edgelm.models.layers import Head

IGNORED = -100
Loss = Callable[[Tensor], Tensor]
"""Maps a head's results to a scalar, both float32."""


def loss_for(
    head: Head | None, real: Tensor, labels: Tensor | None, start_positions: Tensor | None,
    end_positions: Tensor | None,
) -> Loss | None:  # fmt: skip
    """Loss function for these targets, None if none are given.

    Args:
        real: [B, T] bool, False at padding.
        labels: ids or classes [B, T] with -100 ignored; for sequence classification [B] classes,
            [B, labels] shares or numbers ([B] if there is one label).
        start_positions, end_positions: [B] columns; those at T or beyond are ignored.

    Raises:
        UsageError: targets that do not fit the head, have another shape, or are out of range.
    """
    spans = start_positions is not None or end_positions is not None
    if labels is None and not spans:
        return None
    if head is None:
        raise UsageError("labels need a head; this model was loaded with task='base'.")
    if spans != (head.task == "question-answering") or (spans and labels is not None):
        raise UsageError(
            "question-answering takes start_positions and end_positions, the other tasks labels; "
            f"this model was loaded with task={head.task!r}."
        )
    if spans:
        return _span_loss(real, start_positions, end_positions)
    assert labels is not None
    labels = torch.as_tensor(labels)
    if head.task == "sequence-classification":
        return _sequence_loss(head, len(real), labels)
    return _token_loss(head, real, labels)


def _token_loss(head: Head, real: Tensor, labels: Tensor) -> Loss:
    """Mean cross-entropy of each position's class, or of the next token for a language model."""
    _check_classes(labels, real.shape, head.out_size)
    labels = labels.long().masked_fill(~real, IGNORED)
    if not head.is_language_model:
        return lambda logits: _cross_entropy(logits, labels)
    following = labels[:, 1:].masked_fill(~real[:, :-1], IGNORED)
    return lambda logits: _cross_entropy(logits[:, :-1], following)


def _sequence_loss(head: Head, rows: int, labels: Tensor) -> Loss:
    """Loss of logits [B, labels]; a problem not set in the config follows from labels and dtype."""
    count, problem = head.out_size, head.problem
    if problem is None and count == 1:
        problem = "regression"
    if problem is None:
        kind = "multi" if labels.is_floating_point() else "single"
        problem = f"{kind}_label_classification"
    if problem == "single_label_classification":
        if labels.dim() == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        _check_classes(labels, (rows,), count)
        return lambda logits: _cross_entropy(logits, labels.long())
    if count == 1 and labels.dim() == 1:
        labels = labels[:, None]
    _check_shape(labels, (rows, count), "one number per row and label")
    wanted = labels.float()
    if problem == "regression":
        return lambda logits: functional.mse_loss(logits, wanted)
    if wanted.numel() and not 0 <= float(wanted.min()) <= float(wanted.max()) <= 1:
        raise UsageError("labels of a multi-label classification lie between 0 and 1.")
    return lambda logits: functional.binary_cross_entropy_with_logits(logits, wanted)


def _span_loss(real: Tensor, starts: Tensor | None, ends: Tensor | None) -> Loss:
    """Loss of logits [B, T, 2]: mean of two cross-entropies over each row's tokens."""
    if starts is None or ends is None:
        raise UsageError("Give both start_positions and end_positions, [B] each.")
    rows, width = real.shape
    beside = torch.cat([real, real.new_ones(rows, 1)], 1)
    targets = []
    for name, given in (("start_positions", starts), ("end_positions", ends)):
        positions = torch.as_tensor(given)
        positions = positions[:, 0] if positions.dim() == 2 else positions
        _check_shape(positions, (rows,), "one column per row", name)
        positions = positions.long().clamp(0, width)
        if not bool(beside.gather(1, positions[:, None]).all()):
            raise UsageError(f"{name} is {positions.tolist()}, which points at padding.")
        targets.append(positions)

    def loss(logits: Tensor) -> Tensor:
        masked = logits.masked_fill(~real[:, :, None], -torch.inf)
        both = [
            functional.cross_entropy(masked[:, :, side], target, ignore_index=width)
            for side, target in enumerate(targets)
        ]
        return (both[0] + both[1]) / 2

    return loss


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), classes.reshape(-1), ignore_index=IGNORED
    )


def _check_shape(
    labels: Tensor, expected: tuple[int, ...], what: str, name: str = "labels"
) -> None:
    if tuple(labels.shape) != expected:
        raise UsageError(f"{name} is {list(labels.shape)}; expected {list(expected)}, {what}.")


def _check_classes(labels: Tensor, expected: tuple[int, ...], count: int) -> None:
    _check_shape(labels, tuple(expected), "one class or -100 each")
    real = labels[labels != IGNORED]
    if labels.is_floating_point() or (
        real.numel() and not 0 <= int(real.min()) <= int(real.max()) < count
    ):
        raise UsageError(f"labels must be whole numbers from 0 to {count - 1}; -100 is ignored.")
