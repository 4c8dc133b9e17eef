"""Quantization schemes: ``Scheme`` describes how one weight matrix is stored.

A scheme is an immutable value: it computes sizes and names and holds no data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

from .codebooks import CODEBOOKS
from .errors import QuantError

GROUP_SIZES = (32, 64, 128)
ZEROS = ("none", "int", "float")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEME_TEXTS = (
    "int4-g32|g64|g128|row, int8, int8-g32|g64|g128, each also with -zint or -zfloat; nf4, fp4, "
    "nf4-g32|g128; another type of scales than usual by -sfloat32, -sbfloat16 or -sfloat16"
)

_TEXT = re.compile(
    r"(?P<kind>int4|int8|nf4|fp4)(-(?P<group>g32|g64|g128|row))?"
    r"(-z(?P<zeros>int|float))?(-s(?P<scales>float32|bfloat16|float16))?"
)
# Groups where the text names none: None is one group per output row.
_USUAL_GROUP = {"int8": None, "nf4": 64, "fp4": 64}


@dataclass(frozen=True)
class Scheme:
    """Bits, groups and zeros of one stored matrix.

    bits: 4 or 8 for codes, 16 or 32 when ``codebook`` names a float type.
    group_size: inputs that share a scale; None is one group per output row.
    zeros: "none" (symmetric), "int" (a zero point among the codes) or "float" (a minimum).
    codebook: None for integers; "nf4" or "fp4" for codes that name one of 16 numbers; else the
        float type in which the numbers are stored unquantized.
    scales: float type of the scales (and of "float" zeros). The file's type is kept, since a scale
        within the range of bfloat16 or float32 may overflow float16.

    Raises QuantError for a combination without a layout.
    """

    bits: int
    group_size: int | None = None
    zeros: str = "none"
    codebook: str | None = None
    scales: str = "float16"

    def __post_init__(self) -> None:
        if self.codebook in FLOATS:
            bits = FLOATS[self.codebook].itemsize * 8
            rest = (self.bits, self.group_size, self.zeros, self.scales)
            valid = rest == (bits, None, "none", "float16")
        else:
            groups = GROUP_SIZES if self.codebook else (None, *GROUP_SIZES)
            valid = self.group_size in groups and self.zeros in ZEROS and self.scales in FLOATS
            if self.codebook:
                valid &= self.codebook in CODEBOOKS and self.bits == 4 and self.zeros == "none"
            else:
                valid &= self.bits in (4, 8)
        if not valid:
            raise QuantError(
                f"no layout for bits={self.bits}, group_size={self.group_size}, "
                f"zeros={self.zeros!r}, codebook={self.codebook!r}, scales={self.scales!r}; known: "
                f"{SCHEME_TEXTS}, {', '.join(FLOATS)}"
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme that ``text`` names, e.g. "int4-g64-zfloat" or "float32"; else QuantError."""
        return _parsed(text)

    @classmethod
    def _parse(cls, text: str) -> Scheme:
        if text in FLOATS:
            return cls.floating(FLOATS[text])
        match = _TEXT.fullmatch(text)
        if match is not None:
            kind, named, zeros = match["kind"], match["group"], match["zeros"] or "none"
            group = int(named[1:]) if named and named != "row" else None
            if named is None:
                group = _USUAL_GROUP.get(kind)
            codebook = kind if kind in CODEBOOKS else None
            scales = match["scales"] or _usual_scales(codebook)
            scheme = cls(8 if kind == "int8" else 4, group, zeros, codebook, scales)
            if str(scheme) == text:  # "int4" alone is a recipe, and no scheme has two names
                return scheme
        raise QuantError(f"unknown scheme {text!r}; allowed: {SCHEME_TEXTS}")

    @classmethod
    def floating(cls, dtype: torch.dtype) -> Scheme:
        """The scheme that keeps numbers of ``dtype`` unchanged."""
        name = str(dtype).removeprefix("torch.")
        if name not in FLOATS:
            raise QuantError(f"cannot store weights as {name}; allowed: {', '.join(FLOATS)}")
        return cls(dtype.itemsize * 8, codebook=name)

    def __str__(self) -> str:
        if self.is_float:
            return str(self.codebook)
        kind = self.codebook or f"int{self.bits}"
        group = f"-g{self.group_size}" if self.group_size else "-row"
        if kind in _USUAL_GROUP and _USUAL_GROUP[kind] == self.group_size:
            group = ""
        zeros = f"-z{self.zeros}" if self.zeros != "none" else ""
        usual = self.scales == _usual_scales(self.codebook)
        return f"{kind}{group}{zeros}" + ("" if usual else f"-s{self.scales}")

    @property
    def is_float(self) -> bool:
        """True if the numbers themselves are stored, without codes and scales."""
        return self.codebook in FLOATS

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the stored ``qweight``."""
        if self.codebook in FLOATS:
            return FLOATS[self.codebook]
        return torch.uint8 if self.bits == 4 else torch.int8

    @property
    def scale_dtype(self) -> torch.dtype:
        """Element type of the scales."""
        return FLOATS[self.scales]

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest integer code."""
        return (0, 15) if self.bits == 4 else (-128, 127)

    def groups(self, inputs: int) -> int:
        """Number of groups in a row of ``inputs`` weights."""
        return inputs // self.group_size if self.group_size else 1

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise QuantError unless a matrix of ``shape`` [N, K] can be stored in this scheme."""
        if len(shape) != 2 or min(shape) < 1:
            raise QuantError(f"{self} stores matrices [outputs, inputs], got shape {list(shape)}")
        if self.bits == 4 and shape[1] % 2:
            raise QuantError(f"{self} needs rows of even length, got shape {list(shape)}; use int8")
        if self.group_size and shape[1] % self.group_size:
            fitting = [str(g) for g in GROUP_SIZES if shape[1] % g == 0]
            remedy = f"use group size {' or '.join(fitting)}" if fitting else "use int8"
            raise QuantError(
                f"{self} needs a row length divisible by {self.group_size}, "
                f"got shape {list(shape)}; {remedy} for this tensor"
            )

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a matrix of ``shape`` [N, K] as packed, scales and zeros included."""
        self.check(shape)
        outputs, inputs = shape
        stored = outputs * inputs * self.bits // 8
        if self.is_float:
            return stored
        scale = self.scale_dtype.itemsize
        per_group = scale + {"none": 0, "int": 1, "float": scale}[self.zeros]
        return stored + outputs * self.groups(inputs) * per_group


def _usual_scales(codebook: str | None) -> str:
    # bitsandbytes keeps nf4's scales in float32, so its files use exactly this scheme.
    return "float32" if codebook else "float16"


@lru_cache(maxsize=256)
def _parsed(text: str) -> Scheme:
    """Planners ask for the same few schemes once for each matrix and candidate."""
    return Scheme._parse(text)
