"""``flax_model.msgpack`` of BLOOM: a tree of arrays, whose kernels are the transposed weights.

Only what flax.serialization writes is parsed: maps with text keys, and arrays as extension 1, each
of them again msgpack: (shape, dtype, bytes). Arrays are read on demand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.rows import fill, fill_columns, opened, span
from edgelm.checkpoint.safetensors_files import AGAIN, read_json
from edgelm.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from quant.packing import PackedWeight

SINGLE = "flax_model.msgpack"
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
CHUNKED = "__msgpack_chunked_array__"  # flax cuts arrays above a gigabyte into flat pieces
MAX_TEXT_BYTES = 1 << 10
MAX_DEPTH = 16
# Flax's names of a module's arrays -> (transformers' name, whether it is stored transposed)
KINDS = {
    "kernel": ("weight", True),
    "embedding": ("weight", False),
    "scale": ("weight", False),
    "bias": ("bias", False),
}


@dataclass(frozen=True)
class _Array:
    """Shape and type in the file, and the pieces (offset, bytes) that hold its numbers."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, int], ...]


class FlaxCheckpoint:
    """A folder with config.json and flax_model.msgpack."""

    format = "flax"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.config = read_json(path / "config.json")
        if self.config.get("model_type") != "bloom":
            raise UnsupportedModelError(
                f"{path} has Flax weights of {self.config.get('model_type')!r}; only 'bloom' "
                "is supported. Use the model's safetensors files."
            )
        self._file = path / SINGLE
        with opened(self._file) as file:
            tree = _Parser(file, self._file).tree()
        self._arrays: dict[str, tuple[_Array, bool]] = {}
        for keys, array in _leaves(tree):
            kind, transposed = KINDS.get(keys[-1], (None, False))
            if kind is None or (transposed and len(array.shape) != 2):
                raise ModelFileError(
                    f"{self._file} holds {'/'.join(keys)} {list(array.shape)}, which no BLOOM has."
                )
            self._arrays[".".join((*keys[:-1], kind))] = (array, transposed)

    @property
    def files(self) -> list[Path]:
        return [self._file]

    def names(self) -> list[str]:
        return list(self._arrays)

    def info(self, name: str) -> TensorInfo:
        array, transposed = self._arrays[name]
        shape = array.shape[::-1] if transposed else array.shape
        nbytes = sum(length for _, length in array.pieces)
        return TensorInfo(shape, array.dtype, None, nbytes)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) in the stored float dtype; of a kernel, columns of the file."""
        array, transposed = self._arrays[name]
        dtype, shape = DTYPES[array.dtype], self.info(name).shape
        start, stop = span(shape[0] if shape else 1, start, stop, name)
        with opened(self._file) as file:
            if transposed:
                out = torch.empty(shape[1], stop - start, dtype=dtype)
                offset, width = array.pieces[0][0], shape[0] * dtype.itemsize
                fill_columns(file, offset, width, start * dtype.itemsize, out, self._file)
                return out.t().contiguous()
            out = torch.empty((stop - start, *shape[1:]) if shape else (), dtype=dtype)
            done = start * prod(shape[1:]) * dtype.itemsize
            flat = out.view(-1).view(torch.uint8)
            for offset, length in array.pieces:
                taken = flat[: max(0, min(length - done, len(flat)))]
                fill(file, offset + done, taken, self._file)
                flat, done = flat[len(taken) :], max(0, done - length)
        return out

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Raise: these files hold floats, as ``info`` says."""
        raise TypeError(f"{name} is stored as {self.info(name).dtype}, not as packed integers")


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Array]]:
    """Arrays with their paths; an optional root ``params`` is left out."""
    if isinstance(tree, _Array):
        yield keys, tree
        return
    if not isinstance(tree, dict):
        raise ModelFileError(f"{'/'.join(keys)} in {SINGLE} is {tree!r}, not an array. {AGAIN}")
    for key, branch in tree.items():
        yield from _leaves(branch, keys if not keys and key == "params" else (*keys, key))


class _Parser:
    """The parts of msgpack that flax writes; every length is checked against the file."""

    def __init__(self, file: RawIOBase, path: Path) -> None:
        self.file, self.path = file, path
        self.size = path.stat().st_size

    def tree(self) -> Any:
        root = self._value(0)
        if not isinstance(root, dict) or self.file.tell() != self.size:
            raise self._damaged("is not a map of arrays")
        return root

    def _value(self, depth: int) -> Any:
        """The next value: a map, an array, a text, or a count."""
        tag = self._number(1)
        if 0x80 <= tag <= 0x8F or tag in (0xDE, 0xDF):
            return self._map(tag & 15 if tag < 0xDE else self._number(2 << (tag - 0xDE)), depth)
        if 0xC7 <= tag <= 0xC9 or 0xD4 <= tag <= 0xD8:
            length = 1 << (tag - 0xD4) if tag >= 0xD4 else self._number(1 << (tag - 0xC7))
            return self._array(length)
        if tag == 0xC3:
            return True
        return self._scalar(tag)

    def _scalar(self, tag: int) -> str | int:
        """A text or a count."""
        if 0xA0 <= tag <= 0xBF or 0xD9 <= tag <= 0xDB:
            return self._text(tag & 31 if tag < 0xD9 else self._number(1 << (tag - 0xD9)))
        if tag < 0x80:
            return tag
        if 0xCC <= tag <= 0xCF:
            return self._number(1 << (tag - 0xCC))
        raise self._damaged(f"holds a value of kind {tag:#x} at byte {self.file.tell() - 1}")

    def _map(self, count: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._damaged("is nested too deeply")
        entries: dict[str, Any] = {}
        for _ in range(count):  # each takes bytes: a lie about the count ends at the file's end
            key = self._value(depth)
            value = self._value(depth + 1)
            if not isinstance(key, str) or key in entries:
                raise self._damaged(f"has the key {key!r} twice or where a text must be")
            entries[key] = value
        if CHUNKED in entries:
            return self._joined(entries)
        return entries

    def _array(self, length: int) -> _Array:
        """Extension 1: (shape, dtype, bytes)."""
        kind, end = self._number(1), self.file.tell() + length
        if kind != 1 or self._number(1) != 0x93:
            raise self._damaged(f"holds an extension of kind {kind}, not an array")
        tag = self._number(1)
        if not 0x90 <= tag <= 0x9F:
            raise self._damaged("has an array without a shape")
        sizes = [self._scalar(self._number(1)) for _ in range(tag & 15)]
        shape = tuple(size for size in sizes if isinstance(size, int))
        dtype = str(self._scalar(self._number(1)))
        if dtype not in DTYPES or len(shape) != len(sizes):
            known = ", ".join(DTYPES)
            raise self._damaged(f"has an array {dtype!r} {sizes}; supported dtypes: {known}")
        tag = self._number(1)
        if not 0xC4 <= tag <= 0xC6:
            raise self._damaged("has an array without bytes")
        nbytes, begin = self._number(1 << (tag - 0xC4)), self.file.tell()
        if begin + nbytes != end or nbytes != prod(shape) * DTYPES[dtype].itemsize:
            raise self._damaged(f"has {nbytes} bytes for an array {dtype} {list(shape)}")
        if end > self.size:
            raise self._damaged("was cut off")
        self.file.seek(end)
        return _Array(shape, dtype, ((begin, nbytes),))

    def _joined(self, entries: dict[str, Any]) -> _Array:
        """An array stored in flat pieces."""
        shape, chunks = (self._in_order(entries.get(key)) for key in ("shape", "chunks"))
        sound = chunks and all(isinstance(c, _Array) and c.dtype == chunks[0].dtype for c in chunks)
        if not sound or not all(type(size) is int for size in shape):
            raise self._damaged("has an array in pieces that do not belong together")
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        nbytes = sum(length for _, length in pieces)
        if nbytes != prod(shape) * DTYPES[chunks[0].dtype].itemsize:
            raise self._damaged(f"has {nbytes} bytes in pieces for an array {shape}")
        return _Array(tuple(shape), chunks[0].dtype, pieces)

    def _in_order(self, entries: Any) -> list[Any]:
        keys = [str(index) for index in range(len(entries))] if isinstance(entries, dict) else []
        if not isinstance(entries, dict) or list(entries) != keys:
            raise self._damaged("has an array in pieces without their order")
        return list(entries.values())

    def _text(self, length: int) -> str:
        if length > MAX_TEXT_BYTES:
            raise self._damaged(f"has a name of {length} bytes")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            raise self._damaged("has a name that is not a text") from None

    def _number(self, nbytes: int) -> int:
        return int.from_bytes(self._bytes(nbytes), "big")

    def _bytes(self, count: int) -> bytes:
        data = self.file.read(count)
        if data is None or len(data) != count:
            raise self._damaged("was cut off")
        return data

    def _damaged(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path} {problem}. {AGAIN}")
