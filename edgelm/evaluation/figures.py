"""Figures of each predicted token of a passage: losses, divergence, tops; nats throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figures:
    """``table`` [tokens, 1 or 6] float64, as ``of`` makes it; 1 without a baseline."""

    table: Tensor

    @classmethod
    def of(cls, mine: Tensor, theirs: Tensor | None, wanted: Tensor) -> Figures:
        """Of logits [M, V] of the model and of its baseline, and the ids [M] that follow."""
        q = mine.log_softmax(-1)
        loss = -q.gather(1, wanted[:, None])
        if theirs is None:
            return cls(loss.double())
        p = theirs.log_softmax(-1)
        own = -p.gather(1, wanted[:, None])
        tops = mine.argmax(-1, keepdim=True), theirs.argmax(-1, keepdim=True)
        surest = p.gather(1, tops[1]).exp()
        torch.sub(p, q, out=q)
        kld = q.mul_(p.exp_()).sum(-1, keepdim=True, dtype=torch.float64).clamp(min=0)
        # In float64, which holds ids of any vocabulary exactly.
        return cls(torch.cat([loss, own, kld, surest, *tops], dim=1))

    @classmethod
    def joined(cls, parts: Sequence[Figures]) -> Figures:
        return cls(torch.cat([part.table for part in parts]))

    def at(self, places: Tensor) -> Figures:
        """Of the tokens at some places (indices or a mask)."""
        return Figures(self.table[places])

    def __len__(self) -> int:
        return len(self.table)

    @property
    def compared(self) -> bool:
        """True if there was a baseline, which all but ``loss`` need."""
        return self.table.shape[1] > 1

    @property
    def loss(self) -> Tensor:
        """-log of the probability of the token that follows."""
        return self.table[:, 0]

    @property
    def loss_baseline(self) -> Tensor:
        return self.table[:, 1]

    @property
    def kld(self) -> Tensor:
        """KL(baseline || model) over the whole vocabulary."""
        return self.table[:, 2]

    @property
    def confidence(self) -> Tensor:
        """Probability of the baseline's likeliest token."""
        return self.table[:, 3]

    @property
    def tops(self) -> Tensor:
        """Ids [tokens, 2] of the likeliest token of the model and of the baseline."""
        return self.table[:, 4:6].long()

    @property
    def same_top(self) -> Tensor:
        """1 where model and baseline find the same token likeliest, else 0."""
        return (self.table[:, 4] == self.table[:, 5]).double()

    @property
    def delta_p(self) -> Tensor:
        """Probability of the token that follows, less the baseline's."""
        return (-self.loss).exp() - (-self.loss_baseline).exp()

    def kld_quantile(self, share: float) -> float:
        """The smallest divergence that this share of tokens does not exceed."""
        place = max(1, math.ceil(share * len(self)))
        return float(self.kld.kthvalue(place).values)
