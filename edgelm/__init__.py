"""Run 2B-8B language models on a laptop inside a memory budget, and know what quantizing cost."""

from importlib import import_module
from typing import TYPE_CHECKING

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
from edgelm.version import __version__

if TYPE_CHECKING:
    from edgelm.budget.plan import Plan
    from edgelm.evaluation.comparison.compare import compare
    from edgelm.evaluation.comparison.comparison import Comparison
    from edgelm.evaluation.evaluate import evaluate
    from edgelm.generation.option_table import ChatOptions, GenerateOptions
    from edgelm.generation.request import Chunk, Result, Stats
    from edgelm.loading import load, plan
    from edgelm.model import LanguageModel
    from edgelm.ops.cache import KVCache
    from edgelm.planning.setting_table import LoadSettings
    from edgelm.quantization.quantize import Quantized, quantize
    from quant import Recipe, Scheme

__all__ = [
    "BudgetExceededError",
    "CancelledError",
    "ChatOptions",
    "Chunk",
    "Comparison",
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
    "compare",
    "evaluate",
    "load",
    "plan",
    "quantize",
]


# Imported when somebody asks for one of them: importing torch takes a second or more, in which
# Ctrl-C must find the command line ready.
_HOMES = {
    "edgelm.budget.plan": ("Plan",),
    "edgelm.evaluation.comparison.compare": ("compare",),
    "edgelm.evaluation.comparison.comparison": ("Comparison",),
    "edgelm.evaluation.evaluate": ("evaluate",),
    "edgelm.generation.option_table": ("ChatOptions", "GenerateOptions"),
    "edgelm.generation.request": ("Chunk", "Result", "Stats"),
    "edgelm.loading": ("load", "plan"),
    "edgelm.model": ("LanguageModel",),
    "edgelm.ops.cache": ("KVCache",),
    "edgelm.planning.setting_table": ("LoadSettings",),
    "edgelm.quantization.quantize": ("Quantized", "quantize"),
    "quant": ("Recipe", "Scheme"),
}

if not TYPE_CHECKING:  # or every misspelled name of the package would pass a type checker

    def __getattr__(name):
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return __all__
