"""What Python says of the native library's headers: the same structs and numbers."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

from quant import native
from quant.codebooks import CODEBOOKS
from quant.native import ops, structs

API = Path(__file__).parent.parent.parent / "quant" / "native" / "src" / "api"
HEADERS = ("native", "ops", "search")
TEXT = "".join((API / f"edgelm_{name}.h").read_text(encoding="utf-8") for name in HEADERS)

TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "edgelm_cache": structs.Cache,
}


def header_structs() -> dict[str, list[tuple[str, type]]]:
    """Name and type of every field of the headers' structs, in order."""
    found = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", TEXT, re.DOTALL | re.MULTILINE):
        lines = [line.split("//")[0].strip().rstrip(";") for line in body.splitlines()]
        found[name] = [field(line) for line in lines if line]
    return found


def field(line: str) -> tuple[str, type]:
    if (function := re.fullmatch(r"void \(\*(\w+)\)\(.*\)", line)) is not None:
        return function[1], ctypes.c_void_p
    kind, name = line.removeprefix("const ").split()
    return name, ctypes.c_void_p if kind.endswith("*") else TYPES[kind]


def constant(name: str) -> int:
    found = re.search(rf"\b{name} (?:= )?(\d+)", TEXT)
    assert found is not None, f"{name} is not in the headers"
    return int(found[1])


def test_structs_are_those_of_the_headers() -> None:
    expected = header_structs()
    assert expected.keys() == structs.STRUCTS.keys()
    for name, fields in expected.items():
        assert list(structs.STRUCTS[name]._fields_) == fields, name


def test_numbers_are_those_of_the_headers() -> None:
    assert constant("EDGELM_ABI") == native.ABI
    functions = ("EDGELM_SILU", "EDGELM_GELU_TANH", "EDGELM_RELU_SQUARED")
    assert list(ops.FUNCTIONS.values()) == [constant(name) for name in functions]
    storages = {torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT32", torch.int8: "INT8"}
    assert {k: constant(f"EDGELM_KV_{name}") for k, name in storages.items()} == ops.STORAGES
    assert {k: constant(f"EDGELM_{k.upper()}") for k in native.FLOATS} == native.FLOATS
    assert {k: constant(f"EDGELM_ZEROS_{k.upper()}") for k in native.ZEROS} == native.ZEROS
    books = {None: "INTEGERS"} | {book: book.upper() for book in CODEBOOKS}
    books |= dict.fromkeys(native.FLOATS, "FLOATS")
    assert {k: constant(f"EDGELM_{name}") for k, name in books.items()} == native.CODES


def test_operations_are_those_of_the_header() -> None:
    text = (API / "edgelm_ops.h").read_text(encoding="utf-8")
    for name in native.OPERATIONS:
        assert f"EDGELM_API void edgelm_{name}(const void* " in text
    assert text.count("EDGELM_API void ") == len(native.OPERATIONS)
    assert text.count("EDGELM_API") == len(native.OPERATIONS) + 1


@pytest.mark.skipif(native.missing() is not None, reason=f"no native library: {native.missing()}")
def test_a_struct_of_another_size_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(ctypes.Structure):
        _fields_ = structs.Attention._fields_[:-4]

    assert native.missing.__wrapped__() is None
    monkeypatch.setitem(structs.STRUCTS, "edgelm_attention", Short)
    reason = native.missing.__wrapped__()
    sizes = ctypes.sizeof(structs.Attention), ctypes.sizeof(Short)
    assert f"has {sizes[0]} bytes in edgelm_attention, this package has {sizes[1]}" in str(reason)
    assert "reinstall edgelm" in str(reason)


@pytest.mark.skipif(native.missing() is not None, reason=f"no native library: {native.missing()}")
def test_a_struct_that_the_library_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(structs.STRUCTS, "edgelm_beyond", structs.Norm)
    assert "has 0 bytes in edgelm_beyond" in str(native.missing.__wrapped__())
