"""bitsandbytes checkpoints: nf4 and fp4 with plain or double-quantized scales, and int8 by row.

4 bits: ``weight`` holds two codes a byte, the first one high; ``weight.absmax`` a scale per block
of the flattened matrix; ``weight.quant_state.bitsandbytes__nf4`` its shape and block size as JSON.
8 bits: ``weight`` int8 [N, K] and ``SCB`` [N], 127 times the row's scale. Dettmers et al. 2023,
arXiv:2305.14314 and 2022, arXiv:2208.07339; the layouts are bitsandbytes' functional.QuantState
and nn.Linear8bitLt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor

from edgelm.checkpoint.packed_matrix import (
    PackedMatrix,
    checked,
    damaged,
    part,
    row_blocks,
    setting,
    shaped,
    unsupported,
)
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from quant.codebooks import CODEBOOKS, numbers
from quant.packing import PackedWeight, swap_nibbles
from quant.scheme import GROUP_SIZES, Scheme

_STATE = ".quant_state.bitsandbytes__"
_STATE_BYTES = 1 << 14  # the JSON has a dozen short entries
_SCALE = ".SCB"


@dataclass(frozen=True)
class Nested:
    """Quantized scales: 8-bit codes into a map, in blocks with one float each."""

    block_size: int
    offset: float


@dataclass(frozen=True)
class FourBit:
    """One nf4 or fp4 weight; block_size counts numbers of the flattened matrix.

    A block may end inside a row; its scale is then repeated for shorter groups that fit both.
    """

    files: SafetensorsCheckpoint
    name: str
    shape: tuple[int, int]
    scheme: Scheme
    block_size: int
    nested: Nested | None

    @property
    def parts(self) -> tuple[str, ...]:
        kinds = ["absmax", "quant_map", f"quant_state.bitsandbytes__{self.scheme.codebook}"]
        if self.nested:
            kinds += ["nested_absmax", "nested_quant_map"]
        return (self.name, *(f"{self.name}.{kind}" for kind in kinds))

    def rows(self, start: int, stop: int) -> PackedWeight:
        packed = PackedWeight.empty((stop - start, self.shape[1]), self.scheme)
        width = packed.qweight.shape[1]
        for first, last in row_blocks(start, stop, width):
            codes = self._bytes(first * width, last * width).view(-1, width)
            packed.qweight[first - start : last - start] = swap_nibbles(codes)
        assert packed.scales is not None and self.scheme.group_size
        begin, end = start * self.shape[1], stop * self.shape[1]
        first, last = begin // self.block_size, -(-end // self.block_size)
        scales = self._scales(first, last)
        repeated = scales.repeat_interleave(self.block_size // self.scheme.group_size)
        offset = (begin - first * self.block_size) // self.scheme.group_size
        count = packed.scales.numel()
        packed.scales.copy_(repeated[offset : offset + count].view(packed.scales.shape))
        return packed

    def _bytes(self, start: int, stop: int) -> Tensor:
        """Bytes of the codes, whatever type the file calls them (bnb_4bit_quant_storage)."""
        info = self.files.info(self.name)
        size = info.nbytes // info.shape[0]
        return self.files.read_stored(self.name, start // size, stop // size).view(torch.uint8)

    def _scales(self, start: int, stop: int) -> Tensor:
        """float32 scales of blocks [start, stop) (functional.dequantize_blockwise, plus offset)."""
        stored = self.files.read_stored(f"{self.name}.absmax", start, stop)
        if self.nested is None:
            return stored.float()
        table = self.files.read_stored(f"{self.name}.nested_quant_map")
        outer = self.files.read_stored(f"{self.name}.nested_absmax")
        block = torch.arange(start, stop) // self.nested.block_size
        return table[stored.long()] * outer[block] + self.nested.offset


@dataclass(frozen=True)
class EightBit:
    """One int8 weight."""

    files: SafetensorsCheckpoint
    name: str
    shape: tuple[int, int]
    scheme: Scheme

    @property
    def parts(self) -> tuple[str, ...]:
        module = self.name.removesuffix(".weight")
        names = (self.name, f"{module}{_SCALE}", f"{module}.weight_format")
        return tuple(name for name in names if name in self.files)

    def rows(self, start: int, stop: int) -> PackedWeight:
        codes = self.files.read_stored(self.name, start, stop)
        maxima = self.files.read_stored(self.parts[1], start, stop)
        scales = (maxima.float() / 127).view(-1, 1)
        return PackedWeight(self.scheme, (stop - start, self.shape[1]), codes, scales)


def matrices(
    files: SafetensorsCheckpoint, settings: Mapping[str, Any]
) -> Mapping[str, PackedMatrix]:
    """The packed weights by name, identified by the tensors present.

    Raises:
        UnsupportedModelError: an unsupported code, block size or layout.
        ModelFileError: a part of a weight is missing or has another shape.
    """
    found: dict[str, PackedMatrix] = {}
    for name in files.names():
        if _STATE in name:
            weight, _, codebook = name.partition(_STATE)
            found[weight] = _four_bit(files, weight, codebook)
        elif name.endswith(_SCALE):
            weight = f"{name.removesuffix(_SCALE)}.weight"
            found[weight] = _eight_bit(files, weight)
    return found


def _four_bit(files: SafetensorsCheckpoint, name: str, codebook: str) -> FourBit:
    state = _state(files, f"{name}{_STATE}{codebook}")
    if codebook not in CODEBOOKS or state.get("quant_type") != codebook:
        raise unsupported(files, f"holds {name} in the code {codebook!r}; known: nf4, fp4")
    shape, block_size = _sizes(files, name, state)
    count = shape[0] * shape[1]
    info = part(files, name)
    if info.nbytes * 2 != count or info.shape[1:] != (1,):
        raise damaged(
            files,
            f"{name} holds {info.nbytes} bytes {list(info.shape)} for {count} codes of 4 bits",
        )
    blocks = -(-count // block_size)
    shaped(files, f"{name}.quant_map", (16,), ("float32",))
    table = numbers(codebook, torch.device("cpu"))
    if not torch.allclose(files.read_stored(f"{name}.quant_map"), table, rtol=0, atol=1e-6):
        raise unsupported(files, f"has a custom table for {name} (quant_map), not {codebook}")
    nested = None
    if "nested_blocksize" in state:
        nested = Nested(_count(files, state, "nested_blocksize"), _offset(files, state))
        shaped(files, f"{name}.absmax", (blocks,), ("U8",))
        shaped(files, f"{name}.nested_quant_map", (256,), ("float32",))
        outer = -(-blocks // nested.block_size)
        shaped(files, f"{name}.nested_absmax", (outer,), ("float32",))
    else:
        shaped(files, f"{name}.absmax", (blocks,), ("float32", "float16", "bfloat16"))
    group_size = gcd(shape[1], block_size, GROUP_SIZES[-1])
    scheme = checked(
        files, name, shape, bits=4, group_size=group_size, codebook=codebook, scales="float32"
    )
    return FourBit(files, name, shape, scheme, block_size, nested)


def _state(files: SafetensorsCheckpoint, name: str) -> dict[str, Any]:
    """The JSON that bitsandbytes keeps as a tensor of bytes."""
    info = part(files, name)
    shaped(files, name, info.shape[:1], ("U8",))
    if info.nbytes > _STATE_BYTES:
        raise damaged(files, f"{name} has {info.nbytes} bytes, too many for what it should hold")
    try:
        state = json.loads(bytes(files.read_stored(name).tolist()))
    except (ValueError, RecursionError):
        raise damaged(files, f"{name} is not JSON") from None
    if not isinstance(state, dict):
        raise damaged(files, f"{name} does not hold an object")
    return state


def _sizes(
    files: SafetensorsCheckpoint, name: str, state: Mapping[str, Any]
) -> tuple[tuple[int, int], int]:
    """(shape [N, K], block size) from the JSON."""
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2:
        raise damaged(files, f"{name} should be a matrix; its quant_state gives shape {shape!r}")
    sizes = {"rows": shape[0], "inputs": shape[1]}
    rows, inputs = (_count(files, sizes, key) for key in sizes)
    return (rows, inputs), _count(files, state, "blocksize")


def _count(files: SafetensorsCheckpoint, state: Mapping[str, Any], key: str) -> int:
    value = state.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise damaged(files, f"a quant_state has {key} = {value!r}, expected a count")
    return value


def _offset(files: SafetensorsCheckpoint, state: Mapping[str, Any]) -> float:
    value = state.get("nested_offset")
    if not isinstance(value, float | int) or not abs(value) < torch.finfo(torch.float32).max:
        raise damaged(files, f"a quant_state has nested_offset = {value!r}, expected a number")
    return float(value)


def _eight_bit(files: SafetensorsCheckpoint, name: str) -> EightBit:
    shape = part(files, name).shape
    if len(shape) != 2:
        raise damaged(files, f"{name} has shape {list(shape)}, expected a matrix")
    shaped(files, name, shape, ("I8",))
    module = name.removesuffix(".weight")
    shaped(files, f"{module}{_SCALE}", shape[:1], ("float32", "float16", "bfloat16"))
    if f"{module}.weight_format" in files:
        shaped(files, f"{module}.weight_format", (), ("U8",))
        setting(
            files, {"weight_format": int(files.read_stored(f"{module}.weight_format"))},
            "weight_format", (0,),
        )  # fmt: skip
    rows, inputs = shape
    return EightBit(
        files, name, (rows, inputs), checked(files, name, (rows, inputs), bits=8, scales="float32")
    )
