"""Quantized weights and matrix products over them: tensors, modules and devices, no models."""

from .backends import BACKENDS, Kernel, choose, find
from .convert import pack, pack_calibrated
from .errors import KernelUnavailableError, QuantError
from .groupwise import dequantize, quantize
from .hessian import Curvature, Hessian
from .linear import QuantEmbedding, QuantLinear
from .methods import CALIBRATED_METHODS, DEFAULT_METHOD, METHODS
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
