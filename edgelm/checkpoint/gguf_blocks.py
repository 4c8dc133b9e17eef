"""ggml's block types: those that are one of our schemes, taken apart and put together.

The types in SCHEMES are held value for value: codes, scales, codes of scales and super-scales are
moved, none is computed anew. So are Q2_K and Q3_K, which ``gguf_low_bits`` reads and nothing
writes. The others have no scheme that equals them; ``quant="auto"`` quantizes them again:

| types | kept as | at a cost of |
|---|---|---|
| MXFP4, NVFP4 | int8-g32 | nothing that matters: 45 dB or better |
| IQ1_*, IQ2_*, IQ3_*, TQ1_0, TQ2_0 | int4-g32-zfloat | 20 dB or more below what the file holds |

Layouts follow ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.packing import PackedWeight
from quant.scheme import GGUF_NAMES, Scheme

SCHEMES = {name.upper(): Scheme.parse(text) for name, text in GGUF_NAMES.items()}
_IN_8_BITS = ("MXFP4", "NVFP4")
_IN_4_BITS = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("TQ1_0", "TQ2_0"),
)
NEAREST = dict.fromkeys(_IN_8_BITS, Scheme(8, 32)) | dict.fromkeys(
    _IN_4_BITS, Scheme(4, 32, "float")
)


class Layout(NamedTuple):
    """Where the fields of a block lie, in bytes from its start; -1 for a field that it lacks.

    weights, nbytes: of a block. scale, minimum: its float16 numbers, of K types the super-scales.
    lower: the codes' lower four bits, ``run`` codes in low nibbles and the next ``run`` in the high
    nibbles of the same bytes; whole bytes for a run of 0. upper: their other bits. scales: codes of
    scales (and minima).
    """

    weights: int
    nbytes: int
    scale: int
    lower: int
    run: int
    minimum: int = -1
    upper: int = -1
    scales: int = -1


LAYOUTS = {
    "Q4_0": Layout(32, 18, scale=0, lower=2, run=16),
    "Q4_1": Layout(32, 20, scale=0, lower=4, run=16, minimum=2),
    "Q5_0": Layout(32, 22, scale=0, lower=6, run=16, upper=2),
    "Q5_1": Layout(32, 24, scale=0, lower=8, run=16, minimum=2, upper=4),
    "Q8_0": Layout(32, 34, scale=0, lower=2, run=0),
    "IQ4_NL": Layout(32, 18, scale=0, lower=2, run=16),
    "Q4_K": Layout(256, 144, scale=0, lower=16, run=32, minimum=2, scales=4),
    "Q5_K": Layout(256, 176, scale=0, lower=48, run=32, minimum=2, upper=16, scales=4),
    "Q6_K": Layout(256, 210, scale=208, lower=0, run=64, upper=128, scales=192),
    "IQ4_XS": Layout(256, 136, scale=0, lower=8, run=16, scales=2),
}


def take_apart(raw: Tensor, kind: str, packed: PackedWeight) -> None:
    """Unpack blocks of a type in SCHEMES (uint8 [n, bytes]) into the rows of ``packed``."""
    layout, scheme = LAYOUTS[kind], packed.scheme
    assert packed.scales is not None
    words = raw.view(torch.int16).view(len(raw), -1, layout.nbytes // 2)
    blocks = raw.view(len(raw), -1, layout.nbytes)
    floats = words.view(torch.float16)
    if not scheme.coded:
        packed.scales.copy_(floats[..., layout.scale // 2])
        if packed.zeros is not None:
            packed.zeros.copy_(floats[..., layout.minimum // 2])
    else:
        assert packed.supers is not None
        packed.supers[..., 0] = floats[..., layout.scale // 2]
        if scheme.zeros == "float":  # a minimum is subtracted
            torch.neg(floats[..., layout.minimum // 2], out=packed.supers[..., 1])
        _scale_codes(blocks, kind, packed)
    lower = words[..., layout.lower // 2 :]
    if scheme.bits == 8:
        packed.qweight.view(torch.int16).view(lower.shape).copy_(lower)
        return
    lower = lower[..., : layout.weights // 4].contiguous()
    _lower_from(lower, layout.run, _plane(packed.qweight, 0, packed.shape[1] // 2))
    if scheme.bits > 4:
        size = layout.weights * (scheme.bits - 4) // 8
        upper = blocks[..., layout.upper : layout.upper + size]
        _plane(packed.qweight, packed.shape[1] // 2).view(upper.shape).copy_(
            _upper_from(upper, kind)
        )


def to_blocks(packed: PackedWeight, kind: str) -> Tensor:
    """Rows of a matrix as blocks of a type whose scheme they have, uint8 [n, bytes].

    Raises QuantError for codes of scales that the type does not have.
    """
    layout, scheme = LAYOUTS[kind], packed.scheme
    assert scheme == SCHEMES[kind] and packed.scales is not None
    rows, inputs = packed.shape
    blocks = torch.empty(rows, inputs // layout.weights, layout.nbytes, dtype=torch.uint8)
    fields = {layout.scale: packed.scales, layout.minimum: packed.zeros}
    if packed.supers is not None:
        fields = {layout.scale: packed.supers[..., 0]}
        if scheme.zeros == "float":
            fields[layout.minimum] = -packed.supers[..., 1]
        codes = _stored_scale_codes(packed, kind)
        blocks[..., layout.scales : layout.scales + codes.shape[-1]] = codes
    for place, numbers in fields.items():
        if numbers is not None:
            stored = _copied(numbers).view(torch.uint8).view(*blocks.shape[:2], 2)
            blocks[..., place : place + 2] = stored
    if scheme.bits == 8:
        blocks[..., layout.lower :] = packed.qweight.view(torch.uint8).view(*blocks.shape[:2], -1)
        return blocks.flatten(1)
    lower = _lower_to(_plane(packed.qweight, 0, inputs // 2), layout.run)
    size = layout.weights // 2
    blocks[..., layout.lower : layout.lower + size] = lower.view(*blocks.shape[:2], size)
    if scheme.bits > 4:
        upper = _plane(packed.qweight, inputs // 2).reshape(*blocks.shape[:2], -1)
        blocks[..., layout.upper : layout.upper + upper.shape[-1]] = _upper_to(upper, kind)
    return blocks.flatten(1)


def is_finite(packed: PackedWeight) -> bool:
    """False if a scale, minimum or super-scale is NaN or infinite."""
    numbers = (packed.scales, packed.zeros, packed.supers)
    floats = (each for each in numbers if each is not None and each.is_floating_point())
    return all(bool(torch.isfinite(each).all()) for each in floats)


def dequantized(raw: Tensor, kind: str) -> Tensor:
    """Blocks of any type (uint8 [n, bytes]) as float32 [n, K], by the package ``gguf``."""
    import gguf
    import numpy as np

    with np.errstate(all="ignore"):  # a damaged scale gives infinity, which the loader refuses
        values = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values)


def _plane(qweight: Tensor, start: int, stop: int | None = None) -> Tensor:
    """Columns of ``qweight``: the lower four bits of its codes, or the others."""
    return qweight[:, start:stop]


def _copied(field: Tensor) -> Tensor:
    """A copy without gaps: ``contiguous`` leaves one row of one block as it is, whose strides do
    not allow a view in another type."""
    return field.clone(memory_format=torch.contiguous_format)


def _lower_from(words: Tensor, run: int, plane: Tensor) -> None:
    """Lower four bits of codes from blocks, int16 [n, B, ...], into [n, K / 2].

    Data is moved in 16-bit words, twice as fast as bytes: a word has the codes i, i + run, i + 1
    and i + 1 + run from its lowest nibble up.
    """
    words = words.view(len(words), -1, run // 2)
    higher = words >> 4
    halves = plane.view(len(words), -1, 2, run // 2)
    halves[..., 0, :] = (words & 15) | (higher & 240)
    halves[..., 1, :] = (higher & 15) | ((words >> 8) & 240)


def _lower_to(plane: Tensor, run: int) -> Tensor:
    """The way back: uint8 [n, K / 2]."""
    first, second = plane.reshape(len(plane), -1, 2, run // 2).unbind(2)
    even, odd = (first & 15) | (second << 4), (first >> 4) | (second & 240)
    return torch.stack((even, odd), dim=-1).flatten(1)


def _upper_from(upper: Tensor, kind: str) -> Tensor:
    """Other bits of codes from blocks, uint8 [n, B, bytes], to the order of the canonical layout.

    Q5_0 and Q5_1 have them in this order. A byte of Q5_K has a bit of each of its 8 groups, one of
    Q6_K two bits of each of 4 groups.
    """
    if kind == "Q5_K":
        turned = _turned_bits(_copied(upper).view(torch.int64)).view(torch.uint8)
        return turned.view(*upper.shape[:2], 4, 8).transpose(2, 3).flatten(2)
    if kind == "Q6_K":
        turned = _turned_pairs(_copied(upper).view(torch.int32)).view(torch.uint8)
        return turned.view(*upper.shape[:2], 2, 8, 4).transpose(3, 4).flatten(2)
    return upper


def _upper_to(upper: Tensor, kind: str) -> Tensor:
    """The way back: uint8 [n, B, bytes]."""
    if kind == "Q5_K":
        words = upper.view(*upper.shape[:2], 8, 4).transpose(2, 3).flatten(2).view(torch.int64)
        return _turned_bits(words).view(torch.uint8)
    if kind == "Q6_K":
        words = upper.view(*upper.shape[:2], 2, 4, 8).transpose(3, 4).flatten(2).view(torch.int32)
        return _turned_pairs(words).view(torch.uint8)
    return upper


def _turned_bits(words: Tensor) -> Tensor:
    """int64 words as matrices of 8 bytes by 8 bits, transposed (Hacker's Delight, 7-3)."""
    for step, mask in (7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0):
        swapped = (words ^ (words >> step)) & mask
        words = words ^ swapped ^ (swapped << step)
    return words


def _turned_pairs(words: Tensor) -> Tensor:
    """int32 words as matrices of 4 bytes by 4 pairs of bits, transposed likewise."""
    for step, mask in (6, 0x00CC00CC), (12, 0x0000F0F0):
        swapped = (words ^ (words >> step)) & mask
        words = words ^ swapped ^ (swapped << step)
    return words


def _scale_codes(blocks: Tensor, kind: str, packed: PackedWeight) -> None:
    """Codes of scales, and of minima, from blocks uint8 [n, B, bytes].

    Q6_K: signed bytes. IQ4_XS: 2 bytes with the two upper bits of each of 8 codes, 4 bytes with
    their nibbles; the codes are from -32. Q4_K, Q5_K: bytes 0-3 hold the scales and bytes 4-7 the
    minima of groups 0-3 in their low 6 bits; groups 4-7 have their low 4 bits in bytes 8-11 and
    the other 2 on top of bytes 0-7 (get_scale_min_k4).
    """
    place = LAYOUTS[kind].scales
    assert packed.scales is not None
    scales = packed.scales.view(*blocks.shape[:2], -1)
    if kind == "Q6_K":
        scales.copy_(blocks[..., place : place + 16].view(torch.int8))
    elif kind == "IQ4_XS":
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
        upper = (blocks[..., place : place + 2, None] >> shifts & 3).flatten(2)
        nibbles = blocks[..., place + 2 : place + 6]
        lower = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).flatten(2)
        scales.copy_(lower | upper << 4).sub_(32)
    else:
        assert packed.zeros is not None
        low, middle, high = blocks[..., place : place + 12].split(4, dim=-1)
        scales[..., :4], scales[..., 4:] = low & 63, (high & 15) | (low >> 6 << 4)
        minima = packed.zeros.view(scales.shape)
        minima[..., :4], minima[..., 4:] = middle & 63, (high >> 4) | (middle >> 6 << 4)


def _stored_scale_codes(packed: PackedWeight, kind: str) -> Tensor:
    """The way back: uint8 [n, B, bytes]."""
    assert packed.scales is not None and packed.supers is not None
    shape = (*packed.supers.shape[:2], -1)
    scales = packed.scales.view(shape)
    if kind == "Q6_K":
        return scales.view(torch.uint8)
    if kind == "IQ4_XS":
        codes = _within(scales, -32, 31, kind).add(32).view(torch.uint8)
        parts = (codes >> 4).unflatten(-1, (2, 4))
        upper = parts[..., 0] | parts[..., 1] << 2 | parts[..., 2] << 4 | parts[..., 3] << 6
        return torch.cat((upper, codes[..., 0::2] & 15 | codes[..., 1::2] << 4), dim=-1)
    assert packed.zeros is not None
    codes = _within(scales, 0, 63, kind).view(torch.uint8)
    minima = _within(packed.zeros.view(shape), 0, 63, kind).view(torch.uint8)
    first = (each[..., :4] | each[..., 4:] >> 4 << 6 for each in (codes, minima))
    return torch.cat((*first, codes[..., 4:] & 15 | minima[..., 4:] << 4), dim=-1)


def _within(codes: Tensor, least: int, most: int, kind: str) -> Tensor:
    """``codes``, all of which must be from ``least`` to ``most``."""
    found = int(codes.min()), int(codes.max())
    if found[0] < least or found[1] > most:
        raise QuantError(
            f"codes of scales from {found[0]} to {found[1]}, of which {kind} has those from "
            f"{least} to {most}; quantize the original model for GGUF"
        )
    return codes
