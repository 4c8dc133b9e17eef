"""From headers and one choice of everything to a Plan: every byte of a load, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from edgelm.budget import past_runs
from edgelm.budget.dtypes import dtype_name
from edgelm.budget.parts import Part, PartName, Where
from edgelm.budget.placement import (
    Placement,
    check_offload,
    file_groups,
    is_streamed,
    place,
    placed_parts,
)
from edgelm.budget.plan import Execution, Plan, judged_tokens
from edgelm.budget.units import parse_budget
from edgelm.generation.prompt_lookup import lookup_bytes
from edgelm.hub.references import cache_dir
from edgelm.layerstore.layer_folder import LayerFolder, worth_keeping
from edgelm.machine import accelerators, disk, hardware
from edgelm.machine.transfer import TRANSFER_BYTES
from edgelm.models.assembled import Assembled
from edgelm.ops.cache_sizes import cache_parts
from edgelm.ops.native import workspaces
from edgelm.ops.step import workspace_sizes
from edgelm.ops.triton import workspace_elements
from edgelm.planning import expected_accuracy, kernel_choice
from edgelm.planning.execution import draft_depth, execution_of
from edgelm.planning.host_split import split
from edgelm.planning.load_peak import load_peak_bytes
from edgelm.planning.matrices import WeightPlan, WeightPlanner, kernel_scratch, moved_bytes
from edgelm.planning.settings import Settings, activation_dtype, exact_activations
from quant import Recipe


@dataclass(frozen=True)
class Candidate:
    """One choice of all that a load leaves open; ``recipe`` None keeps what a file holds."""

    recipe: Recipe | None
    kv: torch.dtype
    context: int
    rows: int
    chunk: int


@dataclass(frozen=True)
class PlacedWeights:
    """Weights with some layers on disk: their parts, what is read from there in every step, and
    the peak of the process while they are loaded."""

    parts: tuple[Part, ...]
    streamed_bytes: int
    load_peak_bytes: int


@dataclass
class Planner:
    """Plans of one model, from headers alone; what candidates share is worked out once.

    Args:
        drafted: a smaller model will guess tokens ahead.
        unread_bytes: what the process still takes before it loads weights.

    Raises:
        UsageError: a setting is not allowed for this model.
    """

    model: Assembled
    settings: Settings
    drafted: bool = False
    unread_bytes: int = 0
    _weights: dict[Recipe | None, WeightPlan] = field(default_factory=dict)
    _placed: dict[tuple[Recipe | None, Placement], PlacedWeights] = field(default_factory=dict)
    _ready: dict[Recipe | None, set[str]] = field(default_factory=dict)
    _scratch: dict[tuple[Recipe | None, int, int], int] = field(default_factory=dict)
    _for_host: Planner | None = None

    def __post_init__(self) -> None:
        self.accelerator = accelerators.find(self.settings.device)
        self.device = "cpu" if self.accelerator is None else self.accelerator.device
        self.torch_device = accelerators.torch_device(self.device)
        self._where: Where = "host" if self.accelerator is None else "device"
        self.dtype = activation_dtype(self.settings, self.model.config, self.accelerator)
        check_offload(self.settings.offload, self.device)
        available = hardware.available_memory_bytes() + hardware.resident_bytes()
        self.budget_bytes = parse_budget(self.settings.budget, available)
        self._tied = self.model.decoder.embed.tied_to_head
        measured = kernel_choice.rankings(cache_dir(), self.device)
        self._weight_planner = WeightPlanner(
            self.model.decoder,
            self.model.names,
            self.dtype,
            self.settings.backend,
            measured,
            exact_activations(self.settings),
            self.device,
        )

    @cached_property
    def runtime_parts(self) -> list[Part]:
        """What the process holds beside tensors: asked for when kernels are chosen, some of which
        import libraries of 100 MiB and more."""
        return past_runs.runtime_parts(cache_dir(), hardware.resident_bytes() + self.unread_bytes)

    def plan(self, candidate: Candidate) -> Plan:
        """The plan for one candidate; ``fits`` says whether the budget holds it.

        Raises:
            UsageError: the recipe does not go with the shapes.
            ModelFileError: a weight is missing or has another shape.
            KernelUnavailableError: the chosen backend cannot run a matrix.
        """
        plan = self._plan(candidate)
        too_large = plan.predicted_device_peak_bytes > plan.device_budget_bytes
        if self.settings.offload != "cpu" or not too_large:
            return plan
        if self._for_host is None:
            own = replace(
                self.settings, device="cpu", dtype="auto", offload="none", draft_depth=0
            )  # fmt: skip
            self._for_host = Planner(self.model, own)
        runtime = sum(part.bytes for part in self.runtime_parts)
        return split(self.model, self.dtype, runtime, plan, self._for_host.plan(candidate))

    def _plan(self, candidate: Candidate) -> Plan:
        weights = self._weights_of(candidate.recipe)
        depth = self._draft_depth(candidate, weights)

        def running(placement: Placement) -> tuple[Execution, list[Part]]:
            execution = self._execution(candidate, weights, depth, "disk" in placement)
            return execution, self._running_parts(candidate, weights, depth, execution)

        def peak_bytes(placement: Placement) -> int:
            placed = self._placed_weights(candidate.recipe, placement)
            running_bytes = _host_bytes(running(placement)[1])
            return max(placed.load_peak_bytes, _host_bytes(placed.parts) + running_bytes)

        layers, offload = self.model.config.num_layers, self.settings.offload
        placement: Placement = (self.device,) * layers
        if self.accelerator is None:
            placement = place(offload, layers, self.budget_bytes, peak_bytes)
        placed = self._placed_weights(candidate.recipe, placement)
        moved = moved_bytes(weights.products, self._tied)
        execution, parts = running(placement)
        plan = Plan(
            fits=False,
            scheme=weights.label,
            bits_per_weight=weights.bits_per_weight,
            kv=dtype_name(candidate.kv),
            dtype=dtype_name(self.dtype),
            context=candidate.context,
            rows=candidate.rows,
            chunk=min(candidate.chunk, candidate.context),
            draft_depth=depth,
            placement=placement,
            budget_bytes=self.budget_bytes,
            expected_tok_s=self._expected_tok_s(moved, placed.streamed_bytes),
            parts=(*placed.parts, *parts, *self._layout_cache(candidate.recipe, placement)),
            products=weights.products,
            execution=execution,
            load_peak_bytes=placed.load_peak_bytes,
            expected_kld=self._expected_kld(candidate, weights),
            moved_bytes_per_token=moved,
            device=self.device,
            device_budget_bytes=0 if self.accelerator is None else self.accelerator.free_bytes,
        )
        return replace(plan, fits=plan.within_budgets)

    def _expected_tok_s(self, moved_bytes: int, streamed_bytes: int) -> float | None:
        """An estimate for the CPU; nobody has measured an accelerator's bandwidth beforehand."""
        if self.accelerator is not None:
            return None
        return disk.expected_tok_s(cache_dir(), moved_bytes, streamed_bytes)

    def _weights_of(self, recipe: Recipe | None) -> WeightPlan:
        if recipe not in self._weights:
            self._weights[recipe] = self._weight_planner.plan(recipe)
        return self._weights[recipe]

    def _placed_weights(self, recipe: Recipe | None, placement: Placement) -> PlacedWeights:
        """Layers for the disk are laid out one by one first; then the others are loaded."""
        if (recipe, placement) not in self._placed:
            weights = self._weights_of(recipe)
            parts = tuple(placed_parts(weights.parts, weights.products, placement))
            streamed = [p for p in weights.products if is_streamed(p, placement)]
            resident = [p for p in weights.products if not is_streamed(p, placement)]
            runtime = sum(part.bytes for part in self.runtime_parts)
            buffers = sum(part.bytes for part in parts if part.name == PartName.STREAM_BUFFERS)
            buffers += 0 if self.accelerator is None else TRANSFER_BYTES
            ready = self._ready_of(recipe)
            peaks = [load_peak_bytes([p], self.model.names, runtime, ready) for p in streamed]
            leaves = self.accelerator is not None
            peaks.append(
                load_peak_bytes(resident, self.model.names, runtime + buffers, ready, leaves)
            )
            self._placed[recipe, placement] = PlacedWeights(
                parts, sum(product.nbytes for product in streamed), max(peaks)
            )
        return self._placed[recipe, placement]

    def _ready_of(self, recipe: Recipe | None) -> set[str]:
        """First names of the products that a load will find laid out in the cache folder."""
        if recipe not in self._ready:
            products = self._weights_of(recipe).products
            store = LayerFolder(cache_dir(), self.model.names, products, self.settings.method)
            found = store.present(worth_keeping(products, self.model.names))
            self._ready[recipe] = {p.names[0] for group in found for p in store.groups[group]}
        return self._ready[recipe]

    def _layout_cache(self, recipe: Recipe | None, placement: Placement) -> list[Part]:
        """Files in the cache folder, beside streamed layers, that make the next start quick."""
        products = self._weights_of(recipe).products
        groups = file_groups(p for p in products if not is_streamed(p, placement))
        kept = groups.keys() & set(worth_keeping(products, self.model.names))
        nbytes = sum(p.nbytes for group in kept for p in groups[group])
        return [Part(PartName.LAYOUT_CACHE, nbytes, "disk")] if nbytes else []

    def _running_parts(
        self, candidate: Candidate, weights: WeightPlan, depth: int, execution: Execution
    ) -> list[Part]:
        """Everything that generating needs besides the weights."""
        config, context, kv, dtype = self.model.config, candidate.context, candidate.kv, self.dtype
        tokens = min(candidate.chunk, context)
        sizes: Counter[PartName] = Counter()
        for part, elements, kind in workspace_sizes(config, tokens, context, dtype, kv).values():
            sizes[part] += elements * kind.itemsize
        if config.rope is not None:
            sizes[PartName.ROPE_TABLE] = context * config.rope.rotary_size * dtype.itemsize
        caches = (config, candidate.rows, context, tokens, kv)
        for (name, _), nbytes in cache_parts(*caches).items():
            sizes[PartName(name)] += nbytes
        judged = judged_tokens(candidate.rows, depth)
        key = (candidate.recipe, tokens, judged)
        if key not in self._scratch:
            self._scratch[key] = kernel_scratch(weights.products, tokens, judged, self._tied)
        sizes[PartName.KERNEL_SCRATCH] = self._scratch[key]
        if execution.ops == "native":
            sizes.update(workspaces(config, execution, tokens, context, weights.products))
        elif execution.ops == "triton":
            elements = workspace_elements(config, execution.decode_tokens, tokens, context)
            sizes[PartName.ATTENTION] += elements * torch.float32.itemsize
        sizes[PartName.RESTORE_POINTS] = sum(cache_parts(*caches, rings_only=True).values())
        sizes[PartName.LOGITS] = judged * self.model.decoder.outputs * torch.float32.itemsize
        parts = [Part(name, nbytes, self._where) for name, nbytes in sizes.items() if nbytes]
        if execution.drafter == "lookup":
            parts.append(Part(PartName.SPECULATION, lookup_bytes(context)))
        return [*parts, *self.runtime_parts]

    def _execution(
        self, candidate: Candidate, weights: WeightPlan, depth: int, streams: bool
    ) -> Execution:
        return execution_of(
            weights.products,
            self.dtype,
            None if self.accelerator is None else self.torch_device,
            rows=candidate.rows,
            draft_depth=depth,
            drafted=self.drafted,
            streams=streams,
            method=self.settings.method,
        )

    def _draft_depth(self, candidate: Candidate, weights: WeightPlan) -> int:
        if self.accelerator is not None:  # nobody has measured what guesses cost there
            return 0
        tokens = min(candidate.chunk, candidate.context)
        return draft_depth(
            self.settings.draft_depth, self.model.decoder, weights.products, tokens,
            drafted=self.drafted,
        )  # fmt: skip

    def _expected_kld(self, candidate: Candidate, weights: WeightPlan) -> float | None:
        """An estimate; None for what a file holds, whose own error nobody can tell."""
        if candidate.recipe is None:
            return None
        return expected_accuracy.expected_kld(weights.label, dtype_name(candidate.kv))


def _host_bytes(parts: Iterable[Part]) -> int:
    return sum(part.bytes for part in parts if part.where == "host")
