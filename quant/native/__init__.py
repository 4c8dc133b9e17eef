"""The native library: found, checked and called through ctypes.

Pointers go in as integers; what they must point to is written in src/api/edgelm_native.h.

Modules:
    library_file: where the library lies, and whether it is of the sources at hand.
    structs: mirrors of the C structs. products, ops: calls of products and of a step's operations.
    tape: recorded calls, run again as one. search: rows quantized.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from ..errors import KernelUnavailableError
from ..scheme import Scheme
from . import library_file, structs

# Must equal EDGELM_ABI in src/api/edgelm_native.h.
ABI = 5
FLOATS = {"float16": 0, "bfloat16": 1, "float32": 2}
ZEROS = {"none": 0, "int": 1, "float": 2}
CODES = {None: 0, "nf4": 1, "fp4": 2, "iq4": 4} | dict.fromkeys(FLOATS, 3)
# The operations of src/api/edgelm_ops.h, each void(const void* struct).
OPERATIONS = (
    *("rms_norm", "layer_norm", "add", "scale", "softcap", "activate", "rotate", "store"),
    *("attend", "argmax", "sample", "multiply", "lookup", "replay"),
)


@cache
def matrix(scheme: Scheme, shape: tuple[int, int], exact: bool = False) -> ctypes.c_void_p:
    """Pointer to the struct that describes a matrix of `shape` [N, K]; kept for good.

    exact: activations are not rounded; matrices of floats never round them.
    """
    struct = structs.Matrix(
        *(*shape, scheme.bits, scheme.group_size or 0),
        FLOATS[str(scheme.codebook) if scheme.is_float else scheme.scales],
        *(ZEROS[scheme.zeros], CODES[scheme.codebook], int(exact), int(scheme.coded)),
    )
    pointer = ctypes.cast(ctypes.pointer(struct), ctypes.c_void_p)
    pointer.struct = struct  # type: ignore[attr-defined]  # keeps the memory
    return pointer


@cache
def missing() -> str | None:
    """Reason why no library can be called, in words; None if one can."""
    file = path()
    if file is None:
        return library_file.absence(__path__)
    try:
        library = ctypes.CDLL(str(file))
        found = library.edgelm_abi()
    except (OSError, AttributeError) as error:
        return f"{file.name} cannot be loaded ({error}); reinstall edgelm"
    if found != ABI:
        return f"{file.name} is of version {found}, this package needs {ABI}; reinstall edgelm"
    return _other_struct(library, file.name)


def _other_struct(library: ctypes.CDLL, file: str) -> str | None:
    """A struct whose size differs in the library, in words; it would read beyond ours."""
    for name, struct in structs.STRUCTS.items():
        found, own = library.edgelm_struct_bytes(name.encode()), ctypes.sizeof(struct)
        if found != own:
            return f"{file} has {found} bytes in {name}, this package has {own}; reinstall edgelm"
    return None


@cache
def library() -> ctypes.CDLL:
    """The library with its functions' types declared and the instruction set chosen.

    Only where `missing()` is None. Raises KernelUnavailableError if EDGELM_ISA names an instruction
    set that this CPU lacks.
    """
    own = ctypes.CDLL(str(path()))
    pointer, int64, int32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "edgelm_isa": (ctypes.c_char_p, [int32]),
        "edgelm_use_isa": (int32, [ctypes.c_char_p]),
        "edgelm_layout_bytes": (int64, [pointer]),
        "edgelm_workspace_bytes": (int64, [pointer, int64]),
        "edgelm_pack": (None, [pointer] * 6 + [int32]),
        "edgelm_attention_bytes": (int64, [pointer]),
        "edgelm_quantize": (None, [pointer]),
    }
    signatures |= {f"edgelm_{name}": (None, [pointer]) for name in OPERATIONS}
    for name, (result, arguments) in signatures.items():
        function = getattr(own, name)
        function.restype, function.argtypes = result, arguments
    wanted = os.environ.get("EDGELM_ISA")
    if wanted:
        _use(own, wanted)
    return own


def isas() -> list[str]:
    """The instruction sets that this CPU has and the library knows, slowest first."""
    return _isas(library())


def use_isa(name: str) -> None:
    """Run products with the instruction set `name` from now on, else KernelUnavailableError."""
    _use(library(), name)


def threads() -> int:
    """Threads that a product may use: as many as torch's."""
    return torch.get_num_threads()


def _use(own: ctypes.CDLL, name: str) -> None:
    if not own.edgelm_use_isa(name.encode()):
        raise KernelUnavailableError(
            f"EDGELM_ISA={name!r}: this CPU and library have {', '.join(_isas(own))}; name one of "
            "them, or unset the variable for the fastest"
        )


def _isas(own: ctypes.CDLL) -> list[str]:
    names: list[str] = []
    while (name := own.edgelm_isa(len(names))) is not None:
        names.append(name.decode())
    return names


@cache
def path() -> Path | None:
    """The library that belongs to this package: see library_file."""
    return library_file.find(__path__)
