"""What a comparison found of one candidate, as data that a file keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from edgelm.evaluation.comparison.slices import Slice, WorstToken
from edgelm.evaluation.divergence import TextScore
from edgelm.evaluation.evaluate import TaskScore


@dataclass(frozen=True)
class MatrixError:
    """Error of a matrix in dB of its weights (higher is better), None where it is not known.

    ``layer`` is None of embedding and head; ``kind``: as in recipes, attn.q or mlp.down.
    """

    layer: int | None
    kind: str
    scheme: str
    error_db: float | None


@dataclass(frozen=True)
class Measured:
    """A candidate; ``text`` and what follows from it are None or empty without a text.

    ``peak_rss_bytes``: of the process from before loading to the end of the timed answers, None
    where the system does not tell; ``predicted_peak_bytes``: the plan's for the same. Reading the
    text takes more, within the budget. Speeds are medians; they and the peaks are None of a sweep's
    cell, beside which others run. ``rights``: for each item of a task, whether it is right.
    """

    candidate: str
    scheme: str
    bits_per_weight: float
    weight_bytes: int
    backend: str
    device: str
    context: int
    predicted_peak_bytes: int | None
    peak_rss_bytes: int | None
    load_s: float
    prefill_tok_s: float | None
    decode_tok_s: float | None
    text: TextScore | None = None
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    worst: list[WorstToken] = field(default_factory=list)
    matrices: list[MatrixError] = field(default_factory=list)
    tasks: dict[str, TaskScore] = field(default_factory=dict)
    rights: dict[str, list[bool]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data that ``from_dict`` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Of a candidate before its tasks were paired with the baseline's."""
        own = dict(data)
        own["text"] = own["text"] and TextScore(**own["text"])
        own["slices"] = {kind: [Slice(**s) for s in them] for kind, them in own["slices"].items()}
        own["worst"] = [WorstToken(**token) for token in own["worst"]]
        own["matrices"] = [MatrixError(**matrix) for matrix in own["matrices"]]
        own["tasks"] = {name: TaskScore(**score) for name, score in own["tasks"].items()}
        return cls(**own)
