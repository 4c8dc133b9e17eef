"""The methods that the native library has, with the bits that they have in torch."""

from __future__ import annotations

from torch import Tensor

from ..native import search
from ..packing import PackedWeight
from .mse import starts
from .rtn import ends

NATIVE_METHODS = ("rtn", "mse")


def quantize_natively(block: Tensor, into: PackedWeight, method: str) -> tuple[float, float] | None:
    """Pack the rows ``block`` (float32 [n, K]) into ``into``: sums of squares, and of errors'.

    None, and rows to be packed by the method itself, where the library lacks it, is absent or
    finds the rows beyond what can be stored.
    """
    scheme = into.scheme
    if method not in NATIVE_METHODS or scheme.is_float:
        return None
    size = scheme.group_size or block.shape[1]
    tried = starts(size, scheme) if method == "mse" else []
    return search.quantize_(block, into, ends(scheme), tried)
