"""Memory that products on a device share: sums of split ranges, blocks of weights as numbers.

Products of one device follow each other on one stream, so one piece serves all of them. It is
taken where a matrix is laid out, never while a step runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PIECES: dict[torch.device, list[Tensor]] = {}


def reserve(device: torch.device, nbytes: int) -> None:
    """See to it that ``workspace`` has ``nbytes`` on ``device``."""
    pieces = _PIECES.setdefault(device, [])
    if not pieces or pieces[-1].nbytes < nbytes:
        # The smaller ones stay: a captured graph may have their addresses.
        pieces.append(torch.empty(nbytes, dtype=torch.uint8, device=device))


def workspace(device: torch.device, count: int, dtype: torch.dtype) -> Tensor:
    """[count] numbers of ``dtype`` on ``device``, of whatever content."""
    reserve(device, count * dtype.itemsize)
    return _PIECES[device][-1][: count * dtype.itemsize].view(dtype)
