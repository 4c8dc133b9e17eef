"""Run 2B-8B language models on a laptop inside a memory budget, and know what quantizing cost."""

from typing import TYPE_CHECKING, Any

from edgelm.cache import KVCache
from edgelm.entry import load, plan
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
from edgelm.memory import Plan
from edgelm.model import LanguageModel
from edgelm.quantization import Quantized, quantize
from edgelm.request import Chunk, Result, Stats
from edgelm.version import __version__
from quant import Recipe, Scheme

if TYPE_CHECKING:
    from edgelm.evaluation.job import evaluate

__all__ = [
    "BudgetExceededError",
    "CancelledError",
    "Chunk",
    "ContextLengthError",
    "DoesNotFitError",
    "EdgeLMError",
    "HubError",
    "KVCache",
    "KernelUnavailableError",
    "LanguageModel",
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


def __getattr__(name: str) -> Any:
    """``evaluate`` is imported when somebody asks for it: few who generate ever do."""
    if name == "evaluate":
        from edgelm.evaluation.job import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
