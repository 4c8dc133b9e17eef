"""From headers and one choice of everything to a Plan: every byte of a load, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from edgelm import expectations, hardware, kernel_choice, runs
from edgelm.cache import cache_bytes
from edgelm.config import ModelConfig
from edgelm.hub import cache_dir
from edgelm.load_peak import load_peak_bytes
from edgelm.memory import Part, Plan, parse_budget
from edgelm.models.decoder import Decoder
from edgelm.settings import Settings, activation_dtype
from edgelm.step import workspace_sizes
from edgelm.weight_plan import WeightPlan, WeightPlanner, kernel_scratch, moved_bytes
from edgelm.weights import WeightNames
from quant import Recipe


@dataclass(frozen=True)
class Candidate:
    """One choice of all that a load leaves open; ``recipe`` None keeps what a file holds."""

    recipe: Recipe | None
    kv: torch.dtype
    context: int
    rows: int
    chunk: int


@dataclass
class Planner:
    """Plans of one model, from headers alone; what candidates share is worked out once.

    Raises:
        UsageError: a setting is not allowed for this model.
    """

    decoder: Decoder
    config: ModelConfig
    names: WeightNames
    settings: Settings
    _weights: dict[Recipe | None, WeightPlan] = field(default_factory=dict)
    _load_peaks: dict[Recipe | None, int] = field(default_factory=dict)
    _scratch: dict[tuple[Recipe | None, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = activation_dtype(self.settings, self.config)
        resident = hardware.resident_bytes()
        self.runtime_parts = runs.runtime_parts(cache_dir(), resident)
        available = hardware.available_memory_bytes() + resident
        self.budget_bytes = parse_budget(self.settings.budget, available)
        self._tied = self.decoder.embed.tied_to_head
        self._read_gb_s = hardware.recorded_read_gb_s(cache_dir())
        measured = kernel_choice.rankings(cache_dir())
        self._weight_planner = WeightPlanner(
            self.decoder, self.names, self.dtype, self.settings.backend, measured
        )

    def plan(self, candidate: Candidate) -> Plan:
        """The plan for one candidate; ``fits`` says whether the budget holds it.

        Raises:
            UsageError: the recipe does not go with the shapes.
            ModelFileError: a weight is missing or has another shape.
            KernelUnavailableError: the chosen backend cannot run a matrix.
        """
        weights = self._weights_of(candidate.recipe)
        parts = (*weights.parts, *self._runtime_parts(candidate, weights))
        load_peak = self._load_peak_of(candidate.recipe)
        steady = sum(part.bytes for part in parts)
        moved = moved_bytes(weights.products, self._tied)
        return Plan(
            fits=max(load_peak, steady) <= self.budget_bytes,
            scheme=weights.label,
            bits_per_weight=weights.nbytes * 8 / weights.parameters,
            kv=_name(candidate.kv),
            dtype=_name(self.dtype),
            context=candidate.context,
            rows=candidate.rows,
            chunk=min(candidate.chunk, candidate.context),
            draft_depth=0,
            placement=("cpu",) * self.config.num_layers,
            budget_bytes=self.budget_bytes,
            expected_tok_s=self._read_gb_s * 1e9 / moved if self._read_gb_s else None,
            parts=parts,
            products=weights.products,
            load_peak_bytes=load_peak,
            expected_kld=self._expected_kld(candidate, weights),
            moved_bytes_per_token=moved,
        )

    def _weights_of(self, recipe: Recipe | None) -> WeightPlan:
        if recipe not in self._weights:
            self._weights[recipe] = self._weight_planner.plan(recipe)
        return self._weights[recipe]

    def _load_peak_of(self, recipe: Recipe | None) -> int:
        if recipe not in self._load_peaks:
            runtime = sum(part.bytes for part in self.runtime_parts)
            products = self._weights_of(recipe).products
            self._load_peaks[recipe] = load_peak_bytes(products, self.names, runtime)
        return self._load_peaks[recipe]

    def _runtime_parts(self, candidate: Candidate, weights: WeightPlan) -> list[Part]:
        """Everything that generating needs besides the weights."""
        config, context, kv, dtype = self.config, candidate.context, candidate.kv, self.dtype
        tokens = min(candidate.chunk, context)
        sizes: dict[str, int] = {}
        for part, elements, kind in workspace_sizes(config, tokens, context, dtype, kv).values():
            sizes[part] = sizes.get(part, 0) + elements * kind.itemsize
        if config.rope is not None:
            sizes["rope table"] = context * config.rope.rotary_size * dtype.itemsize
        sizes["kv cache"] = cache_bytes(config, candidate.rows, context, tokens, kv)
        key = (candidate.recipe, tokens)
        if key not in self._scratch:
            rows = candidate.rows
            self._scratch[key] = kernel_scratch(weights.products, tokens, rows, self._tied)
        sizes["kernel scratch"] = self._scratch[key]
        sizes["logits"] = candidate.rows * self.decoder.outputs * torch.float32.itemsize
        return [*(Part(name, nbytes) for name, nbytes in sizes.items()), *self.runtime_parts]

    def _expected_kld(self, candidate: Candidate, weights: WeightPlan) -> float | None:
        """An estimate; None for what a file holds, whose own error nobody can tell."""
        if candidate.recipe is None:
            return None
        return expectations.expected_kld(weights.label, _name(candidate.kv))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
