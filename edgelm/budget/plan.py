"""The Plan: what will be loaded, how it will run, and the bytes of every part.

The plan is arithmetic over the same size functions that allocate later. It is the only place where
anything about a load is decided: schemes, kernels, cache type, context, chunk, operations, what is
recorded and what guesses ahead. Everything else obeys.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from edgelm.budget.parts import WEIGHTS, Part, Where
from edgelm.budget.weight_name import WeightName

MOST_DECODE_TOKENS = 16
"""Tokens of the largest decode step: answers side by side, or guesses behind one token."""


@dataclass(frozen=True)
class MatrixPlan:
    """One stored matrix: the parts fused into it, its scheme, kernel and bytes.

    ``names`` are canonical (``layers.0.attn.q``); ``stored`` says that the file's own integers
    are kept; ``note`` why it is in another scheme than the recipe names first.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    scheme: str
    kernel: str
    device: str
    nbytes: int
    stored: bool = False
    note: str = ""

    @cached_property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the fused matrix."""
        return (sum(n for n, _ in self.shapes), self.shapes[0][1])

    @cached_property
    def name(self) -> WeightName:
        """Of the first part; the others differ in nothing that it tells."""
        return WeightName.parse(self.names[0])

    @property
    def kind(self) -> str:
        """Part of the model that holds the matrix: embed, attn, mlp or head."""
        return self.name.kind


@dataclass(frozen=True)
class Execution:
    """Execution of a plan, decided once.

    Attributes:
        ops: whose operations run a step.
        decode_tokens: tokens of the largest decode step.
        recorded: decode steps are recorded once and replayed, as tapes or CUDA graphs.
        drafter: what guesses tokens ahead: the text itself, or a smaller model.
        method: how integers are chosen while loading.
    """

    ops: Literal["native", "triton", "reference"]
    decode_tokens: int
    recorded: bool
    drafter: Literal["none", "lookup", "model"]
    method: str


def decode_tokens(rows: int, draft_depth: int) -> int:
    """Tokens of the largest decode step: one a row, or guesses behind one."""
    return min(max(rows, draft_depth + 1), MOST_DECODE_TOKENS)


def judged_tokens(rows: int, draft_depth: int) -> int:
    """Tokens of a step whose logits are asked for at once, at most."""
    return max(rows, draft_depth + 1)


@dataclass(frozen=True)
class Plan:
    """Everything ``load`` will do, and the memory it will take; bytes are exact sums.

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
    products: tuple[MatrixPlan, ...]
    execution: Execution
    load_peak_bytes: int
    expected_kld: float | None
    moved_bytes_per_token: int
    rejected: tuple[dict[str, Any], ...] = field(default=())
    device: str = "cpu"
    device_budget_bytes: int = 0

    @property
    def place(self) -> Where:
        """Default place of parts."""
        return "host" if self.device == "cpu" else "device"

    def _total(self, where: Where) -> int:
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
        """True if it fits the memory of host and device."""
        return (
            self.predicted_peak_bytes <= self.budget_bytes
            and self.predicted_device_peak_bytes <= self.device_budget_bytes
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, norms and biases included."""
        return sum(part.bytes for part in self.parts if part.name in WEIGHTS)

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
