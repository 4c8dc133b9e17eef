"""Tile configs of a product: the default, and the candidates worth measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .layout import Geometry

# Maximum number of rows for the product in registers; more go to the tensor cores.
FEW_ROWS = 8
# Number of rows from which dequantizing and the vendor's product are expected to be fastest:
# reading and writing the numbers then costs a quarter of the product, whatever the rows.
_UNPACK_ROWS = 128
_MOST_SPLITS = 8
# Maximum number of float32 for split sums, in thousands of outputs: bounds the workspace.
_SPLIT_OUTPUTS = 1 << 16


@dataclass(frozen=True)
class Config:
    """Config of one product. how: "rows" (gemv), "tile" (gemm), or "unpack", which has no tiles.

    block_words: words of a row that a program takes at once. splits: ranges of a row that
    different programs add up. For "rows", a thread takes 4 words, and
    block_n * block_words / (128 * warps) outputs; of groups of 2 words it takes 2, and twice as
    many outputs.
    """

    how: str
    block_m: int = 1
    block_n: int = 1
    block_words: int = 1
    warps: int = 4
    stages: int = 1
    splits: int = 1


def bucket(rows: int) -> int:
    """Representative number of rows for ``rows``: small numbers share one, so that bits agree."""
    if rows <= FEW_ROWS:
        return FEW_ROWS
    return min(2048, 1 << (rows - 1).bit_length())


def usual(own: Geometry, outputs: int, rows: int, processors: int) -> Config:
    """Default config without a measurement: enough programs for twice the card's processors."""
    if bucket(rows) == FEW_ROWS:
        # A thread's second output halves the reads of activations; but where 2 threads share a
        # group, the compiler would then send scales through shared memory.
        block_n = 4 if own.span == 8 else 8
        splits = _splits(outputs, own.words, 128, -(-outputs // block_n), processors)
        return Config("rows", 1, block_n, 128, 4, 1, splits)
    if rows >= _UNPACK_ROWS:
        return Config("unpack")
    tiles = -(-outputs // 64) * -(-rows // 64)
    splits = _splits(outputs, own.words, 32, tiles, processors)
    return Config("tile", min(64, bucket(rows)), 64, 16, 4, 3, splits)


def candidates(own: Geometry, outputs: int, rows: int, processors: int) -> Iterator[Config]:
    """Configs that ``tuning`` times, the usual one first."""
    first = usual(own, outputs, rows, processors)
    yield first
    few = first.how == "rows"
    others = _few(outputs, own.words) if few else _many(outputs, own.words, rows)
    yield from (other for other in others if other != first)


def _few(outputs: int, words: int) -> Iterator[Config]:
    # Few enough that the compiler is done with a shape within seconds.
    for block_n, block_words, warps in (
        *((4, 128, 4), (8, 128, 4), (16, 128, 4)),
        *((8, 64, 4), (2, 128, 2), (4, 256, 4), (8, 256, 8)),
    ):
        for splits in (1, 2):
            if _may_split(outputs, words, block_words, splits):
                yield Config("rows", 1, block_n, block_words, warps, 1, splits)


def _many(outputs: int, words: int, rows: int) -> Iterator[Config]:
    yield Config("unpack")
    block_m = min(128, bucket(rows))
    for block_n, block_words, warps, stages in (
        *((64, 16, 4, 3), (64, 16, 4, 4), (64, 32, 4, 3), (128, 16, 4, 3)),
        *((128, 16, 8, 3), (128, 32, 8, 2), (128, 16, 8, 4)),
    ):
        for splits in (1, 2, 4) if rows <= 64 else (1,):
            if _may_split(outputs, words, block_words, splits):
                yield Config("tile", block_m, block_n, block_words, warps, stages, splits)


def _splits(outputs: int, words: int, block_words: int, programs: int, processors: int) -> int:
    splits = 1
    while (
        programs * splits < 2 * processors
        and splits < _MOST_SPLITS
        and _may_split(outputs, words, block_words, 2 * splits)
    ):
        splits *= 2
    return splits


def _may_split(outputs: int, words: int, block_words: int, splits: int) -> bool:
    """True if every range has at least one block, and the sums fit the memory kept for them."""
    blocks = -(-words // block_words)
    return splits == 1 or (splits <= blocks and splits * outputs <= _SPLIT_OUTPUTS)


def split_bytes(config: Config, outputs: int, rows: int) -> int:
    """Bytes of the float32 sums of all ranges."""
    return 0 if config.splits == 1 else config.splits * rows * outputs * 4


def most_split_bytes(outputs: int, rows: int) -> int:
    """Upper bound of ``split_bytes`` over all configs."""
    most = min(_MOST_SPLITS, _SPLIT_OUTPUTS // outputs)
    # Tiles split for up to 64 rows when measured, and below ``_UNPACK_ROWS`` otherwise.
    return most * min(rows, _UNPACK_ROWS) * outputs * 4 if most > 1 else 0
