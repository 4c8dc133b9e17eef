"""The GGUF type that holds a scheme exactly, if there is one for the matrix's rows.

A scheme of ``gguf_blocks.SCHEMES`` is its type. Three more are held by a type with more numbers:

| scheme | type | its other numbers |
|---|---|---|
| int6-g32-coded | Q6_K | the code of a scale twice, for both halves of the group |
| int5-g32-coded | Q5_K | the minimum is 16 steps below zero: the scale's code, 16 super-scales |
| int4-g32-coded | Q4_K | the same, 8 steps |
"""

from __future__ import annotations

import torch

from edgelm.checkpoint.gguf_blocks import LAYOUTS, SCHEMES
from quant.errors import QuantError
from quant.packing import PackedWeight
from quant.scheme import SUPER_GROUP, Scheme

KINDS = {scheme: kind for kind, scheme in SCHEMES.items()} | {
    Scheme.parse("int6-g32-coded"): "Q6_K",
    Scheme.parse("int5-g32-coded"): "Q5_K",
    Scheme.parse("int4-g32-coded"): "Q4_K",
}
# For rows that 256 does not divide: types of blocks of 32, as accurate and not much larger.
_INSTEAD = {
    "Q4_K": "int4-g32-zfloat or int5-g32",
    "Q5_K": "int5-g32-zfloat",
    "Q6_K": "int8-g32",
    "IQ4_XS": "iq4-g32",
}


def kind_for(scheme: Scheme, shape: tuple[int, ...]) -> str:
    """The type that holds every number of a matrix of ``shape`` [N, K] in ``scheme``.

    Raises QuantError, with what to use instead, if GGUF has none.
    """
    kind = KINDS.get(scheme)
    if kind is None:
        raise QuantError(
            f"{scheme} has no GGUF block type; allowed: {', '.join(map(str, KINDS))}, none"
        )
    inputs = shape[-1]
    if inputs % LAYOUTS[kind].weights:
        instead = "none" if inputs % 32 else f"{_INSTEAD[kind]}, whose blocks are smaller,"
        raise QuantError(
            f"{scheme} in GGUF ({kind}) needs a row length divisible by {SUPER_GROUP}, got shape "
            f"{list(shape)}; use {instead} for this tensor"
        )
    return kind


def in_scheme_of(kind: str, packed: PackedWeight) -> PackedWeight:
    """Rows whose scheme is held by ``kind``, with the same numbers in that type's own scheme.

    Raises QuantError for a super-scale whose multiple float16 does not hold.
    """
    if packed.scheme == SCHEMES[kind]:
        return packed
    assert packed.scales is not None and packed.supers is not None
    scales, zeros, supers = packed.scales, None, packed.supers
    if kind == "Q6_K":
        scales = scales.repeat_interleave(2, dim=1)
    else:
        zeros = scales
        supers = torch.cat((supers, supers * -packed.scheme.middle), dim=-1)
        if not bool(torch.isfinite(supers).all()):
            raise QuantError(
                f"a super-scale times {packed.scheme.middle} is beyond float16, which {kind} "
                f"needs; use {SCHEMES[kind]} for this tensor"
            )
    return PackedWeight(SCHEMES[kind], packed.shape, packed.qweight, scales, zeros, supers)
