"""Run 2B-8B language models on a laptop inside a memory budget, and know what quantizing cost."""

from typing import TYPE_CHECKING

from edgelm.budget.plan import Plan
from edgelm.errors import (
    BudgetExceededError,
    CancelledError,
    ContextLengthError,
    DoesNotFitError,
    EdgeLMError,
    HubError,
    KernelUnavailableError,
    ModelFileError,
    NonFiniteError,
    UnsupportedModelError,
    UsageError,
)
from edgelm.generation.option_table import ChatOptions, GenerateOptions
from edgelm.generation.request import Chunk, Result, Stats
from edgelm.loading import load, plan
from edgelm.model import LanguageModel
from edgelm.ops.cache import KVCache
from edgelm.planning.settings import LoadSettings
from edgelm.quantization.quantize import Quantized, quantize
from edgelm.version import __version__
from quant import Recipe, Scheme

if TYPE_CHECKING:
    from edgelm.evaluation.evaluate import evaluate

__all__ = [
    "BudgetExceededError",
    "CancelledError",
    "ChatOptions",
    "Chunk",
    "ContextLengthError",
    "DoesNotFitError",
    "EdgeLMError",
    "GenerateOptions",
    "HubError",
    "KVCache",
    "KernelUnavailableError",
    "LanguageModel",
    "LoadSettings",
    "ModelFileError",
    "NonFiniteError",
    "Plan",
    "Quantized",
    "Recipe",
    "Result",
    "Scheme",
    "Stats",
    "UnsupportedModelError",
    "UsageError",
    "__version__",
    "evaluate",
    "load",
    "plan",
    "quantize",
]


if not TYPE_CHECKING:  # or every misspelled name of the package would pass a type checker

    def __getattr__(name):
        """``evaluate`` is imported when somebody asks for it: few who generate ever do."""
        if name == "evaluate":
            from edgelm.evaluation.evaluate import evaluate

            return evaluate
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
