"""How a weight matrix is stored: `Scheme` for one matrix.

A scheme is a value: it knows sizes and texts, never data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from .errors import QuantError

GROUP_SIZES = (32, 64, 128)
ZEROS = ("none", "int", "float")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEME_TEXTS = "int4-g32|g64|g128, int8, int8-g32|g64|g128, each also with -zint or -zfloat"

_TEXT = re.compile(r"int(?P<bits>[48])(-g(?P<group>32|64|128))?(-z(?P<zeros>int|float))?")


@dataclass(frozen=True)
class Scheme:
    """Bits, groups and zeros of one stored matrix.

    bits: 4 or 8 for integer codes, 16 or 32 when `codebook` names a float type.
    group_size: inputs that share a scale; None is one group per output row.
    zeros: "none" (symmetric), "int" (a zero point among the codes) or "float" (a minimum).
    codebook: None for integers, else the float type whose numbers are stored as they are.

    Raises QuantError for a combination that no layout exists for.
    """

    bits: int
    group_size: int | None = None
    zeros: str = "none"
    codebook: str | None = None

    def __post_init__(self) -> None:
        if self.codebook is not None:
            bits = FLOATS[self.codebook].itemsize * 8 if self.codebook in FLOATS else None
            valid = (self.bits, self.group_size, self.zeros) == (bits, None, "none")
        else:
            groups = GROUP_SIZES if self.bits == 4 else (None, *GROUP_SIZES)
            valid = self.bits in (4, 8) and self.group_size in groups and self.zeros in ZEROS
        if not valid:
            raise QuantError(
                f"no layout for bits={self.bits}, group_size={self.group_size}, "
                f"zeros={self.zeros!r}, codebook={self.codebook!r}; known: {SCHEME_TEXTS}, "
                f"{', '.join(FLOATS)}"
            )

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """The scheme that `text` names, e.g. "int4-g64-zfloat" or "float32"; else QuantError."""
        if text in FLOATS:
            return cls.floating(FLOATS[text])
        match = _TEXT.fullmatch(text)
        if match is None or (match["bits"] == "4" and match["group"] is None):
            raise QuantError(f"unknown scheme {text!r}; allowed: {SCHEME_TEXTS}")
        group = int(match["group"]) if match["group"] else None
        return cls(int(match["bits"]), group, match["zeros"] or "none")

    @classmethod
    def floating(cls, dtype: torch.dtype) -> Scheme:
        """The scheme that keeps numbers of `dtype` unchanged."""
        name = str(dtype).removeprefix("torch.")
        if name not in FLOATS:
            raise QuantError(f"cannot store weights as {name}; allowed: {', '.join(FLOATS)}")
        return cls(dtype.itemsize * 8, codebook=name)

    def __str__(self) -> str:
        if self.codebook is not None:
            return self.codebook
        group = f"-g{self.group_size}" if self.group_size else ""
        return f"int{self.bits}{group}" + (f"-z{self.zeros}" if self.zeros != "none" else "")

    @property
    def is_float(self) -> bool:
        return self.codebook is not None

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the stored `qweight`."""
        if self.codebook is not None:
            return FLOATS[self.codebook]
        return torch.uint8 if self.bits == 4 else torch.int8

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest integer code."""
        return (0, 15) if self.bits == 4 else (-128, 127)

    def groups(self, inputs: int) -> int:
        """Number of groups in a row of `inputs` weights."""
        return inputs // self.group_size if self.group_size else 1

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise QuantError unless a matrix of `shape` [N, K] can be stored in this scheme."""
        if len(shape) != 2 or min(shape) < 1:
            raise QuantError(f"{self} stores matrices [outputs, inputs], got shape {list(shape)}")
        if self.group_size and shape[1] % self.group_size:
            fitting = [str(g) for g in GROUP_SIZES if shape[1] % g == 0]
            remedy = f"use group size {' or '.join(fitting)}" if fitting else "use int8"
            raise QuantError(
                f"{self} needs a row length divisible by {self.group_size}, "
                f"got shape {list(shape)}; {remedy} for this tensor"
            )

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a matrix of `shape` [N, K] as packed, scales and zeros included."""
        self.check(shape)
        outputs, inputs = shape
        stored = outputs * inputs * self.bits // 8
        if self.is_float:
            return stored
        per_group = 2 + {"none": 0, "int": 1, "float": 2}[self.zeros]
        return stored + outputs * self.groups(inputs) * per_group
