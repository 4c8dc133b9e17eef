"""The Ledger: hands out lasting memory by plan part, and no byte more than planned."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from edgelm.budget.parts import Part, PartName, Share, Where
from edgelm.budget.plan import Plan
from edgelm.budget.units import human
from edgelm.errors import BudgetExceededError
from edgelm.machine import accelerators, hardware

T = TypeVar("T")


class Take(Protocol):
    """The Ledger's way to give a tensor: ``Ledger.empty``."""

    def __call__(
        self, part: PartName, shape: tuple[int, ...], dtype: torch.dtype,
        where: Where | None = None,
    ) -> Tensor: ...  # fmt: skip


class Ledger:
    """Hands out every lasting tensor under its plan part's name, and no byte more than planned.

    ``where`` None means the place that the plan has the part in: the device, if it is there too.
    A part that the plan does not have lies on the host.

    Args:
        parts: the plan's.
        headroom_bytes, device_headroom_bytes: what may be added to the plan while running (a second
            cache, snapshots).
        device: the plan's.
    """

    def __init__(
        self, parts: Iterable[Part], headroom_bytes: int, device_headroom_bytes: int = 0,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self._planned: Counter[Share] = Counter()
        self._taken: Counter[Share] = Counter()
        for part in parts:
            self._planned[part.share] += part.bytes
        self.headroom_bytes, self.device_headroom_bytes = headroom_bytes, device_headroom_bytes
        self._device = device

    @classmethod
    def of(cls, plan: Plan) -> Ledger:
        """The ledger of a plan, with what its budgets leave as headroom."""
        return cls(
            plan.parts,
            plan.budget_bytes - plan.predicted_peak_bytes,
            plan.device_budget_bytes - plan.predicted_device_peak_bytes,
            plan.device,
        )

    @property
    def planned(self) -> Counter[str]:
        """Bytes planned by part, over all places."""
        return _by_name(self._planned)

    @property
    def taken(self) -> Counter[str]:
        """Bytes taken by part, over all places."""
        return _by_name(self._taken)

    def device_of(self, part: str, where: Where | None = None) -> torch.device:
        """Device of a part's tensors."""
        on_device = self._share(part, where).where == "device"
        return accelerators.torch_device(self._device if on_device else "cpu")

    def empty(
        self, part: PartName, shape: tuple[int, ...], dtype: torch.dtype,
        where: Where | None = None,
    ) -> Tensor:  # fmt: skip
        """A zeroed tensor, its pages touched now: a full machine is found out before an answer."""
        self._take(self._share(part, where), torch.Size(shape).numel() * dtype.itemsize)
        return torch.empty(shape, dtype=dtype, device=self.device_of(part, where)).zero_()

    def hold(self, part: PartName, *tensors: Tensor, where: Where | None = None) -> None:
        """Account for tensors that were made elsewhere (a kernel's layout of a weight)."""
        self._take(self._share(part, where), sum(tensor.nbytes for tensor in tensors))

    def extend(self, parts: Mapping[PartName, int] | Mapping[Share, int]) -> None:
        """Add these bytes to the planned parts at run time; negative ones are given back.

        Raises:
            BudgetExceededError: the budget has no room for them, or the machine none any more.
        """
        shares = self._shares(parts)
        on_device = sum(nbytes for share, nbytes in shares.items() if share.where == "device")
        free = accelerators.free_bytes(self._device) if on_device else 0
        self._require_room(shares, on_device, min(self.device_headroom_bytes, free))
        on_host = sum(shares.values()) - on_device
        available = hardware.available_memory_bytes()
        self._require_room(shares, on_host, min(self.headroom_bytes, available))
        for share, nbytes in shares.items():
            self._spend(share, nbytes)

    @staticmethod
    def _require_room(shares: Mapping[Share, int], nbytes: int, left: int) -> None:
        room = max(0, left)
        if nbytes > room:
            names = dict.fromkeys(str(share.name) for share in shares)
            raise BudgetExceededError(
                f"{human(nbytes)} more are needed ({', '.join(names)}), and the budget or the "
                f"machine leaves {human(room)}: ask for fewer rows or a shorter context, "
                "or load with a larger budget."
            )

    def lend(self, parts: Mapping[PartName, int] | Mapping[Share, int], make: Callable[[], T]) -> T:
        """Build an object of these bytes with ``make``, after planning those that are missing.

        The bytes are given back when the object is garbage.

        Raises:
            BudgetExceededError: as ``extend``.
        """
        shares = self._shares(parts)
        before = {share: self._taken[share] for share in shares}
        missing = {
            share: max(0, before[share] + nbytes - self._planned[share])
            for share, nbytes in shares.items()
        }
        self.extend(missing)
        try:
            lent = make()
        except BaseException:
            for share, nbytes in before.items():
                self._taken[share] = nbytes
            self._give_back({}, missing)
            raise
        weakref.finalize(lent, self._give_back, shares, missing).atexit = False
        return lent

    def _give_back(self, taken: Mapping[Share, int], planned: Mapping[Share, int]) -> None:
        for share, nbytes in taken.items():
            self._taken[share] -= nbytes
        for share, nbytes in planned.items():
            self._spend(share, -nbytes)

    def _spend(self, share: Share, nbytes: int) -> None:
        """Make a part larger at the cost of what its place leaves."""
        if share.where == "device":
            self.device_headroom_bytes -= nbytes
        else:
            self.headroom_bytes -= nbytes
        self._planned[share] += nbytes

    def absorb(self, prefix: str, other: Ledger) -> None:
        """Account for everything that another ledger has handed out, as parts with a prefix."""
        for share, nbytes in other._taken.items():
            self._take(Share(prefix + share.name, share.where), nbytes)

    def _share(self, part: str, where: Where | None) -> Share:
        if where is None:
            where = "device" if Share(part, "device") in self._planned else "host"
        return Share(part, where)

    def _shares(self, parts: Mapping[PartName, int] | Mapping[Share, int]) -> dict[Share, int]:
        return {
            part if isinstance(part, Share) else self._share(part, None): nbytes
            for part, nbytes in parts.items()
        }

    def _take(self, share: Share, nbytes: int) -> None:
        if self._taken[share] + nbytes > self._planned[share]:
            raise BudgetExceededError(
                f"{share.name}: {human(self._taken[share] + nbytes)} asked for, "
                f"{human(self._planned[share])} in the plan; what is not planned cannot be taken."
            )
        self._taken[share] += nbytes


def _by_name(shares: Mapping[Share, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for share, nbytes in shares.items():
        found[str(share.name)] += nbytes
    return found
