"""Round to nearest: each group's scale comes from its extremes alone, without calibration data.

Symmetric int4 follows ggml's Q4_0: the scale may be negative, so that the number of largest
magnitude, whatever its sign, lands on code -8 exactly and all sixteen codes are in use.
nf4 and fp4 scale by the largest magnitude, as bitsandbytes does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import QuantError
from ..groupwise import quantize
from ..packing import PackedWeight
from ..scheme import Scheme


def rtn(block: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack the rows ``block`` (float32 [n, K]) in an integer scheme.

    Scales and zeros are rounded to their stored type before the codes are chosen. Every number
    comes back within half a step, except that symmetric int4 has no code +8: numbers nearer to
    it than to +7 come back as 7 steps. In a codebook they come back as its nearest number. Raises
    QuantError for numbers that are not finite and for scales or minima beyond their type.
    """
    return quantize(block, *grid(*extremes(block, scheme), scheme), scheme)


def extremes(block: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Smallest and largest number of every group of ``block`` [n, K], both float32 [n, G]."""
    groups = block.view(len(block), scheme.groups(block.shape[1]), -1)
    low, high = (extreme.float() for extreme in torch.aminmax(groups, dim=-1))
    if not bool(torch.isfinite(high - low).all()):
        raise QuantError("weights hold NaN, infinite or absurdly large numbers; repair the file")
    return low, high


def grid(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros [n, G], in their stored types, of the grid from ``low`` to ``high``."""
    if scheme.zeros == "none":
        return _symmetric_scales(low, high, scheme), None
    if scheme.zeros == "int":
        return _integer_zeros(low, high, scheme)
    return _float_zeros(low, high, scheme)


def _symmetric_scales(low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    if scheme.codebook is not None:
        return stored(torch.maximum(high, -low), scheme)
    if scheme.bits == 8:
        return stored(torch.maximum(high, -low) / 127, scheme)
    return stored(torch.where(high > -low, high, low) / -8, scheme)


def _integer_zeros(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    # Zero must be a code, so the range is stretched to hold it.
    low, high = low.clamp(max=0), high.clamp(min=0)
    first, last = scheme.code_range
    scales = stored((high - low) / (last - first), scheme)
    step = scales.float()
    offset = torch.where(step == 0, 0.0, -low / step)
    zeros = (offset.round() + first).clamp_(first, last)
    return scales, zeros.to(scheme.dtype)


def _float_zeros(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    first, last = scheme.code_range
    scales = stored((high - low) / (last - first), scheme)
    return scales, stored(low - first * scales.float(), scheme)


def stored(values: Tensor, scheme: Scheme) -> Tensor:
    """Scales or minima in the type in which the scheme stores them."""
    largest, limit = float(values.abs().max()), torch.finfo(scheme.scale_dtype).max
    if largest > limit:
        raise QuantError(
            f"a scale or minimum of {largest:.3g} is beyond {scheme.scales} ({limit:.5g}); "
            "the weights are damaged, or keep this tensor in float"
        )
    return values.to(scheme.scale_dtype)
