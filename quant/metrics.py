"""Accuracy of a stored matrix: signal to quantization noise ratio in decibels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sqnr:
    """10 log10(sum reference^2 / sum (reference - approximation)^2), added up over blocks."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Tensor, approximation: Tensor) -> None:
        """Count one more block of equal shapes; sums run in float64 across blocks."""
        exact = reference.float()
        difference = exact - approximation.float()
        self.signal += float(torch.linalg.vector_norm(exact)) ** 2
        self.noise += float(torch.linalg.vector_norm(difference)) ** 2

    @property
    def db(self) -> float:
        """Decibels; infinite when nothing differs."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Decibels between two tensors of equal shape."""
    ratio = Sqnr()
    ratio.add(reference, approximation)
    return ratio.db
