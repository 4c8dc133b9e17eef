"""Canonical names of weights, the same for every family: read in one place."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from edgelm.budget.parts import PartName


class WeightName(NamedTuple):
    """``layers.3.attn.q`` is layer 3, kind ``attn``; ``embed`` is of no layer, kind ``embed``."""

    layer: int | None
    kind: str

    @classmethod
    def parse(cls, name: str) -> WeightName:
        """Read a canonical name, of a matrix, a norm or the modules that hold them."""
        return _parsed(name)

    @property
    def file_group(self) -> str:
        """The name of what shares a file in the cache folder: ``layers.3``, ``embed``, ``head``."""
        return self.kind if self.layer is None else layer_group(self.layer)

    @property
    def part(self) -> PartName:
        """The plan part that holds such a matrix."""
        return PartName(f"weights.{self.kind}")


def layer_group(layer: int) -> str:
    """``file_group`` of every matrix of a layer."""
    return f"layers.{layer}"


@lru_cache(maxsize=4096)
def _parsed(name: str) -> WeightName:
    first, *rest = name.split(".")
    if first == "layers":
        return WeightName(int(rest[0]), rest[1])
    return WeightName(None, first)
