"""Kernel launches: products and row lookups over a matrix in the layout of ``layout``.

Nothing here reads numbers on the device or allocates memory while a step runs, so every call can
be captured in a CUDA graph after its first run, when Triton compiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..codebooks import CODEBOOKS, numbers
from ..float_product import linear
from ..scheme import Scheme
from . import choices, workspace
from .configs import FEW_ROWS, Config, most_split_bytes, split_bytes, usual
from .layout import geometry

# Number of weights dequantized at once: few enough for the L2 cache of a large card, enough rows
# for the vendor's product to use the card fully.
_BLOCK_BYTES = 64 * 2**20
_BLOCK_ROWS = 256  # blocks are multiples of this number of rows, as the vendor's tiles are
_ROWS_AT_ONCE = 4  # rows of activations that a program of gemv holds


@dataclass(frozen=True)
class Matrix:
    """A matrix [N, K] in memory; fields are named as the kernels' arguments."""

    tensors: dict[str, Tensor]
    scheme: Scheme
    shape: tuple[int, int]

    def parts(self) -> dict[str, Any]:
        """The arguments that every kernel has in common."""
        own, scheme = geometry(self.scheme, self.shape[1]), self.scheme
        device = self.tensors["qweight"].device
        return {
            "words": self.tensors["qweight"],
            "upper": self.tensors.get("upper"),
            "scales": self.tensors["scales"],
            "zeros": self.tensors.get("zeros"),
            "supers": self.tensors.get("supers"),
            "table": numbers(scheme.codebook, device) if scheme.codebook in CODEBOOKS else None,
            "outputs": self.shape[0],
            "inputs": self.shape[1],
            "pieces": own.pieces,
            "BITS": own.bits,
            "UPPER": own.upper,
            "SPAN": own.span,
            "GROUPED": own.grouped,
            "ZEROS": scheme.zeros,
            "SHARED": own.groups // scheme.super_groups(own.inputs) if scheme.coded else 0,
        }


def multiply(x: Tensor, matrix: Matrix, bias: Tensor | None, out: Tensor) -> None:
    """Multiply x [M, K] by the transposed matrix, plus bias [N], into out [M, N].

    Uses the config chosen for this product; each row of x and of out must be contiguous.
    """
    config = config_for(matrix.scheme, matrix.shape, len(x), x.dtype, x.device)
    run(config, x, matrix, bias, out)


def config_for(
    scheme: Scheme, shape: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device
) -> Config:
    """The measured config, or the usual one without a measurement."""
    found = choices.chosen(choices.key(scheme, shape, rows, dtype))
    return found or usual(geometry(scheme, shape[1]), shape[0], rows, processors(device))


def run(config: Config, x: Tensor, matrix: Matrix, bias: Tensor | None, out: Tensor) -> None:
    """Run the product with the tiles of ``config``."""
    # Triton launches on the current device, whichever the tensors are on.
    with torch.cuda.device_of(x):
        if config.how == "unpack":
            _unpack_and_multiply(x, matrix, bias, out)
        else:
            _launch_product(config, x, matrix, bias, out)


def _launch_product(
    config: Config, x: Tensor, matrix: Matrix, bias: Tensor | None, out: Tensor
) -> None:
    from . import gemm, gemv

    rows, outputs = out.shape
    split = config.splits > 1
    needed = split_bytes(config, outputs, rows) // 4
    partial = workspace.workspace(x.device, needed, torch.float32) if split else None
    blocks = -(-outputs // config.block_n)
    shared = matrix.parts() | {
        "x": x,
        "bias": bias,
        "out": out,
        "partial": partial,
        "rows": rows,
        "one": 1,
        "x_stride": x.stride(0),
        "out_stride": out.stride(0),
        "SPLITS": config.splits,
        "num_warps": config.warps,
        # Pipelined, each number of a codebook would take a separate path through shared memory.
        "num_stages": 1 if matrix.scheme.codebook else config.stages,
    }
    if config.how == "rows":
        held = min(_ROWS_AT_ONCE, 1 << (rows - 1).bit_length())
        pieces = max(1, config.block_words // shared["SPAN"])
        each = min(4, shared["SPAN"])  # words of a thread
        lanes = min(config.block_n, max(1, 32 * each * config.warps // config.block_words))
        sizes = {"ROWS": held, "LANES": lanes, "EACH": config.block_n // lanes, "PIECES": pieces}
        steps = _steps(shared["pieces"], pieces, config.splits)
        grid = (blocks * -(-rows // held), config.splits)
        gemv.multiply_rows[grid](**shared, **sizes, STEPS=steps)
    else:
        steps = _steps(shared["pieces"] * shared["SPAN"], config.block_words, config.splits)
        grid = (blocks * -(-rows // config.block_m), config.splits)
        sizes = {"BLOCK_M": config.block_m, "BLOCK_W": config.block_words, "STEPS": steps}
        gemm.multiply_tile[grid](**shared, **sizes, BLOCK_N=config.block_n, COMPUTE=_operands(x))
    if partial is not None:
        sums = (partial, bias, out, rows, outputs, out.stride(0))
        gemv.add_splits[(-(-outputs // 256), rows)](*sums, SPLITS=config.splits, BLOCK_N=256)


def _steps(count: int, block: int, splits: int) -> int:
    """Blocks in each of ``splits`` ranges over ``count`` pieces or words."""
    blocks = -(-count // block)
    return -(-blocks // splits)


def _unpack_and_multiply(x: Tensor, matrix: Matrix, bias: Tensor | None, out: Tensor) -> None:
    outputs, inputs = matrix.shape
    step = min(_block_rows(inputs, x.dtype.itemsize), outputs)
    block = workspace.workspace(x.device, step * inputs, x.dtype).view(step, inputs)
    for start in range(0, outputs, step):
        weight = block[: min(step, outputs - start)]
        _read(None, start, matrix, weight)
        part = None if bias is None else bias[start : start + len(weight)]
        linear(x, weight, part, out[:, start : start + len(weight)])


def lookup(ids: Tensor, matrix: Matrix, out: Tensor) -> None:
    """Copy rows ``ids`` (int64 [n]) into out [n, K]."""
    with torch.cuda.device_of(out):
        _read(ids, 0, matrix, out)


def _read(ids: Tensor | None, first: int, matrix: Matrix, out: Tensor) -> None:
    from . import rows

    words = geometry(matrix.scheme, matrix.shape[1]).words
    block = min(512, 1 << (words - 1).bit_length())
    place = {"ids": ids, "first": first, "out": out, "out_stride": out.stride(0)}
    # Products and sums rounded apart, as the reference rounds them.
    apart = {"enable_fp_fusion": False, "num_warps": max(1, min(4, block // 128))}
    grid = (len(out), -(-words // block))
    rows.read_rows[grid](**matrix.parts(), **place, **apart, BLOCK_W=block)


def workspace_bytes(shape: tuple[int, int], rows: int) -> int:
    """Upper bound of the memory that products with up to ``rows`` rows of activations share."""
    outputs, inputs = shape
    splits = most_split_bytes(outputs, rows)
    if rows <= FEW_ROWS:
        return splits
    return max(splits, min(_block_rows(inputs, 4), outputs) * inputs * 4)


def _block_rows(inputs: int, itemsize: int) -> int:
    """Number of rows of weights that are dequantized at once."""
    return max(1, _BLOCK_BYTES // (inputs * itemsize * _BLOCK_ROWS)) * _BLOCK_ROWS


def _operands(x: Tensor) -> Any:
    import triton.language as tl

    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return tl.float32  # the interpreter would multiply bfloat16's bits as if they were integers
    return getattr(tl, str(x.dtype).removeprefix("torch."))


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of the card; one where kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
