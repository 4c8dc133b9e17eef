"""The layout of a folder's packed weights, and what its config.json tells transformers of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from edgelm.checkpoint import bitsandbytes_layout, canonical_layout, packed_layout
from edgelm.checkpoint.packed_layout import Spec
from quant import PackedWeight, Scheme

if TYPE_CHECKING:
    from edgelm.quantization.conversion import Target


class Layout(Protocol):
    """Stored forms of packed matrices: what the modules in ``LAYOUTS`` have in common."""

    def specs(self, scheme: Scheme, shape: tuple[int, int]) -> dict[str, Spec]: ...

    def constants(self, scheme: Scheme, shape: tuple[int, int]) -> dict[str, Tensor]: ...

    def first_row(self, suffix: str, scheme: Scheme, inputs: int, start: int) -> int: ...

    def to_stored(self, packed: PackedWeight) -> dict[str, Tensor]: ...


LAYOUTS: dict[str, Layout] = {
    packed_layout.METHOD: packed_layout,
    bitsandbytes_layout.METHOD: bitsandbytes_layout,
    canonical_layout.METHOD: canonical_layout,
}
"""By the ``quant_method`` that config.json names."""


@dataclass(frozen=True)
class FolderLayout:
    """``config``: keys of config.json. ``peer_note``: why transformers cannot load the folder,
    empty if it can. ``method``: a key of LAYOUTS."""

    method: str
    config: dict[str, Any]
    peer_note: str = ""

    @property
    def format_version(self) -> int:
        """That of the manifest: the lowest that can read the folder."""
        return 2 if self.method == canonical_layout.METHOD else 1


def choose_layout(targets: Sequence[Target], tied_head: str) -> FolderLayout:
    """The layout that most programs read: another tool's if it expresses every matrix and
    transformers loads what it then finds, else our own.

    transformers 5.24 with compressed-tensors 0.20 loads in two ways. With "dequantize" it reads
    every matrix by the first group, so there may be only one; without, it reads mixed groups, but
    only symmetric ones of linear layers.

    tied_head: name of a head that is the embedding, empty if it is a matrix of its own.
    """
    packed = [(target, target.scheme) for target in targets if target.scheme is not None]
    if not packed:
        return FolderLayout(packed_layout.METHOD, {})
    floats = [_module(target) for target in targets if target.parts and target.scheme is None]
    ignored = [*floats, tied_head] if tied_head else floats
    schemes = list(dict.fromkeys(scheme for _, scheme in packed))
    tables = any("embed" in target.parts for target, _ in packed)
    if len(schemes) == 1 and not tables and bitsandbytes_layout.holds(schemes[0]):
        settings = bitsandbytes_layout.settings(schemes[0], packed[0][0].dtype, ignored)
        return FolderLayout(bitsandbytes_layout.METHOD, {"quantization_config": settings})
    simple = not tables and all(scheme.zeros == "none" for scheme in schemes)
    foreign = [str(scheme) for scheme in schemes if not packed_layout.holds(scheme)]
    if foreign or not (simple or len(schemes) == 1):
        config = {
            "quantization_config": {"quant_method": canonical_layout.METHOD},
            "transformers_weights": canonical_layout.REFUSAL,
        }
        return FolderLayout(canonical_layout.METHOD, config, _peer_note(schemes, foreign))
    groups: dict[Scheme, list[str]] = {}
    for target, scheme in packed:
        groups.setdefault(scheme, []).append(_module(target))
    settings = {
        "quant_method": packed_layout.METHOD,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": _group(scheme, names)
            for number, (scheme, names) in enumerate(groups.items())
        },
        "ignore": ignored,
        "dequantize": not simple,
    }
    return FolderLayout(packed_layout.METHOD, {"quantization_config": settings})


def _peer_note(schemes: Sequence[Scheme], foreign: Sequence[str]) -> str:
    why = f"compressed-tensors cannot express {', '.join(foreign)}"
    advice = "int4-g32 or int8 for all matrices loads in both"
    if any(bitsandbytes_layout.holds(scheme) for scheme in schemes):
        advice = "nf4 with the embedding in floats loads in both, by bitsandbytes"
    if not foreign:
        named = ", ".join(map(str, schemes))
        why = f"with a quantized embedding or zero points transformers loads no mix ({named})"
    return f"transformers cannot load it: {why}; {advice}"


def _module(target: Target) -> str:
    return target.name.removesuffix(".weight")


def _group(scheme: Scheme, names: list[str]) -> dict[str, Any]:
    return {
        "targets": names,
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.zeros == "none",
            "strategy": "group" if scheme.group_size else "channel",
            "group_size": scheme.group_size,
            "dynamic": False,
        },
    }
