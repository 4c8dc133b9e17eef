"""The result of a comparison: one row for each candidate, as data, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgelm.evaluation.baseline import Facts
from edgelm.evaluation.comparison.measured import Measured
from edgelm.evaluation.inputs import Work
from edgelm.machine import hardware
from edgelm.version import __version__

TEXT = (
    *("ppl", "ppl_stderr", "ppl_diff", "ppl_diff_stderr", "kld_mean", "kld_stderr", "kld_p50"),
    *("kld_p90", "kld_p95", "kld_p99", "kld_p999", "kld_max", "delta_p_rms", "top1_agreement"),
)
"""The figures of a text that the table shows, as ``TextScore`` names them."""
COST = (
    *("scheme", "bits_per_weight", "weight_bytes", "predicted_peak_bytes", "peak_rss_bytes"),
    *("prefill_tok_s", "decode_tok_s"),
)
_TASK = ("accuracy", "low", "high", "accuracy_baseline")
_PAIRED = ("gained", "lost", "p_holm", "difference", "low", "high", "detectable", "verdict")


@dataclass(frozen=True)
class Comparison:
    """Result of ``compare``.

    ``noise_floor``: the figures of the reference's own weights with bfloat16 activations, a row as
    that of a candidate; over the same tokens unless its ``tokens`` say otherwise (a baseline file
    that ``evaluate`` made). ``categories``: each text's name and number of windows.
    """

    model: str
    quantized: bool
    rows: tuple[Measured, ...]
    noise_floor: dict[str, Any]
    window: int | None
    windows: int | None
    bos: bool | None
    categories: tuple[tuple[str, int], ...]
    text_sha256: str | None
    weights_sha256: str
    tokenizer_sha256: str
    items: dict[str, int]
    processor: str
    threads: int
    version: str

    @classmethod
    def of(cls, work: Work, facts: Facts, rows: Sequence[Measured], quantized: bool) -> Comparison:
        passage = work.passage
        windows, window = (None, None) if passage is None else passage.ids.shape
        return cls(
            work.files.name, quantized, tuple(rows), facts.noise, window, windows,
            None if passage is None else passage.bos, () if passage is None else passage.parts,
            facts.text_sha256, facts.model_sha256, facts.tokenizer_sha256,
            {name: len(items) for name, items in work.items.items()},
            hardware.processor_name(), torch.get_num_threads(), __version__,
        )  # fmt: skip

    @property
    def protocol(self) -> str:
        """What was measured, in one sentence for a caption."""
        told = []
        if self.window is not None and self.windows is not None:
            begin = "BOS" if self.bos else "the text's own first id"
            count = self.windows * (self.window - 1)
            told.append(
                f"{count:,} tokens predicted in {self.windows} windows of {self.window} ids, each "
                f"from an empty cache and beginning with {begin}"
            )
        told += [f"{count} items of {name}" for name, count in self.items.items()]
        own = ", whose weights are quantized already," if self.quantized else ""
        return (
            f"{self.model}{own} in float32 against each candidate: {'; '.join(told)}. Errors are "
            f"by blocks of windows. EdgeLM {self.version}, {self.processor}, {self.threads} threads"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data."""
        return {"protocol": self.protocol} | asdict(self)

    def table(self) -> list[dict[str, Any]]:
        """A flat row for each candidate, and one of the noise floor; None where a cell is empty."""
        rows = [self._row(own) for own in self.rows]
        noise = dict.fromkeys(rows[0]) | {"candidate": f"noise floor{self._noise_tokens}"}
        noise |= {name: self.noise_floor[name] for name in TEXT if name in self.noise_floor}
        return [*rows, noise]

    @property
    def _noise_tokens(self) -> str:
        """That the noise floor is of fewer tokens, where it is."""
        text = self.rows[0].text
        tokens = None if text is None else self.noise_floor["tokens"]
        return "" if text is None or tokens == text.tokens else f" ({tokens} tokens)"

    def _row(self, own: Measured) -> dict[str, Any]:
        row: dict[str, Any] = {"candidate": own.candidate}
        row |= {name: getattr(own, name) for name in COST}
        row |= {name: own.text and getattr(own.text, name) for name in TEXT if self.window}
        for task, score in own.tasks.items():
            row |= {f"{task}_{name}": getattr(score, name) for name in _TASK}
            paired = score.paired
            row |= {f"{task}_paired_{name}": paired and getattr(paired, name) for name in _PAIRED}
        return row

    def csv(self) -> str:
        """``table`` as comma-separated values with a line of names."""
        return as_csv(self.table())


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same keys as comma-separated values with a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
