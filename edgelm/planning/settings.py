"""Settings: what a user may fix about a load, checked; the solver chooses what is left open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from edgelm.budget.dtypes import DTYPES, KV_DTYPES
from edgelm.budget.plan import MOST_DECODE_TOKENS
from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError, UsageError
from edgelm.machine.accelerators import Accelerator
from edgelm.models.assembled import Assembled
from edgelm.option import checked, options_in
from edgelm.planning.setting_table import EXACT_ACTIVATIONS, LOAD, LoadSettings, QuantChoice
from quant import CALIBRATED_METHODS, DEFAULT_METHOD, METHODS, QuantError, Recipe, native

DEFAULT_CONTEXT = 4096
DEFAULT_DRAFT_DEPTH = MOST_DECODE_TOKENS - 1  # behind the token before them


def usual_method() -> str:
    """The grid search; where it would run in torch, and take minutes per billion weights in every
    load, round-to-nearest."""
    return "rtn" if native.missing() else DEFAULT_METHOD


@dataclass(frozen=True)
class Settings:
    """A user's settings of a load; ``auto`` and None leave the choice to the solver."""

    quant: QuantChoice = "auto"
    method: str = field(default_factory=usual_method)
    kv: str = "auto"
    backend: str = "auto"
    activations: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    context: int | str = "auto"
    rows: int | str = 1
    chunk: int | str = "auto"
    draft_depth: int = DEFAULT_DRAFT_DEPTH
    budget: str | int | None = None
    offload: str = "none"

    def __post_init__(self) -> None:
        for name, option in options_in(LoadSettings).items():
            object.__setattr__(self, name, option.require(name, getattr(self, name)))


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings of keywords; None leaves one out.

    Raises:
        UsageError: an unknown name, with the nearest one; a value that is not allowed.
    """
    chosen = checked(given, LOAD)
    return Settings(**{name: value for name, value in chosen.items() if value is not None})


def activation_dtype(
    settings: Settings, config: ModelConfig, accelerator: Accelerator | None = None
) -> torch.dtype:
    """The type of activations; UsageError for one that this model or device does not support.

    Without ``accelerator`` (on the CPU) float32 unless another is given. With one bfloat16; where
    it has none float16, and float32 for a model that outgrows that.
    """
    dtype = DTYPES.get(settings.dtype) or _usual_dtype(config, accelerator)
    if dtype == torch.float16 and config.not_in_float16:
        raise UsageError(
            f"dtype 'float16' is refused: {config.not_in_float16}; use float32 or bfloat16."
        )
    if dtype == torch.float16 and accelerator is None:
        raise UsageError(
            "dtype 'float16' is not supported on CPUs: no kernel accumulates in it. Use float32 or "
            "bfloat16."
        )
    if dtype == torch.bfloat16 and accelerator is not None and not accelerator.bfloat16:
        raise UsageError(
            f"dtype 'bfloat16' is not supported on {accelerator.name}, which would emulate it; use "
            f"float32{'' if config.not_in_float16 else ' or float16'}."
        )
    return dtype


def _usual_dtype(config: ModelConfig, accelerator: Accelerator | None) -> torch.dtype:
    if accelerator is None:
        return torch.float32
    if accelerator.bfloat16:
        return torch.bfloat16
    return torch.float32 if config.not_in_float16 else torch.float16


def exact_activations(settings: Settings) -> bool:
    """True if products must not round activations."""
    return settings.activations in EXACT_ACTIVATIONS


def cache_dtype(settings: Settings) -> torch.dtype | None:
    """The type of keys and values; None is left open."""
    return KV_DTYPES.get(settings.kv)


def given_context(settings: Settings, config: ModelConfig) -> int | None:
    """Tokens of prompt and answer; None is left open.

    Raises:
        ContextLengthError: it is beyond what the model can see.
    """
    context = _count(settings.context)
    if context is not None and context > config.max_context and not config.open_ended:
        raise ContextLengthError(
            f"A context of {context} tokens is beyond the model's {config.max_context}.",
            context,
            config.max_context,
        )
    return context


def given_chunk(settings: Settings) -> int | None:
    """Most tokens of a step; None is left open."""
    return _count(settings.chunk)


def given_rows(settings: Settings) -> int | None:
    """Answers made side by side; None is left open."""
    return _count(settings.rows)


def _count(given: int | str) -> int | None:
    """A count, or None for ``auto``."""
    return None if given == "auto" else int(given)


def given_recipe(settings: Settings, model: Assembled) -> Recipe | None:
    """The recipe that the user named; None is left open.

    Raises:
        UsageError: the method or recipe is not known, or the recipe names what is not there.
    """
    if settings.method in CALIBRATED_METHODS:
        raise UsageError(
            f"method {settings.method!r} reads a calibration text, which only edgelm quantize "
            f"does; allowed here: {', '.join(METHODS)}. Or load a folder quantized with it."
        )
    if settings.method not in METHODS:
        raise UsageError(f"method {settings.method!r} is not known; allowed: {', '.join(METHODS)}.")
    if settings.quant == "auto":
        return None
    try:
        recipe = Recipe.parse(settings.quant)
    except QuantError as error:
        raise UsageError(f"quant: {error}") from error
    refuse_unused_overrides(recipe, model)
    return recipe


def refuse_unused_overrides(recipe: Recipe, model: Assembled) -> None:
    """Raise UsageError for overrides that match no matrix of the model."""
    matrices = model.decoder.matrices()
    named = list(dict.fromkeys(model.names.recipe_name(name) for name, _ in matrices))
    unused = recipe.unused_patterns(["head", *named])
    if unused:
        raise UsageError(
            f"quant: the overrides {', '.join(unused)} name nothing in this model; its matrices "
            f"are called {', '.join(named[1:8])}, ..., embed, head."
        )
