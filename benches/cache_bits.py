"""Divergence that keys and values of fewer bits cost: 8 and 4, plain and rotated.

    python benches/cache_bits.py [WORD ...]    writes results/cache_bits.json

Weights are float32; attention is the reference's over a float32 cache whose entries are rounded as
they are written. 4 bits have a float16 scale and minimum for each 32 numbers. "rotated" multiplies
each head by a Hadamard matrix before the rounding and back behind it, which spreads outliers; keys
and queries rotated alike have the same products (Ashkboos et al. 2024, QuaRot). The nano models
were trained on 1024 tokens; the real model (``real_weights.py``) is measured at 2048 and 8192.
Rows that results/cache_bits.json holds are not run again. WORDs pick rows by model or format.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accuracy import NANO
from backends import ASSETS
from provenance import announce
from real_weights import real_folder
from results_file import complete
from scipy.linalg import hadamard
from torch import Tensor

import edgelm
from edgelm.models.model_files import ModelFiles
from edgelm.ops.cache import LayerStore

REAL, GROUP, TOKENS = "real", 32, 20480
WINDOWS = {REAL: (2048, 8192)}
NANO_WINDOWS = (1024,)


def int8(numbers: Tensor) -> Tensor:
    """One scale for a head's numbers, as the package's int8 caches have it."""
    scale = (numbers.abs().amax(-1, keepdim=True) / 127).half().float().clamp(min=1e-30)
    return (numbers / scale).round().clamp(-127, 127) * scale


def int4(numbers: Tensor) -> Tensor:
    """A scale and a minimum for each ``GROUP`` numbers of a head."""
    groups = numbers.unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale, low = ((high - low) / 15).half().float().clamp(min=1e-30), low.half().float()
    return (((groups - low) / scale).round().clamp(0, 15) * scale + low).flatten(-2)


@cache
def rotation(size: int) -> Tensor:
    """An orthogonal matrix [size, size]: blocks of the largest power of two that divides it."""
    block = size & -size
    own = torch.tensor(hadamard(block), dtype=torch.float32) / block**0.5
    return torch.block_diag(*[own] * (size // block))


def rotated(rounded: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``rounded`` in the basis of ``rotation``."""

    def both(numbers: Tensor) -> Tensor:
        turn = rotation(numbers.shape[-1])
        return rounded(numbers @ turn) @ turn.T

    return both


Round = Callable[[Tensor], Tensor]
FORMATS: dict[str, tuple[Round, Round]] = {
    "int8": (int8, int8),
    "4 bits": (int4, int4),
    "4 bits, rotated": (rotated(int4), rotated(int4)),
    "keys int8, values 4 bits": (int8, int4),
}
"""How keys and values are rounded."""


def main(words: list[str]) -> int:
    keys = [
        (model, str(window), name)
        for model in (*NANO, REAL)
        for window in WINDOWS.get(model, NANO_WINDOWS)
        for name in FORMATS
    ]
    chosen = (key for key in keys if all(any(word in part for part in key) for word in words))
    with tempfile.TemporaryDirectory() as scratch:
        return complete(
            "cache_bits", chosen, ("model", "window", "format"),
            lambda *key: measured(*key, Path(scratch)),
        )  # fmt: skip


def measured(model: str, window: str, name: str, scratch: Path) -> dict[str, Any]:
    """One row, over as many whole windows as ``TOKENS`` hold."""
    files = ModelFiles.open(real_folder() if model == REAL else ASSETS / "nano" / model)
    text = ASSETS / ("text/wiki.test.raw" if model == REAL else "nano/heldout.txt")
    kept = scratch / f"{model}-{window}.baseline"
    common: dict[str, Any] = {
        "text": text, "window": int(window), "limit": TOKENS // int(window),
        "quant": "none", "dtype": "float32", "kv": "float32", "backend": "reference",
    }  # fmt: skip
    if not kept.exists():
        edgelm.evaluate(files, baseline=kept, **common)
    with patch.object(LayerStore, "write", rounding(FORMATS[name])):
        found = edgelm.evaluate(files, baseline=kept, **common).to_dict()
    row = {"model": model, "window": window, "format": name}
    row |= {key: found[key] for key in ("kld_mean", "kld_stderr", "kld_p99", "tokens")}
    print(f"{model} {window} {name}: KLD {row['kld_mean']:.6f}", file=sys.stderr)
    return row


def rounding(rounds: tuple[Round, Round]) -> Callable[..., None]:
    """``LayerStore.write`` of keys and values that are rounded first."""
    plain = LayerStore.write

    def write(self: LayerStore, index: int, slots: Tensor, new: tuple[Tensor, Tensor]) -> None:
        keys, values = (own(numbers) for own, numbers in zip(rounds, new, strict=True))
        plain(self, index, slots, (keys, values))

    return write


if __name__ == "__main__":
    announce()
    raise SystemExit(main(sys.argv[1:]))
