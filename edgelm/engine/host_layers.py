"""HostLayers: the layers of a split model that run on the CPU, and the way there and back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelm.budget.dtypes import KV_DTYPES
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import PartName
from edgelm.budget.placement import host_layers
from edgelm.budget.plan import Plan
from edgelm.models.assembled import Assembled
from edgelm.ops.cache import KVCache
from edgelm.ops.native import NativeOps, workspaces
from edgelm.ops.position import Angles
from edgelm.ops.step import Step, Workspace, rope_table


class HostLayers:
    """Buffers of the host's share, and hooks that lead its layers to them.

    A layer on the host gets the host's hidden states in place of the device's: copied in before the
    first of them, and back after the last.
    """

    def __init__(self, model: Assembled, plan: Plan, ledger: Ledger) -> None:
        take, config = partial(ledger.empty, where="host"), model.config
        products = [product for product in plan.products if product.device == "cpu"]
        sizes = workspaces(config, plan.execution, plan.chunk, plan.context, products)
        room = (sizes[PartName.ATTENTION],)
        self._ops = NativeOps(take(PartName.ATTENTION, room, torch.uint8))
        kv = KV_DTYPES[plan.kv]
        self._workspace = Workspace(config, plan.chunk, plan.context, torch.float32, kv, take)
        self._table = rope_table(config, plan.context, torch.float32, take)
        self._outside: Tensor | None = None
        self._count = host_layers(plan)
        for index in range(self._count):
            layer = model.decoder.layers[index]
            layer.register_forward_pre_hook(self._enter(index))
            layer.register_forward_hook(self._leave(index))

    def step(self, cache: KVCache, step: Step) -> Step:
        """The host's side of a step."""
        angles = None
        if step.angles is not None:
            assert self._table is not None
            angles = Angles(self._table, step.angles.positions.cpu())
        return replace(
            step,
            ops=self._ops,
            buffers=self._workspace.buffers(len(step.rows)),
            scratch=self._workspace.scratch,
            slots=[],
            rows=step.rows.cpu(),
            positions=step.positions.cpu(),
            angles=angles,
        )

    def _enter(self, index: int) -> Any:
        def enter(_: nn.Module, given: tuple[Tensor, Step]) -> tuple[Tensor, Step]:
            x, step = given
            assert step.host is not None
            inside = step.host.buffers.hidden
            if index == 0:
                inside.copy_(x)
            self._outside = x
            return inside, step.host

        return enter

    def _leave(self, index: int) -> Any:
        def leave(_: nn.Module, given: tuple[Tensor, Step], result: None) -> None:
            inside, step = given
            assert self._outside is not None
            # Between them only who records hidden states looks at the device's.
            if index == self._count - 1 or step.hidden_states is not None or step.find_nonfinite:
                self._outside.copy_(inside)

        return leave
