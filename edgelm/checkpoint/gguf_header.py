"""Reader of GGUF headers, which treats the file as untrusted.

A header is a chain of counts, lengths and offsets that a damaged or hostile file may set to
anything. Each of them is checked against the bytes actually present before it is used, so a
wrong one causes an error, never an allocation or a read outside the file. The layout follows
the format's description in the ggml repository (docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, NoReturn

import numpy as np

from edgelm.checkpoint.rows import opened
from edgelm.errors import ModelFileError, UnsupportedModelError

# Entries of all arrays together. Gemma's 256,000 tokens with scores, types and merges are 1.4
# million; the bound keeps a hostile gigabyte of one-byte entries from becoming Python objects.
MAX_ARRAY_ENTRIES = 1 << 22
MAX_PIECE_BYTES = 64 << 20  # of one string or array, even where the file is longer
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {
    0: Struct("<B"),
    1: Struct("<b"),
    2: Struct("<H"),
    3: Struct("<h"),
    4: Struct("<I"),
    5: Struct("<i"),
    6: Struct("<f"),
    BOOL: Struct("<B"),
    10: Struct("<Q"),
    11: Struct("<q"),
    12: Struct("<d"),
}
UINT32, UINT64 = NUMBERS[4], NUMBERS[10]


class TensorType(NamedTuple):
    """ggml type: rows are stored as blocks of ``block`` elements in ``block_bytes`` bytes each."""

    name: str
    block: int
    block_bytes: int


_LAYOUTS = """
0 F32 1 4, 1 F16 1 2, 30 BF16 1 2, 2 Q4_0 32 18, 3 Q4_1 32 20, 6 Q5_0 32 22, 7 Q5_1 32 24,
8 Q8_0 32 34, 10 Q2_K 256 84, 11 Q3_K 256 110, 12 Q4_K 256 144, 13 Q5_K 256 176, 14 Q6_K 256 210,
16 IQ2_XXS 256 66, 17 IQ2_XS 256 74, 18 IQ3_XXS 256 98, 19 IQ1_S 256 50, 20 IQ4_NL 32 18,
21 IQ3_S 256 110, 22 IQ2_S 256 82, 23 IQ4_XS 256 136, 29 IQ1_M 256 56, 34 TQ1_0 256 54,
35 TQ2_0 256 66, 39 MXFP4 32 17, 40 NVFP4 64 36
"""
TYPES = {
    int(number): TensorType(name, int(block), int(block_bytes))
    for number, name, block, block_bytes in (row.split() for row in _LAYOUTS.split(","))
}
# ggml's other types, so that an error can name them.
UNREAD_NAMES = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: its shape as torch writes it (rows first), bytes [offset, offset + nbytes)."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Everything before the weights: metadata by key, tensors by name in the file's order."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


class HeaderGoesOn(Exception):
    """The header continues beyond the bytes present: at least ``needed`` are required."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def read_header(path: Path, held: int | None = None) -> Header:
    """Parse and check a header; the file is mapped meanwhile and no page stays resident.

    held: number of bytes of the file that are present, the rest being a hole; raises HeaderGoesOn
    if the header needs more.
    Raises ModelFileError for a header that does not agree with the file and
    UnsupportedModelError for unsupported versions, byte orders and tensor types.
    """
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size < 24:
            raise ModelFileError(f"{path} has {size} bytes: too short for a GGUF file.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, held).header()


class _Reader:
    """A position in the mapped file that only ever moves forward, within the file."""

    def __init__(self, path: Path, data: mmap.mmap, held: int | None) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.held = self.size if held is None else held
        self.position = 0
        self.entries = 0

    def header(self) -> Header:
        self._version()
        tensor_count = self.count("tensors", smallest=8 + 4 + 8 + 4 + 8)
        key_count = self.count("metadata keys", smallest=8 + 4 + 1)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string("a metadata key")
            if not key or key in metadata:
                self.fail(f"metadata key {key!r} is empty or occurs twice")
            metadata[key] = self.value(self.number(UINT32), key)
        tensors: dict[str, StoredTensor] = {}
        for _ in range(tensor_count):
            tensor = self.tensor()
            if not tensor.name or tensor.name in tensors:
                self.fail(f"tensor name {tensor.name!r} is empty or occurs twice")
            tensors[tensor.name] = tensor
        return Header(metadata, self._placed(tensors, metadata))

    def fail(self, problem: str) -> NoReturn:
        raise ModelFileError(
            f"{self.path}: {problem} (at byte {self.position} of {self.size}). The file is damaged "
            "or was cut off: fetch it again."
        )

    def take(self, length: int, what: str) -> bytes:
        """The next ``length`` bytes."""
        start = self.position
        if length > min(self.size - start, MAX_PIECE_BYTES):
            self.fail(f"{what} claims {length} bytes, {self.size - start} are left")
        if start + length > self.held:
            raise HeaderGoesOn(start + length)
        self.position += length
        return self.data[start : self.position]

    def _more(self, needed: int) -> None:
        """Raise HeaderGoesOn unless the whole file is present."""
        if self.held < self.size:
            raise HeaderGoesOn(min(needed, self.size))

    def number(self, layout: Struct) -> Any:
        return layout.unpack(self.take(layout.size, "a number"))[0]

    def count(self, what: str, smallest: int) -> int:
        """A number of entries that take at least ``smallest`` bytes each."""
        count = self.number(UINT64)
        left = self.size - self.position
        if count > left // smallest:
            self.fail(f"the header claims {count} {what}, the {left} bytes left cannot hold them")
        return count

    def string(self, what: str) -> str:
        return self.text(self.take(self.number(UINT64), what), what)

    def text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def value(self, kind: int, key: str) -> Any:
        """A metadata value: number, bool, str, or a list of one of these."""
        if kind == STRING:
            return self.string(f"the value of {key!r}")
        if kind == ARRAY:
            return self.array(key)
        if kind not in NUMBERS:
            self.fail(f"metadata key {key!r} has the unknown value type {kind}")
        value = self.number(NUMBERS[kind])
        return self._bools([value], key)[0] if kind == BOOL else value

    def array(self, key: str) -> list[Any]:
        kind = self.number(UINT32)
        if kind != STRING and kind not in NUMBERS:
            self.fail(
                f"metadata key {key!r} is an array of the value type {kind}, which is not supported"
            )
        count = self.count(
            f"entries of {key!r}", smallest=8 if kind == STRING else NUMBERS[kind].size
        )
        self.entries += count
        if self.entries > MAX_ARRAY_ENTRIES:
            self.fail(f"with {key!r} the arrays have more than {MAX_ARRAY_ENTRIES} entries")
        if kind == STRING:
            return self._strings(count, key)
        layout = NUMBERS[kind]
        raw = self.take(count * layout.size, f"the array {key!r}")
        values = np.frombuffer(raw, dtype=layout.format).tolist()
        return self._bools(values, key) if kind == BOOL else values

    def _strings(self, count: int, key: str) -> list[str]:
        """Read strings of a vocabulary and its merges: the hot loop, with ``take`` inlined."""
        data, size, position = self.data, self.held, self.position
        length_at: Callable[..., tuple[int]] = UINT64.unpack_from
        raw: list[bytes] = []
        for _ in range(count):
            start = position + 8
            length = length_at(data, position)[0] if start <= size else size
            if length > size - start:
                if start > size or length <= self.size - start:
                    self._more(start + length)
                self.fail(f"entry {len(raw)} of {key!r} reaches beyond the end")
            position = start + length
            raw.append(data[start:position])
        self.position = position
        return [self.text(entry, f"an entry of {key!r}") for entry in raw]

    def _bools(self, values: list[int], key: str) -> list[bool]:
        if any(value > 1 for value in values):
            self.fail(f"metadata key {key!r} holds a truth value other than 0 and 1")
        return [value == 1 for value in values]

    def _version(self) -> None:
        if self.take(4, "the magic number") != b"GGUF":
            self.position = 0
            self.fail("this is not a GGUF file: it does not begin with 'GGUF'")
        version = self.number(UINT32)
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(
                f"{self.path} is a big-endian GGUF file; supported: little-endian."
            )
        if version not in (2, 3):
            raise UnsupportedModelError(
                f"{self.path} has GGUF version {version}; supported: 2 and 3. Convert the model "
                "again with a current llama.cpp."
            )

    def tensor(self) -> StoredTensor:
        """One entry of the tensor list; its offset is still relative to the end of the header."""
        name = self.string("a tensor's name")
        dimensions = self.number(UINT32)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self.fail(f"tensor {name!r} claims {dimensions} dimensions")
        shape = tuple(self.number(UINT64) for _ in range(dimensions))[::-1]
        while len(shape) > 1 and shape[0] == 1:  # to ggml a vector is a matrix of one row
            shape = shape[1:]
        number, offset = self.number(UINT32), self.number(UINT64)
        if number not in TYPES:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} is of type {UNREAD_NAMES.get(number, number)}; "
                f"supported: {', '.join(kind.name for kind in TYPES.values())}. Use a file in one "
                "of these types."
            )
        kind = TYPES[number]
        if min(shape) < 1 or shape[-1] % kind.block:
            self.fail(
                f"tensor {name!r} of type {kind.name} cannot have the shape {list(shape)}: its "
                f"rows are whole blocks of {kind.block} numbers"
            )
        nbytes = prod(shape) // kind.block * kind.block_bytes
        return StoredTensor(self.path, name, shape, kind, offset, nbytes)

    def _placed(
        self, tensors: dict[str, StoredTensor], metadata: dict[str, Any]
    ) -> dict[str, StoredTensor]:
        """Check the tensors and return them in file order with offsets from the file's start."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self.position // alignment) * alignment
        placed: dict[str, StoredTensor] = {}
        end, before = start, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            offset = start + tensor.offset
            if tensor.offset % alignment:
                self.fail(f"tensor {tensor.name!r} is not aligned to {alignment} bytes")
            if offset < end:
                self.fail(f"tensors {before!r} and {tensor.name!r} overlap")
            if tensor.nbytes > self.size - offset:
                self.fail(f"tensor {tensor.name!r} ends at byte {offset + tensor.nbytes}")
            end, before = offset + tensor.nbytes, tensor.name
            placed[tensor.name] = replace(tensor, offset=offset)
        return placed
