"""GraphedSteps: steps of few tokens as CUDA graphs, launched whole from the second on.

What ``RecordedSteps`` is to the native library, with the same calls: a graph reads ids, rows and
positions from memory that stays on the device, and writes into buffers that stay. Nothing of a step
comes back to the host but the likeliest ids, which also say whether the logits were finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edgelm.engine.steps import Places, write_places
from edgelm.errors import NonFiniteError
from edgelm.models.layers import Head, all_finite
from edgelm.ops.cache import KVCache
from edgelm.ops.triton import TritonOps


class Captured(Protocol):
    """A recorded piece of work: calling it does it again, on the memory it was recorded with."""

    def __call__(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Captured, Tensor]]
"""Does a piece of work, records it on the way, and gives the record and where its result lies."""


@dataclass(frozen=True)
class CudaGraphs:
    """Captures on one device. All graphs share memory for what is made within them: no two run at
    the same time, and what one leaves is read before the next."""

    device: torch.device

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Captured, Tensor]:
        """Done twice and captured in between: the first time compiles kernels and takes memory of
        libraries, which a capture must not."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            work()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = work()
        graph.replay()
        return graph.replay, out


class GraphedSteps:
    """The steps of one engine, captured by cache and number of tokens, and its head's products.

    Args:
        most: tokens of a step.
    """

    def __init__(
        self, most: int, ops: TritonOps, device: torch.device, capture: Capture | None = None
    ) -> None:
        self.most = most
        self._ops, self._capture = ops, capture or CudaGraphs(device)
        self._host = torch.zeros(3, most, dtype=torch.int64)
        self._written = self._host.numpy()
        self._places = self._host.to(device, copy=True)
        self._steps: WeakKeyDictionary[KVCache, dict[int, tuple[Captured, Tensor]]] = (
            WeakKeyDictionary()
        )
        self._heads: dict[int, tuple[Captured, Tensor]] = {}
        self._best = torch.zeros(most, dtype=torch.int64, device=device)

    def admits(self, cache: KVCache, tokens: Iterable[list[int] | Tensor]) -> bool:
        """Ids, and few of them; every type of cache."""
        counts = [len(own) if isinstance(own, list) else self.most + 1 for own in tokens]
        return sum(counts) <= self.most

    def run(
        self, cache: KVCache, rows: Sequence[tuple[int, list[int]]],
        decode: Callable[[TritonOps, Places], Tensor],
    ) -> tuple[Tensor, bool]:  # fmt: skip
        """Hidden states [M, N] after a step; whether they are finite ``judge`` finds out.

        Args:
            rows: (row, ids that continue it). decode: runs the step where it is not captured yet.
        """
        count = write_places(self._written, cache, rows)
        self._places[:, :count].copy_(self._host[:, :count], non_blocking=True)
        steps = self._steps.setdefault(cache, {})
        if count in steps:
            captured, out = steps[count]
            captured()
            return out, True
        places = Places(*self._places[:, :count])
        with torch.inference_mode():
            steps[count] = self._capture(lambda: decode(self._ops, places))
        return steps[count][1], True

    def judge(self, head: Head, hidden: Tensor, room: Tensor) -> tuple[Tensor, list[int]]:
        """(logits [M, V], index of the largest one of each token or -1 where one is not finite).

        Args:
            hidden: [M, N], what a step of M tokens left. room: for the logits, [M or more, V].

        Raises:
            NonFiniteError: the hidden states are not finite.
        """
        count = len(hidden)
        if count in self._heads:
            self._heads[count][0]()
        else:
            with torch.inference_mode():
                self._heads[count] = self._capture(lambda: self._judged(head, hidden, room[:count]))
        best = self._best[:count].tolist()
        if min(best) < 0 and not all_finite(hidden):
            raise NonFiniteError("The final norm produced NaN or infinity.")
        return self._heads[count][1], best

    def forget(self) -> None:
        """Drop all graphs and the memory they hold; steps are captured again."""
        self._steps.clear()
        self._heads.clear()

    def _judged(self, head: Head, hidden: Tensor, logits: Tensor) -> Tensor:
        head.logits(hidden, logits, self._ops)
        finite = torch.isfinite(logits.sum(-1, dtype=torch.float64))
        self._best[: len(hidden)].copy_(torch.where(finite, logits.argmax(-1), -1))
        return logits
