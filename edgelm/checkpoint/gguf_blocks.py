"""Conversion of ggml's block types: kept exactly, converted nearly exactly, or requantized.

| types | kept as | how |
|---|---|---|
| Q4_0, Q4_1, Q8_0 | int4-g32, int4-g32-zfloat, int8-g32 | every bit as stored |
| Q5_0, IQ4_NL; Q5_1 | int8-g32; int8-g32-zfloat | every value as stored: the codes fit in 8 bits |
| Q4_K | int4-g32-zfloat | codes as stored; a group's scale and minimum, products of a float16 and 6 bits, are rounded to one float16 (about 70 dB) |
| Q5_K, Q6_K | int8-g32 | quantized again by ``quant="auto"``, 45 dB or better |
| IQ4_XS, MXFP4, NVFP4 | int8-g32 | the same: no evenly spaced 4 bits hold their unevenly spaced values |
| Q2_K, Q3_K, IQ1_*, IQ2_*, IQ3_*, TQ1_0, TQ2_0 | int4-g32-zfloat | the same, at a cost: 20 dB or more below what the file holds |
"""  # noqa: E501 - a table's rows

from __future__ import annotations

import torch

from quant.packing import PackedWeight
from quant.scheme import Scheme

EXACT = {
    "Q4_0": Scheme(4, 32),
    "Q4_1": Scheme(4, 32, "float"),
    "Q5_0": Scheme(8, 32),
    "Q5_1": Scheme(8, 32, "float"),
    "Q8_0": Scheme(8, 32),
    "IQ4_NL": Scheme(8, 32),
}
PACKED = EXACT | {"Q4_K": Scheme(4, 32, "float")}
_IN_8_BITS = ("Q5_K", "Q6_K", "IQ4_XS", "MXFP4", "NVFP4")
_IN_4_BITS = (
    *("Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("TQ1_0", "TQ2_0"),
)
NEAREST = dict.fromkeys(_IN_8_BITS, Scheme(8, 32)) | dict.fromkeys(
    _IN_4_BITS, Scheme(4, 32, "float")
)
# The values of IQ4_NL's codes in units of its scale (ggml's kvalues_iq4nl).
IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
K_GROUPS = 8  # groups of 32 in a block of Q4_K


def take_apart(raw: torch.Tensor, kind: str, packed: PackedWeight) -> None:
    """Unpack blocks of a type in PACKED (uint8 [n, bytes]) into the rows of ``packed``."""
    if kind == "Q4_K":
        _take_apart_q4_k(raw, packed)
    elif kind in ("Q5_0", "Q5_1", "IQ4_NL"):
        _widen(raw, kind, packed)
    else:
        _take_apart_32(raw, packed)


def dequantized(raw: torch.Tensor, kind: str) -> torch.Tensor:
    """Blocks of any type (uint8 [n, bytes]) as float32 [n, K], by the package ``gguf``."""
    import gguf
    import numpy as np

    with np.errstate(all="ignore"):  # a damaged scale gives infinity, which the loader refuses
        values = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values)


def _take_apart_32(raw: torch.Tensor, packed: PackedWeight) -> None:
    """Q4_0, Q4_1 and Q8_0: every number as stored.

    A block is a float16 scale, for Q4_1 a float16 minimum, then the codes: 32 bytes for Q8_0, and
    for 4 bits 16 bytes that hold code i low and code i + 16 high (ggml's dequantize_row_q4_0).
    Data is moved in 16-bit words, twice as fast as bytes: a word of 4-bit codes
    has i, i + 16, i + 1, i + 17 from its lowest nibble up.
    """
    assert packed.scales is not None
    groups = packed.scales.shape
    blocks = raw.view(torch.int16).view(*groups, -1)
    packed.scales.copy_(blocks[..., 0].view(torch.float16))
    if packed.zeros is not None:
        packed.zeros.copy_(blocks[..., 1].view(torch.float16))
    words = blocks[..., 1 if packed.zeros is None else 2 :]
    if packed.scheme.bits == 8:
        packed.qweight.view(torch.int16).view(words.shape).copy_(words)
        return
    words = words.contiguous()
    higher = words >> 4
    halves = packed.qweight.view(*groups, 2, 8)
    halves[..., 0, :] = (words & 15) | (higher & 240)
    halves[..., 1, :] = (higher & 15) | ((words >> 8) & 240)


def _widen(raw: torch.Tensor, kind: str, packed: PackedWeight) -> None:
    """Q5_0, Q5_1 and IQ4_NL: the scale (and minimum) as stored, the codes as bytes.

    The nibbles are as in Q4_0; 5-bit types have their 32 fifth bits in sequence in 4 bytes before
    them (ggml's dequantize_row_q5_0, dequantize_row_iq4_nl).
    """
    assert packed.scales is not None
    groups = packed.scales.shape
    blocks = raw.view(*groups, -1)
    floats = blocks[..., :4].contiguous().view(torch.float16)
    packed.scales.copy_(floats[..., 0])
    if packed.zeros is not None:
        packed.zeros.copy_(floats[..., 1])
    nibbles = blocks[..., -16:]
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=-1)
    out = packed.qweight.view(*groups, 32)
    if kind == "IQ4_NL":
        out.copy_(torch.tensor(IQ4_NL_VALUES, dtype=torch.int8)[codes.int()])
        return
    fifth = blocks[..., -20:-16, None] >> torch.arange(8, dtype=torch.uint8) & 1
    codes |= fifth.view(codes.shape) << 4
    out.copy_(codes.to(torch.int8) - (16 if kind == "Q5_0" else 0))


def _take_apart_q4_k(raw: torch.Tensor, packed: PackedWeight) -> None:
    """Q4_K: d and dmin in float16, 12 bytes of 6-bit scales and minima, 128 bytes of codes.

    A group's value is d * scale * code - dmin * minimum. Bytes 0-3 hold the scales and bytes 4-7
    the minima of groups 0-3 in their low 6 bits; groups 4-7 have their low 4 bits in bytes 8-11
    and the other 2 on top of bytes 0-7. 32 bytes hold two groups' codes, the low nibbles being
    the first (ggml's get_scale_min_k4 and dequantize_row_q4_K).
    """
    assert packed.scales is not None and packed.zeros is not None
    blocks = raw.view(len(raw), -1, 144)
    factors = blocks[..., :4].contiguous().view(torch.float16).float()
    low, middle, high = blocks[..., 4:16].split(4, dim=-1)
    scales = torch.cat([low & 63, (high & 15) | ((low >> 6) << 4)], dim=-1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 6) << 4)], dim=-1)
    groups = (*blocks.shape[:2], K_GROUPS)
    packed.scales.view(groups).copy_(factors[..., :1] * scales)
    packed.zeros.view(groups).copy_(-factors[..., 1:] * minima)
    pairs = blocks[..., 16:].reshape(*blocks.shape[:2], K_GROUPS // 2, 16, 2)
    first, second = pairs & 15, pairs >> 4
    codes = packed.qweight.view(*blocks.shape[:2], K_GROUPS // 2, 2, 16)
    codes[..., 0, :] = first[..., 0] | (first[..., 1] << 4)
    codes[..., 1, :] = second[..., 0] | (second[..., 1] << 4)
