"""Workspace that products on a device share: sums of split ranges, blocks of dequantized weights.

Products on one device run one after another on one stream, so one allocation serves all of them.
It is allocated when a matrix is laid out, never while a step runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PIECES: dict[torch.device, list[Tensor]] = {}


def reserve(device: torch.device, nbytes: int) -> None:
    """Make sure that ``workspace`` has ``nbytes`` on ``device``."""
    pieces = _PIECES.setdefault(device, [])
    if not pieces or pieces[-1].nbytes < nbytes:
        # Smaller ones are kept: a captured graph may refer to their addresses.
        pieces.append(torch.empty(nbytes, dtype=torch.uint8, device=device))


def workspace(device: torch.device, count: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor [count] of ``dtype`` on ``device``."""
    reserve(device, count * dtype.itemsize)
    return _PIECES[device][-1][: count * dtype.itemsize].view(dtype)
