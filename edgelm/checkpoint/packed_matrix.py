"""Common parts of the readers of other tools' packed layouts: one matrix, its parts, its errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from edgelm.errors import ModelFileError, UnsupportedModelError
from quant.errors import QuantError
from quant.packing import PackedWeight
from quant.scheme import FLOATS, Scheme

READ_BYTES = 16 << 20  # rows of a packed matrix are unpacked in pieces of about this size
CODE_SIGN = 0x80  # between unsigned 8-bit codes, as files hold them, and the canonical signed ones


class PackedMatrix(Protocol):
    """A weight [N, K] stored in a folder as codes, scales and other parts of its layout."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def scheme(self) -> Scheme:
        """Scheme of its canonical form, known from headers and settings alone."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the stored tensors that make up the weight."""

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Rows [start, stop), every code and scale as stored."""


def damaged(files: SafetensorsCheckpoint, problem: str) -> ModelFileError:
    return ModelFileError(
        f"{files.path}: {problem}. The weights are damaged, incomplete, or do not belong to this "
        "config.json: fetch them again."
    )


def unsupported(files: SafetensorsCheckpoint, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{files.path} {what}. Use another quantization of the model, or the original 16-bit or "
        "32-bit model and --quant."
    )


def part(files: SafetensorsCheckpoint, name: str) -> TensorInfo:
    """Header of a tensor that a packed matrix requires."""
    if name not in files:
        raise damaged(files, f"the packed weight needs the tensor {name}, which is missing")
    return files.info(name)


def shaped(
    files: SafetensorsCheckpoint, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]
) -> TensorInfo:
    """Header of a part that must have this shape and one of these types."""
    info = part(files, name)
    if info.shape != shape or info.dtype not in dtypes:
        raise damaged(
            files,
            f"tensor {name} is {info.dtype} {list(info.shape)}, expected {' or '.join(dtypes)} "
            f"{list(shape)}",
        )
    return info


def scale_type(files: SafetensorsCheckpoint, name: str, shape: tuple[int, ...]) -> str:
    """Float type of a scales tensor, which must have ``shape``."""
    return shaped(files, name, shape, tuple(FLOATS)).dtype


def checked(files: SafetensorsCheckpoint, name: str, shape: tuple[int, int], **made: Any) -> Scheme:
    """The Scheme of these fields, if it exists and a matrix of ``shape`` can be stored in it."""
    try:
        scheme = Scheme(**made)
        scheme.check(shape)
    except QuantError as error:
        raise unsupported(
            files, f"holds {name} in a layout that is not supported: {error}"
        ) from None
    return scheme


def setting(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any], key: str, allowed: tuple[Any, ...]
) -> Any:
    """A setting of the quantization_config with few allowed values; None if it is absent."""
    value = settings.get(key)
    if not any(type(value) is type(each) and value == each for each in allowed):
        shown = ", ".join(repr(a) for a in allowed if a is not None) or "null"
        raise unsupported(
            files, f"has quantization_config with {key} = {value!r}; supported: {shown}"
        )
    return value


def row_blocks(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Split [start, stop) into pieces of about READ_BYTES, in whole words of 8 rows if possible."""
    step = max(1, READ_BYTES // row_bytes // 8) * 8
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def unpack_rows(words: Tensor, bits: int, places: tuple[int, ...] = ()) -> Tensor:
    """Unpack codes, uint8 [R * 32 / bits, W], from words int32 [R, W] of 32 / bits rows each.

    places: position of each row in a word, counted from the lowest bits up, if not in order.
    """
    per_word = 32 // bits
    codes = torch.empty(words.shape[0], per_word, words.shape[1], dtype=torch.uint8)
    for row, place in enumerate(places or range(per_word)):
        codes[:, row] = (words >> (place * bits)) & ((1 << bits) - 1)
    return codes.view(-1, words.shape[1])


def canonical_codes(unsigned: Tensor, bits: int) -> Tensor:
    """Convert unsigned codes, or zero points among them, to those of the canonical packing."""
    return unsigned if bits == 4 else (unsigned ^ CODE_SIGN).view(torch.int8)
