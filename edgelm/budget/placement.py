"""Placement: which layers stay in memory, and which are read from disk in every step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from edgelm.budget.parts import Part, PartName
from edgelm.errors import UsageError

if TYPE_CHECKING:
    from edgelm.budget.plan import MatrixPlan, Plan

OFFLOADS = ("none", "cpu", "disk")
ALIGNMENT = 64  # bytes: where tensors begin in a buffer, as torch's own memory does
BUFFERS = 2  # one layer is computed while the other is read
Placement = tuple[str, ...]
"""``disk`` or a device for each layer."""
_TENSORS = 3  # maximum number of tensors of a matrix in any kernel's layout


def place(
    offload: str, layers: int, budget_bytes: int, peak_bytes: Callable[[Placement], int]
) -> Placement:
    """``cpu`` or ``disk`` for each layer: as few on disk as the budget asks for.

    Args:
        peak_bytes: what the whole process takes with the layers placed so.

    Returns:
        All on the disk where not even that fits.
    """

    def fits(count: int) -> bool:
        return peak_bytes(_spread(count, layers)) <= budget_bytes

    if offload == "none" or fits(0):
        return _spread(0, layers)
    # From one on, each more takes less: the buffers are there already.
    count = 1 + bisect_left(range(1, layers + 1), True, key=fits)
    return _spread(min(count, layers), layers)


def check_offload(offload: str, device: str) -> None:
    """Raise UsageError unless layers of a model on ``device`` can go there."""
    allowed = [own for own in OFFLOADS if own != ("cpu" if device == "cpu" else "disk")]
    if offload in allowed:
        return
    why = ""
    if offload == "cpu":
        why = " (the model is on the CPU already)"
    elif offload == "disk":
        why = f" (layers are streamed to the CPU only, and the device is {device})"
    raise UsageError(
        f"offload {offload!r} is not possible here; allowed: {', '.join(allowed)}{why}."
    )


def _spread(count: int, layers: int) -> Placement:
    """``count`` streamed layers far apart: the resident ones between them are time to read."""
    return tuple(
        "disk" if (index + 1) * count // layers > index * count // layers else "cpu"
        for index in range(layers)
    )


def placed_parts(
    parts: Sequence[Part], products: Sequence[MatrixPlan], placement: Placement
) -> list[Part]:  # fmt: skip
    """``parts`` with streamed weights counted as the disk's, and the buffers they are read into."""
    streamed = [product for product in products if is_streamed(product, placement)]
    if not streamed:
        return list(parts)
    left = {part.name: part.bytes for part in parts}
    for product in streamed:
        left[product.name.part] -= product.nbytes
    found = [Part(name, nbytes) for name, nbytes in left.items() if nbytes]
    found.append(Part(PartName.STREAMED, sum(p.nbytes for p in streamed), "disk"))
    found.append(Part(PartName.STREAM_BUFFERS, BUFFERS * buffer_bytes(streamed)))
    return found


def is_streamed(product: MatrixPlan, placement: Placement) -> bool:
    """True if a matrix belongs to a layer that is read from disk in every step."""
    layer = product.name.layer
    return layer is not None and placement[layer] == "disk"


def streamed_layers(plan: Plan) -> list[int]:
    """The layers that the plan leaves on disk, in the order of the forward."""
    return [index for index, place in enumerate(plan.placement) if place == "disk"]


def host_layers(plan: Plan) -> int:
    """Number of first layers that stay on the CPU beside an accelerator."""
    return 0 if plan.device == "cpu" else plan.placement.count("cpu")


def file_groups(products: Iterable[MatrixPlan]) -> dict[str, list[MatrixPlan]]:
    """Matrices that share a file in the cache: a layer's (``layers.3``), ``embed``, ``head``."""
    groups: dict[str, list[MatrixPlan]] = {}
    for product in products:
        groups.setdefault(product.name.file_group, []).append(product)
    return groups


def buffer_bytes(products: Sequence[MatrixPlan]) -> int:
    """Bytes that hold any one layer of ``products``, its tensors aligned."""
    sizes: dict[int | None, int] = {}
    for product in products:
        room = aligned(product.nbytes) + _TENSORS * ALIGNMENT
        layer = product.name.layer
        sizes[layer] = sizes.get(layer, 0) + room
    return max(sizes.values())


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to where the next tensor may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
