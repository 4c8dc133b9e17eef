"""Quantized weights and matrix products over them: tensors, modules and devices, no models."""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import KernelUnavailableError, QuantError
from .names import BACKENDS, DEFAULT_METHOD

if TYPE_CHECKING:
    from .backends import Kernel, choose, find
    from .convert import pack, pack_calibrated
    from .groupwise import dequantize, quantize
    from .hessian import Curvature, Hessian
    from .linear import QuantEmbedding, QuantLinear
    from .methods import CALIBRATED_METHODS, METHODS
    from .metrics import Sqnr, sqnr_db
    from .packing import PackedWeight
    from .recipe import Recipe
    from .report import ModuleReport, Report
    from .scheme import Scheme

__all__ = [
    "BACKENDS",
    "CALIBRATED_METHODS",
    "DEFAULT_METHOD",
    "METHODS",
    "Curvature",
    "Hessian",
    "Kernel",
    "KernelUnavailableError",
    "ModuleReport",
    "PackedWeight",
    "QuantEmbedding",
    "QuantError",
    "QuantLinear",
    "Recipe",
    "Report",
    "Scheme",
    "Sqnr",
    "choose",
    "dequantize",
    "find",
    "pack",
    "pack_calibrated",
    "quantize",
    "sqnr_db",
]

# Imported when somebody asks for one of them: names.py is for programs that need no torch.
_HOMES = {
    "backends": ("Kernel", "choose", "find"),
    "convert": ("pack", "pack_calibrated"),
    "groupwise": ("dequantize", "quantize"),
    "hessian": ("Curvature", "Hessian"),
    "linear": ("QuantEmbedding", "QuantLinear"),
    "methods": ("CALIBRATED_METHODS", "METHODS"),
    "metrics": ("Sqnr", "sqnr_db"),
    "packing": ("PackedWeight",),
    "recipe": ("Recipe",),
    "report": ("ModuleReport", "Report"),
    "scheme": ("Scheme",),
}

if not TYPE_CHECKING:  # or every misspelled name of the package would pass a type checker

    def __getattr__(name):
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f".{home}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return __all__
