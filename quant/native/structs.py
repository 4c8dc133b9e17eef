"""The structs of src/api/*.h, field by field as the headers have them.

``missing()`` compares their sizes with the library's own; tests compare names and types with the
headers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_INT32, _FLOAT = ctypes.c_int32, ctypes.c_float


def fields(pointers: str, sizes: str, rest: Sequence[tuple[str, type]]) -> list[tuple[str, type]]:
    """Fields of a struct: pointers, 64-bit sizes and what follows them, in this order."""
    return [
        *((name, _POINTER) for name in pointers.split()),
        *((name, _INT64) for name in sizes.split()),
        *rest,
    ]


THREADS = ("threads", _INT32)


class Matrix(ctypes.Structure):
    """edgelm_matrix: a matrix [outputs, inputs] and how its products take activations."""

    _fields_ = fields(
        "",
        "outputs inputs",
        [
            (name, _INT32)
            for name in ["bits", "group", "scales", "zeros", "codes", "activations", "coded"]
        ],
    )


class Product(ctypes.Structure):
    """edgelm_product"""

    _fields_ = fields("matrix layout x bias out workspace", "rows x_stride out_stride", [THREADS])


class RowLookup(ctypes.Structure):
    """edgelm_row_lookup"""

    _fields_ = fields("matrix layout ids out", "count out_stride", [])


class Norm(ctypes.Structure):
    """edgelm_norm"""

    _fields_ = fields(
        "x out weight bias",
        "tokens heads size x_stride out_stride",
        [("eps", _FLOAT), THREADS],
    )


class Addition(ctypes.Structure):
    """edgelm_addition"""

    _fields_ = fields("x y", "tokens size x_stride y_stride", [THREADS])


class Unary(ctypes.Structure):
    """edgelm_unary"""

    _fields_ = fields("x out", "tokens size x_stride out_stride", [("number", _FLOAT), THREADS])


class Activation(ctypes.Structure):
    """edgelm_activation"""

    _fields_ = fields(
        "gate up out",
        "tokens size gate_stride up_stride out_stride",
        [("function", _INT32), THREADS],
    )


class Rotation(ctypes.Structure):
    """edgelm_rotation"""

    _fields_ = fields(
        "x out cosines sines positions",
        "tokens heads size pairs x_stride out_stride",
        [("interleaved", _INT32), THREADS],
    )


class Cache(ctypes.Structure):
    """edgelm_cache"""

    _fields_ = fields("keys values key_scales value_scales", "slots groups size storage", [])


class Append(ctypes.Structure):
    """edgelm_append"""

    _fields_ = [
        ("cache", Cache),
        *fields("keys values rows positions", "tokens key_stride value_stride", [THREADS]),
    ]


class Attention(ctypes.Structure):
    """edgelm_attention"""

    _fields_ = [
        ("cache", Cache),
        *fields(
            "queries out rows positions slopes workspace",
            "tokens heads query_stride out_stride window",
            [("scale", _FLOAT), ("softcap", _FLOAT), THREADS],
        ),
    ]


class Maximum(ctypes.Structure):
    """edgelm_maximum"""

    _fields_ = fields("x out", "tokens size x_stride", [THREADS])


class Sampling(ctypes.Structure):
    """edgelm_sampling"""

    _fields_ = fields(
        "logits out",
        "size top_k",
        [("uniform", ctypes.c_double), ("top_p", ctypes.c_double),
         ("temperature", _FLOAT), ("min_p", _FLOAT)],
    )  # fmt: skip


class RecordedCall(ctypes.Structure):
    """edgelm_call"""

    _fields_ = fields("operation arguments", "", [])


class RecordedTape(ctypes.Structure):
    """edgelm_tape"""

    _fields_ = fields("calls", "count", [])


class Search(ctypes.Structure):
    """edgelm_search"""

    _fields_ = fields(
        "x starts table qweight scales zeros supers errors refused",
        "rows inputs start_count",
        [
            ("first", _FLOAT),
            ("last", _FLOAT),
            *((name, _INT32) for name in ["bits", "group", "floats", "zero_kind"]),
            *((name, _INT32) for name in ["least_scale", "most_scale"]),
            THREADS,
        ],
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "edgelm_matrix": Matrix,
    "edgelm_product": Product,
    "edgelm_row_lookup": RowLookup,
    "edgelm_norm": Norm,
    "edgelm_addition": Addition,
    "edgelm_unary": Unary,
    "edgelm_activation": Activation,
    "edgelm_rotation": Rotation,
    "edgelm_cache": Cache,
    "edgelm_append": Append,
    "edgelm_attention": Attention,
    "edgelm_maximum": Maximum,
    "edgelm_sampling": Sampling,
    "edgelm_call": RecordedCall,
    "edgelm_tape": RecordedTape,
    "edgelm_search": Search,
}
