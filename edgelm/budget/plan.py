"""The plan: what will be loaded and what every part weighs; and the Ledger that holds it to that.

The plan is arithmetic over the same size functions that allocate later. It is the only place where
anything about a load is decided: schemes, kernels, cache type, context, chunk.
"""

from __future__ import annotations

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgelm.errors import BudgetExceededError, UsageError
from edgelm.machine import accelerators, hardware

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_LARGEST_BUDGET = 1 << 60
T = TypeVar("T")
_UNITS |= {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}  # as in 6G
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True)
class Part:
    """One named share of memory; ``where`` is ``host``, ``device``, or ``disk`` for no memory."""

    name: str
    bytes: int
    where: str = "host"


@dataclass(frozen=True)
class ProductPlan:
    """One stored matrix: the parts fused into it, its scheme, kernel and bytes.

    ``names`` are canonical (``layers.0.attn.q``); ``stored`` says that the file's own integers
    are kept.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    scheme: str
    kernel: str
    device: str
    nbytes: int
    stored: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the fused matrix."""
        return (sum(n for n, _ in self.shapes), self.shapes[0][1])

    @property
    def kind(self) -> str:
        """What the matrix is part of: embed, attn, mlp or head."""
        first = self.names[0]
        return first.split(".")[2] if "." in first else first


@dataclass(frozen=True)
class Plan:
    """What ``load`` will do and what it will take; bytes are exact sums.

    ``expected_tok_s`` and ``expected_kld`` (nats per token) are estimates: this machine's measured
    bandwidth over ``moved_bytes_per_token``, and what other models measured in such a scheme.
    ``rejected`` are the solver's other choices, runners-up first, each with its reason. ``device``
    is the accelerator as torch names it, or ``cpu``; its budget is what it had free.
    """

    fits: bool
    scheme: str
    bits_per_weight: float
    kv: str
    dtype: str
    context: int
    rows: int
    chunk: int
    draft_depth: int
    placement: tuple[str, ...]
    budget_bytes: int
    expected_tok_s: float | None
    parts: tuple[Part, ...]
    products: tuple[ProductPlan, ...]
    load_peak_bytes: int
    expected_kld: float | None
    moved_bytes_per_token: int
    rejected: tuple[dict[str, Any], ...] = field(default=())
    device: str = "cpu"
    device_budget_bytes: int = 0

    def _total(self, where: str) -> int:
        return sum(part.bytes for part in self.parts if part.where == where)

    @property
    def steady_peak_bytes(self) -> int:
        """Host memory of the whole process while it generates."""
        return self._total("host")

    @property
    def predicted_peak_bytes(self) -> int:
        """The larger of loading and generating, whole process, host."""
        return max(self.load_peak_bytes, self.steady_peak_bytes)

    @property
    def predicted_device_peak_bytes(self) -> int:
        """Memory of the accelerator, all of which is taken while loading."""
        return self._total("device")

    @property
    def within_budgets(self) -> bool:
        """Whether host and device hold it."""
        return (
            self.predicted_peak_bytes <= self.budget_bytes
            and self.predicted_device_peak_bytes <= self.device_budget_bytes
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, norms and biases included."""
        return sum(part.bytes for part in self.parts if part.name.startswith("weights."))

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel that runs each class of tensors: embed, attn, mlp, head."""
        found: dict[str, set[str]] = {}
        for product in self.products:
            found.setdefault(product.kind, set()).add(product.kernel)
        return {kind: " + ".join(sorted(kernels)) for kind, kernels in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the sums spelled out."""
        data = asdict(self)
        data["placement"] = list(self.placement)
        for name in (
            "steady_peak_bytes",
            "predicted_peak_bytes",
            "predicted_device_peak_bytes",
            "weight_bytes",
        ):
            data[name] = getattr(self, name)
        return data

    def __repr__(self) -> str:
        from edgelm.budget import plan_view

        return f"<Plan: {plan_view.summary(self)}>"

    def __str__(self) -> str:
        """As ``edgelm plan`` prints it."""
        from edgelm.budget import plan_view

        return plan_view.text(self)

    def _repr_html_(self) -> str:
        from edgelm.budget import plan_view

        return plan_view.html(self)


class Ledger:
    """Hands out every lasting tensor under its plan part's name, and no byte more than planned.

    A part lies where the plan says, on the host or on the device; names that are no part's on the
    host.

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
        self.planned: dict[str, int] = defaultdict(int)
        self._on_device: set[str] = set()
        for part in parts:
            self.planned[part.name] += part.bytes
            if part.where == "device":
                self._on_device.add(part.name)
        self.taken: dict[str, int] = defaultdict(int)
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

    def device_of(self, part: str) -> torch.device:
        """Where a part's tensors lie."""
        return accelerators.torch_device(self._device if part in self._on_device else "cpu")

    def empty(self, part: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A zeroed tensor, its pages touched now: a full machine is found out before an answer."""
        self._take(part, torch.Size(shape).numel() * dtype.itemsize)
        return torch.empty(shape, dtype=dtype, device=self.device_of(part)).zero_()

    def hold(self, part: str, *tensors: Tensor) -> None:
        """Account for tensors that were made elsewhere (a kernel's layout of a weight)."""
        self._take(part, sum(tensor.nbytes for tensor in tensors))

    def extend(self, parts: Mapping[str, int]) -> None:
        """Plan so many bytes more for each part at run time; less where they are negative.

        Raises:
            BudgetExceededError: the budget has no room for them, or the machine none any more.
        """
        on_device = sum(own for part, own in parts.items() if part in self._on_device)
        free = accelerators.free_bytes(self._device) if on_device else 0
        self._require_room(parts, on_device, min(self.device_headroom_bytes, free))
        on_host = sum(parts.values()) - on_device
        available = hardware.available_memory_bytes()
        self._require_room(parts, on_host, min(self.headroom_bytes, available))
        for part, own in parts.items():
            self._spend(part, own)

    @staticmethod
    def _require_room(parts: Mapping[str, int], nbytes: int, left: int) -> None:
        room = max(0, left)
        if nbytes > room:
            raise BudgetExceededError(
                f"{human(nbytes)} more are needed ({', '.join(parts)}), and the budget or the "
                f"machine leaves {human(room)}: ask for fewer rows or a shorter context, "
                "or load with a larger budget."
            )

    def lend(self, parts: Mapping[str, int], make: Callable[[], T]) -> T:
        """What ``make`` builds of so many bytes, the plan extended by those that it lacks.

        They are given back when nobody holds the result any more.

        Raises:
            BudgetExceededError: as ``extend``.
        """
        before = {part: self.taken[part] for part in parts}
        self.extend(missing := {
            part: max(0, before[part] + own - self.planned[part]) for part, own in parts.items()
        })  # fmt: skip
        try:
            made = make()
        except BaseException:
            self.taken |= before
            self._give_back({}, missing)
            raise
        weakref.finalize(made, self._give_back, parts, missing).atexit = False
        return made

    def _give_back(self, taken: Mapping[str, int], planned: Mapping[str, int]) -> None:
        for part, own in taken.items():
            self.taken[part] -= own
        for part, own in planned.items():
            self._spend(part, -own)

    def _spend(self, part: str, nbytes: int) -> None:
        """Make ``part`` larger at the cost of what its place leaves."""
        if part in self._on_device:
            self.device_headroom_bytes -= nbytes
        else:
            self.headroom_bytes -= nbytes
        self.planned[part] += nbytes

    def absorb(self, prefix: str, other: Ledger) -> None:
        """Account for everything that another ledger has handed out, as parts with a prefix."""
        for part, nbytes in other.taken.items():
            self._take(prefix + part, nbytes)

    def _take(self, part: str, nbytes: int) -> None:
        if self.taken[part] + nbytes > self.planned[part]:
            raise BudgetExceededError(
                f"{part}: {human(self.taken[part] + nbytes)} asked for, "
                f"{human(self.planned[part])} in the plan; what is not planned cannot be taken."
            )
        self.taken[part] += nbytes


def parse_budget(text: str | int | None, available_bytes: int) -> int:
    """Bytes of a budget: a number with a unit (``6GiB``) or a share of what is available (``70%``).

    Raises:
        UsageError: not a budget, or not above zero.
    """
    if text is None:
        return available_bytes
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[a-zA-Z]*)\s*", str(text))
    unit = match[2].lower() if match else None
    if match and (unit == "%" or unit in _UNITS):
        whole = available_bytes / 100 if unit == "%" else _UNITS[str(unit)]
        budget = float(match[1]) * whole
        if 1 <= budget < _LARGEST_BUDGET:
            return int(budget)
    raise UsageError(
        f"budget {str(text)!r:.40} is not an amount of memory; write it as 6GiB, 800MiB or 70%."
    )


def human(nbytes: float) -> str:
    """Bytes for people: 1.5 GiB, 12.0 MiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} B"


def human_speed(tok_s: float) -> str:
    """Tokens a second for people, slow ones with two digits: 48 tok/s, 0.31 tok/s."""
    return f"{tok_s:.0f} tok/s" if tok_s >= 10 else f"{tok_s:.2g} tok/s"
