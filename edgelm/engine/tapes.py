"""RecordedSteps: steps of few tokens, each one call of the native library from the second on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edgelm.engine.steps import Places, write_places
from edgelm.models.layers import Head
from edgelm.ops.cache import KVCache
from edgelm.ops.native import NativeOps, holds_natively
from quant import native
from quant.native.tape import Tape


@dataclass(frozen=True)
class _Recorded:
    """A tape and the tensor that it leaves its result in."""

    tape: Tape
    out: Tensor


class RecordedSteps:
    """The steps of one engine, recorded by cache and number of tokens, and its head's products.

    What a step finds is judged natively too: the index of each token's largest number, which says
    at once whether all of them are finite.

    Args:
        most: tokens of a step. attention, products: workspaces.
    """

    def __init__(self, most: int, attention: Tensor, products: Tensor) -> None:
        self.most = most
        self._workspaces = (attention, products)
        self._places = torch.zeros(3, most, dtype=torch.int64)
        self._written = self._places.numpy()
        self._best = torch.zeros(2, most, dtype=torch.int64)  # of hidden states, of logits
        self._steps: WeakKeyDictionary[KVCache, dict[tuple[int, int], _Recorded]] = (
            WeakKeyDictionary()
        )
        self._heads: dict[tuple[int, int], _Recorded] = {}

    def admits(self, cache: KVCache, tokens: Iterable[list[int] | Tensor]) -> bool:
        """True if a step of these tokens, by row, can be recorded: ids, and few of them."""
        count = 0
        for own in tokens:
            if not isinstance(own, list):
                return False
            count += len(own)
        return count <= self.most and holds_natively(cache.dtype)

    def run(
        self,
        cache: KVCache,
        rows: Sequence[tuple[int, list[int]]],
        decode: Callable[[NativeOps, Places], Tensor],
    ) -> tuple[Tensor, bool]:
        """(hidden states [M, N] after a step, whether all are finite).

        Args:
            rows: (row, ids that continue it). decode: runs the step where it is not recorded yet.
        """
        count = write_places(self._written, cache, rows)
        steps = self._steps.setdefault(cache, {})
        key = count, native.threads()
        if key in steps:
            step = steps[key]
            step.tape()
        else:
            recorder = NativeOps(*self._workspaces)
            with torch.inference_mode():
                out = decode(recorder, Places(*self._places[:, :count]))
                recorder.argmax(out, self._best[0, :count])
            step = steps[key] = _Recorded(Tape(recorder.calls, recorder.first), out)
        return step.out, min(self._best[0, :count].tolist()) >= 0

    def judge(self, head: Head, hidden: Tensor, room: Tensor) -> tuple[Tensor, list[int]]:
        """(logits [M, V], index of the largest one of each token or -1 where one is not finite).

        Args:
            hidden: [M, N], what a step of M tokens left. room: for the logits, [M or more, V].
        """
        count = len(hidden)
        key = count, native.threads()
        if key in self._heads:
            self._heads[key].tape()
        else:
            recorder, logits = NativeOps(*self._workspaces), room[:count]
            with torch.inference_mode():
                head.logits(hidden, logits, recorder)
                recorder.argmax(logits, self._best[1, :count])
            self._heads[key] = _Recorded(Tape(recorder.calls), logits)
        return self._heads[key].out, self._best[1, :count].tolist()

    def forget(self) -> None:
        """Drop all tapes."""
        self._steps.clear()
        self._heads.clear()
