"""The number types of activations and of caches, by the names that users write."""

from __future__ import annotations

import torch

from edgelm.budget.dtype_names import DTYPE_NAMES, KV_NAMES

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
KV_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in KV_NAMES}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``float32``."""
    return str(dtype).removeprefix("torch.")
