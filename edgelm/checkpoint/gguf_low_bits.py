"""Q2_K and Q3_K, value for value in schemes of four bits, as none of ours has fewer.

Codes and codes of scales are those of the file. Layouts follow ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.packing import PackedWeight, pack_codes
from quant.scheme import Scheme

SCHEMES = {
    "Q2_K": Scheme.parse("int4-g16-zfloat-coded"),
    "Q3_K": Scheme.parse("int4-g16-coded"),
}
NBYTES = {"Q2_K": 84, "Q3_K": 110}  # of a block of 256
_PAIRS = torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
_BITS = torch.arange(8, dtype=torch.uint8).view(8, 1)


def take_apart(raw: Tensor, kind: str, packed: PackedWeight) -> None:
    """Unpack blocks of a type in SCHEMES (uint8 [n, bytes]) into the rows of ``packed``.

    A byte of codes has two bits of each of 4 groups of 32, in either half of a block.
    Q2_K: 16 bytes with a scale's code low and a minimum's high, 64 bytes of codes, two float16.
    Q3_K: 32 bytes with a third bit of each of 8 groups, 64 bytes of codes, the codes of scales in
    8 bytes of nibbles and 4 of upper bits, a float16.
    """
    assert packed.scales is not None and packed.supers is not None
    blocks = raw.view(len(raw), -1, NBYTES[kind])
    floats = raw.view(torch.float16).view(len(raw), -1, NBYTES[kind] // 2)
    scales = packed.scales.view(*blocks.shape[:2], 16)
    start = 16 if kind == "Q2_K" else 32
    codes = blocks[..., start : start + 64].unflatten(-1, (2, 1, 32)) >> _PAIRS & 3
    if kind == "Q2_K":
        assert packed.zeros is not None
        packed.supers[..., 0] = floats[..., 40]
        torch.neg(floats[..., 41], out=packed.supers[..., 1])  # a minimum is subtracted
        scales.copy_(blocks[..., :16] & 15)
        packed.zeros.view(scales.shape).copy_(blocks[..., :16] >> 4)
    else:
        packed.supers[..., 0] = floats[..., 54]
        third = blocks[..., None, :32] >> _BITS & 1
        codes |= (third << 2).view(codes.shape)
        codes += 4  # from -4 in the file, from -8 here
        nibbles, upper = blocks[..., None, 96:104], blocks[..., None, 104:108]
        low = torch.cat((nibbles & 15, nibbles >> 4), dim=-2).flatten(2)
        scales.copy_(low | (upper >> _PAIRS & 3).flatten(2) << 4).sub_(32)
    packed.qweight.copy_(pack_codes(codes.reshape(packed.shape), packed.scheme))
