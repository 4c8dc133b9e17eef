"""Round to nearest: each group's scale comes from its extremes alone, without calibration data.

Symmetric codes of 4 to 6 bits follow ggml's Q4_0: the scale may be negative, so that the number of
largest magnitude, whatever its sign, lands on the smallest code exactly and all codes are in use.
Codes of scales without a sign take the wider of two positive scales instead. nf4 and fp4 scale by
the largest magnitude, as bitsandbytes does, iq4 by that with its sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..codebooks import CODEBOOKS
from ..errors import QuantError
from ..groupwise import quantize
from ..packing import Grid, PackedWeight
from ..scale_codes import encode
from ..scheme import Scheme


def rtn(block: Tensor, scheme: Scheme) -> PackedWeight:
    """Pack the rows ``block`` (float32 [n, K]) in an integer scheme.

    Scales and zeros are rounded to their stored form before the codes are chosen. Where they are
    floats, every number comes back within half a step, except that symmetric codes of 4 to 6 bits
    have no middle above the last: numbers nearer to it come back as the last. In a codebook they
    come back as its nearest number. Raises QuantError for numbers that are not finite and for
    scales or minima beyond their type.
    """
    return quantize(block, encode(grid(*extremes(block, scheme), scheme), scheme), scheme)


def extremes(block: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Smallest and largest number of every group of ``block`` [n, K], both float32 [n, G]."""
    groups = block.view(len(block), scheme.groups(block.shape[1]), -1)
    low, high = (extreme.float() for extreme in torch.aminmax(groups, dim=-1))
    if not bool(torch.isfinite(high - low).all()):
        raise QuantError("weights hold NaN, infinite or absurdly large numbers; repair the file")
    return low, high


def grid(low: Tensor, high: Tensor, scheme: Scheme) -> Grid:
    """The grid from ``low`` to ``high`` [n, G], in stored types; float32 where scales are coded."""
    if scheme.zeros == "none":
        return Grid(_symmetric_scales(low, high, scheme))
    if scheme.zeros == "int":
        return _integer_zeros(low, high, scheme)
    return _float_zeros(low, high, scheme)


def has_signs(scheme: Scheme) -> bool:
    """True if scales may be negative."""
    return not scheme.coded or scheme.scale_codes[0] < 0


def ends(scheme: Scheme) -> tuple[float, float]:
    """Smallest and largest number of a symmetric grid whose scale is 1."""
    if scheme.codebook is not None:
        return min(CODEBOOKS[scheme.codebook]), max(CODEBOOKS[scheme.codebook])
    if scheme.bits == 8:
        return -127.0, 127.0
    return -float(scheme.middle), scheme.middle - 1.0


def _symmetric_scales(low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    first, last = ends(scheme)
    if first == -last:
        return stored(torch.maximum(high, -low) / last, scheme)
    if has_signs(scheme):
        return stored(torch.where(high > -low, high, low) / first, scheme)
    return stored(torch.maximum(high / last, low / first), scheme)


def _integer_zeros(low: Tensor, high: Tensor, scheme: Scheme) -> Grid:
    # Zero must be a code, so the range is stretched to hold it.
    low, high = low.clamp(max=0), high.clamp(min=0)
    first, last = scheme.code_range
    scales = stored((high - low) / (last - first), scheme)
    step = scales.float()
    offset = torch.where(step == 0, 0.0, -low / step)
    zeros = (offset.round() + first).clamp_(first, last)
    return Grid(scales, zeros.to(scheme.dtype))


def _float_zeros(low: Tensor, high: Tensor, scheme: Scheme) -> Grid:
    if scheme.coded:
        low = low.clamp(max=0)  # codes of minima have no sign
        high = torch.maximum(low, high)
    first, last = scheme.code_range
    scales = stored((high - low) / (last - first), scheme)
    return Grid(scales, stored(low - first * scales.float(), scheme))


def stored(values: Tensor, scheme: Scheme) -> Tensor:
    """Scales or minima in the type in which the scheme stores them, float32 before encoding."""
    if scheme.coded:
        return values
    largest, limit = float(values.abs().max()), torch.finfo(scheme.scale_dtype).max
    if largest > limit:
        raise QuantError(
            f"a scale or minimum of {largest:.3g} is beyond {scheme.scales} ({limit:.5g}); "
            "the weights are damaged, or keep this tensor in float"
        )
    return values.to(scheme.scale_dtype)
