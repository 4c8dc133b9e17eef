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
from .names import GGUF_NAMES, SCHEME_TEXTS

GROUP_SIZES = (16, 32, 64, 128)
SUPER_GROUP = 256  # inputs that share a super-scale
MOST_WEIGHTS = 1 << 48  # of a matrix: sizes in files are claims, and those of tensors have 64 bits
ZEROS = ("none", "int", "float")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TEXT = re.compile(
    r"(?P<kind>int4|int5|int6|int8|nf4|fp4|iq4)(-(?P<group>g16|g32|g64|g128|row))?"
    r"(-z(?P<zeros>int|float))?(?P<coded>-coded)?(-s(?P<scales>float32|bfloat16|float16))?"
)
# Groups where the text names none: None is one group per output row.
_USUAL_GROUP = {"int8": None, "nf4": 64, "fp4": 64}


@dataclass(frozen=True)
class Scheme:
    """Bits, groups and zeros of one stored matrix.

    bits: 4, 5, 6 or 8 for codes, 16 or 32 when ``codebook`` names a float type.
    group_size: inputs that share a scale; None is one group per output row.
    zeros: "none" (symmetric), "int" (a zero point among the codes) or "float" (a minimum).
    codebook: None for integers; "nf4", "fp4" or "iq4" for codes that name one of 16 numbers; else
        the float type in which the numbers are stored unquantized.
    scales: float type of the scales (and of "float" zeros). The file's type is kept, since a scale
        within the range of bfloat16 or float32 may overflow float16.
    coded: the scale of a group (and its "float" zero) is a signed byte times a super-scale of type
        ``scales``, one per 256 inputs, or one per row where 256 does not divide it.

    Raises QuantError for a combination without a layout.
    """

    bits: int
    group_size: int | None = None
    zeros: str = "none"
    codebook: str | None = None
    scales: str = "float16"
    coded: bool = False

    def __post_init__(self) -> None:
        if self.codebook in FLOATS:
            bits = FLOATS[self.codebook].itemsize * 8
            rest = (self.bits, self.group_size, self.zeros, self.scales, self.coded)
            valid = rest == (bits, None, "none", "float16", False)
        else:
            groups = GROUP_SIZES if self.codebook or self.coded else (None, *GROUP_SIZES)
            valid = self.group_size in groups and self.zeros in ZEROS and self.scales in FLOATS
            if self.codebook:
                valid &= self.codebook in CODEBOOKS and self.bits == 4 and self.zeros == "none"
            else:
                valid &= self.bits in (4, 5, 6, 8)
        if not valid:
            raise QuantError(
                f"no layout for bits={self.bits}, group_size={self.group_size}, "
                f"zeros={self.zeros!r}, codebook={self.codebook!r}, scales={self.scales!r}, "
                f"coded={self.coded}; known: {SCHEME_TEXTS}, {', '.join(FLOATS)}"
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme that ``text`` names, e.g. "int4-g64-zfloat", "q4_k" or "float32".

        Raises QuantError for other texts.
        """
        return _parsed(text)

    @classmethod
    def _parse(cls, text: str) -> Scheme:
        if text in FLOATS:
            return cls.floating(FLOATS[text])
        text = GGUF_NAMES.get(text, text)
        match = _TEXT.fullmatch(text)
        if match is not None:
            kind, named, zeros = match["kind"], match["group"], match["zeros"] or "none"
            group = int(named[1:]) if named and named != "row" else None
            if named is None:
                group = _USUAL_GROUP.get(kind)
            codebook = kind if kind in CODEBOOKS else None
            scales = match["scales"] or _usual_scales(codebook)
            bits = 4 if codebook else int(kind[-1])
            scheme = cls(bits, group, zeros, codebook, scales, bool(match["coded"]))
            if str(scheme) == text:  # "int4" alone is a recipe, and each has one name of ours
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
        coded = "-coded" if self.coded else ""
        usual = self.scales == _usual_scales(self.codebook)
        return f"{kind}{group}{zeros}{coded}" + ("" if usual else f"-s{self.scales}")

    @property
    def is_float(self) -> bool:
        """True if the numbers themselves are stored, without codes and scales."""
        return self.codebook in FLOATS

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the stored ``qweight``."""
        if self.codebook in FLOATS:
            return FLOATS[self.codebook]
        return torch.int8 if self.bits == 8 else torch.uint8

    @property
    def scale_dtype(self) -> torch.dtype:
        """Element type of the scales where they are not coded, else of the super-scales."""
        return FLOATS[self.scales]

    @property
    def stored_scale_dtype(self) -> torch.dtype:
        """Element type of the stored ``scales``, and of ``zeros`` where these are floats."""
        return torch.int8 if self.coded else self.scale_dtype

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest integer code."""
        return (-128, 127) if self.bits == 8 else (0, 2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The integer code of weight zero, where no zeros are stored."""
        return 0 if self.bits == 8 else 2 ** (self.bits - 1)

    @property
    def scale_codes(self) -> tuple[int, int]:
        """Smallest and largest code of a scale that quantizing writes; files may hold any byte.

        As many as GGUF's types have, so that what is quantized here can be written as one of them:
        IQ4_XS has 6 bits with a sign, Q6_K a signed byte, Q4_K and Q5_K 6 bits without a sign.
        """
        if self.codebook:
            return (-32, 31)
        return (-127, 127) if self.zeros != "float" and self.bits in (6, 8) else (0, 63)

    def groups(self, inputs: int) -> int:
        """Number of groups in a row of ``inputs`` weights."""
        return inputs // self.group_size if self.group_size else 1

    def super_groups(self, inputs: int) -> int:
        """Number of super-scales of a row of ``inputs`` weights; 0 where scales are not coded."""
        if not self.coded:
            return 0
        return inputs // SUPER_GROUP if inputs % SUPER_GROUP == 0 else 1

    @property
    def super_parts(self) -> int:
        """Numbers of a super-scale: one of scales, and one of minima where there are any."""
        return 2 if self.zeros == "float" else 1

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise QuantError unless a matrix of ``shape`` [N, K] can be stored in this scheme."""
        if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] > MOST_WEIGHTS:
            raise QuantError(
                f"{self} stores matrices [outputs, inputs] of 1 to 2^48 weights, "
                f"got shape {list(shape)}"
            )
        multiple = {4: 2, 5: 8, 6: 4}.get(self.bits, 1)
        if shape[1] % multiple:
            raise QuantError(
                f"{self} needs a row length divisible by {multiple}, got shape {list(shape)}; "
                "use int8 for this tensor"
            )
        if self.group_size and shape[1] % self.group_size:
            fitting = [str(g) for g in GROUP_SIZES[1:] if shape[1] % g == 0]
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
        scale = self.stored_scale_dtype.itemsize
        per_group = scale + {"none": 0, "int": 1, "float": scale}[self.zeros]
        supers = self.super_groups(inputs) * self.super_parts * self.scale_dtype.itemsize
        return stored + outputs * (self.groups(inputs) * per_group + supers)


def _usual_scales(codebook: str | None) -> str:
    # bitsandbytes keeps nf4's scales in float32, so its files use exactly this scheme.
    return "float32" if codebook in ("nf4", "fp4") else "float16"


@lru_cache(maxsize=256)
def _parsed(text: str) -> Scheme:
    """Planners ask for the same few schemes once for each matrix and candidate."""
    return Scheme._parse(text)
