"""The report of what became of a model's matrices, as data, text and HTML."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from .scheme import Scheme

_COLUMNS = ("scheme", "kernel", "matrices", "MiB", "lowest dB")


@dataclass(frozen=True)
class ModuleReport:
    """What became of one matrix. nbytes: as the kernel holds it; note: why, when not as asked."""

    name: str
    scheme: Scheme
    shape: tuple[int, int]
    nbytes: int
    error_db: float | None
    kernel: str
    note: str = ""


@dataclass(repr=False)
class Report:
    """Every matrix of a model, in loading order; other tensors (norms, biases) as one sum, as they
    are held and as they are stored."""

    modules: list[ModuleReport] = field(default_factory=list)
    other_bytes: int = 0
    other_stored_bytes: int = 0
    other_elements: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of everything the report counts."""
        return sum(module.nbytes for module in self.modules) + self.other_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bytes of all tensors x 8 / parameters: matrices as their schemes say, scales included
        and what a kernel adds left out, and other tensors as they are stored."""
        parameters = sum(math.prod(module.shape) for module in self.modules) + self.other_elements
        nbytes = sum(module.scheme.nbytes(module.shape) for module in self.modules)
        nbytes += self.other_stored_bytes
        return nbytes * 8 / parameters if parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data: bits_per_weight, nbytes and one entry per module."""
        modules = [
            {**asdict(m), "scheme": str(m.scheme), "shape": [*m.shape]} for m in self.modules
        ]
        return {
            "bits_per_weight": self.bits_per_weight,
            "nbytes": self.nbytes,
            "modules": modules,
        }

    def __repr__(self) -> str:
        return f"<Report: {self._summary()}>"

    def __str__(self) -> str:
        """A line for each scheme and kernel, then the sum and what is not as asked."""
        rows = [_COLUMNS, *self._rows()]
        widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, self._summary(), *self._notes()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        rest = "<br>".join(map(escape, (self._summary(), *self._notes())))
        return f"<table><tr>{head}</tr>{body}</table><p>{rest}</p>"

    def _rows(self) -> list[tuple[str, ...]]:
        """The cells of each scheme and kernel."""
        groups: dict[tuple[str, str], list[ModuleReport]] = {}
        for module in self.modules:
            groups.setdefault((str(module.scheme), module.kernel), []).append(module)
        found: list[tuple[str, ...]] = []
        for key, own in groups.items():
            errors = [module.error_db for module in own if module.error_db is not None]
            size = f"{sum(module.nbytes for module in own) / 2**20:.1f}"
            found.append((*key, str(len(own)), size, f"{min(errors):.1f}" if errors else "exact"))
        return found

    def _summary(self) -> str:
        size = f"{self.nbytes / 2**20:.1f} MiB"
        return f"{len(self.modules)} matrices, {size}, {self.bits_per_weight:.2f} bits per weight"

    def _notes(self) -> list[str]:
        """What is not as asked, with how many matrices it concerns."""
        notes: dict[str, int] = {}
        for module in self.modules:
            if module.note:
                notes[module.note] = notes.get(module.note, 0) + 1
        return [f"{count} matrices: {note}" for note, count in notes.items()]
