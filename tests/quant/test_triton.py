"""The Triton products against the definition, through Triton's interpreter where there is no card.

What the compiler makes of them for a card is test_triton_compiled.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from quant import (
    PackedWeight,
    Scheme,
    dequantize,
    find,
    pack,
    sqnr_db,
)
from quant.backends import Kernel
from quant.backends.triton_backend import FLOOR_DB
from quant.packing import unpack_codes
from quant.triton import choices, launch, layout, workspace
from quant.triton.configs import Config

pytest.importorskip("triton", reason="Triton is not installed; pip install 'edgelm[gpu]'")

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
TEXTS = (
    *("int4-g32", "int4-g64-zint", "int4-g128-zfloat", "int4-g32-zint-sbfloat16", "int4-row"),
    *("int4-row-zint", "int4-row-zfloat", "int8", "int8-zint", "int8-g32-zfloat", "int8-g64-zint"),
    *("int8-g128", "nf4", "nf4-g32-sfloat16", "fp4"),
)
# Codes with upper bits, coded scales (with one super-scale a row and with two), groups of 16, iq4.
MORE = (
    *("int4-g32-zfloat-coded", "int5-g32", "int5-g64-zfloat-coded", "int5-row-zfloat"),
    *("int6-g16-coded", "int6-g32-coded-sfloat32", "int6-g128-zint-coded", "int6-row"),
    *("int8-g16-zint-coded-sbfloat16", "iq4-g32", "iq4-g32-coded"),
)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choices, "_CHOSEN", {})
    with DEVICE:
        yield


def kernel_of(text: str) -> Kernel:
    scheme = Scheme.parse(text)
    return find(f"triton.{scheme.codebook or f'int{scheme.bits}'}")


def packed_weight(text: str, shape: tuple[int, int]) -> PackedWeight:
    return pack([(0, torch.randn(shape) * 0.02 + 0.005)], shape, Scheme.parse(text), device=DEVICE)[
        0
    ]


def odd_shape(text: str) -> tuple[int, int]:
    """Outputs and inputs that fill no tile: 3 groups, or rows that end within a word.

    Of coded scales in groups below 128, inputs with two super-scales.
    """
    scheme = Scheme.parse(text)
    group = scheme.group_size
    if scheme.coded and group != 128:
        return (13, 512)
    return (13, group * 3 if group else 152)


def worst_db(packed: PackedWeight, rows: tuple[int, ...], dtype: torch.dtype) -> float:
    """The least accurate product of so many rows, into columns of a wider buffer."""
    kernel, weights = kernel_of(str(packed.scheme)), dequantize(packed).double()
    layout, (outputs, inputs) = kernel.prepare(packed), packed.shape
    worst = float("inf")
    for count in rows:
        x = torch.randn(count, inputs).to(dtype)
        bias = torch.randn(outputs).to(dtype) if count != 3 else None
        wide = torch.full((count, outputs + 7), -1.0, dtype=dtype)
        kernel.multiply(x, layout, packed.scheme, bias, wide[:, 3:-4])
        assert bool((wide[:, :3] == -1).all()) and bool((wide[:, -4:] == -1).all())
        assert bool(wide.isfinite().all())  # of NaN, ``min`` would keep the better number
        expected = x.double() @ weights.t() + (0 if bias is None else bias.double())
        worst = min(worst, sqnr_db(expected, wide[:, 3:-4]))
    return worst


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *((text, dtype) for text in TEXTS for dtype in (torch.float32, torch.bfloat16)),
        *((text, torch.float32) for text in MORE),
        *(("int4-g32", torch.float16), ("int8", torch.float16), ("int6-g16-coded", torch.bfloat16)),
    ],
    ids=str,
)
def test_products_match_the_definition(text: str, dtype: torch.dtype) -> None:
    """In registers for up to eight rows, on the tensor cores for nineteen."""
    measured = worst_db(packed_weight(text, odd_shape(text)), (1, 3, 6, 19), dtype)
    print(f"{text} {dtype}: {measured:.1f} dB, floor {FLOOR_DB[dtype]}")
    assert measured >= FLOOR_DB[dtype]


@pytest.mark.parametrize("text", ["int4-g32-zfloat", "int8", "nf4"])
def test_many_rows_go_through_blocks_of_numbers(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_weight(text, (20, 128))
    monkeypatch.setattr(launch, "_BLOCK_ROWS", 8)
    monkeypatch.setattr(launch, "_BLOCK_BYTES", 8 * 128 * 4)  # three blocks, the last not full
    config = launch.config_for(packed.scheme, packed.shape, 130, torch.float32, DEVICE)
    measured = worst_db(packed, (130,), torch.float32)
    print(f"{text}: {measured:.1f} dB by {config.how}, floor {FLOOR_DB[torch.float32]}")
    assert config.how == "unpack" and measured >= FLOOR_DB[torch.float32]


@pytest.mark.parametrize("how", ["rows", "tile"])
@pytest.mark.parametrize("text", ["int4-g32", "int8-zfloat"])
def test_split_sums_are_whole_and_repeat(how: str, text: str) -> None:
    """Ranges that the words do not fill evenly, and a bias that is added once."""
    packed = packed_weight(text, (13, 320))
    matrix = launch.Matrix(layout.laid_out(packed), packed.scheme, packed.shape)
    x, bias = torch.randn(3, 320), torch.randn(13)
    expected = x.double() @ dequantize(packed).double().t() + bias.double()
    base = Config("rows", 1, 16, 16, 1) if how == "rows" else Config("tile", 16, 16, 16)
    for splits in (2, 4):
        outs = [torch.empty(3, 13) for _ in range(2)]
        for out in outs:
            workspace.workspace(DEVICE, 4 * 3 * 13, torch.float32).fill_(float("nan"))
            launch.run(replace(base, splits=splits), x, matrix, bias, out)
        measured = sqnr_db(expected, outs[0])
        print(f"{text} {how} in {splits}: {measured:.1f} dB, floor {FLOOR_DB[torch.float32]}")
        assert measured >= FLOOR_DB[torch.float32]
        assert torch.equal(*outs)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("text", ["int4-g32", "int8-zint", "nf4"])
def test_a_row_has_the_same_bits_in_any_company(text: str, splits: int) -> None:
    packed = packed_weight(text, (5, 192))
    matrix = launch.Matrix(layout.laid_out(packed), packed.scheme, packed.shape)
    config = Config("rows", 1, 8, 16, 1, 1, splits)
    x, alone = torch.randn(8, 192), torch.empty(8, 5)
    for row in range(8):
        launch.run(config, x[row : row + 1], matrix, None, alone[row : row + 1])
    for rows in (2, 3, 8):
        out = torch.empty(rows, 5)
        launch.run(config, x[:rows], matrix, None, out)
        assert torch.equal(out, alone[:rows]), rows
    keys = {choices.key(packed.scheme, packed.shape, rows, x.dtype) for rows in range(1, 9)}
    assert len(keys) == 1  # a measured choice never depends on the rows either


@pytest.mark.parametrize("text", (*TEXTS, *MORE))
def test_rows_read_exactly(text: str) -> None:
    shape = odd_shape(text)
    packed, kernel = packed_weight(text, shape), kernel_of(text)
    layout = kernel.prepare(packed)
    ids = torch.tensor([shape[0] - 1, 0, 7, 7])
    for dtype in (torch.float32, torch.float16):
        wide = torch.full((4, shape[1] + 2), -1.0, dtype=dtype)
        kernel.lookup(ids, layout, packed.scheme, wide[:, 1:-1])
        assert torch.equal(wide[:, 1:-1], dequantize(packed)[ids].to(dtype))
        assert bool((wide[:, 0] == -1).all()) and bool((wide[:, -1] == -1).all())


def test_ids_that_name_no_row_read_as_zeros() -> None:
    packed, out = packed_weight("int4-g32", (13, 96)), torch.full((3, 96), -1.0)
    kernel = kernel_of("int4-g32")
    kernel.lookup(torch.tensor([13, 12, -1]), kernel.prepare(packed), packed.scheme, out)
    assert bool((out[[0, 2]] == 0).all())
    assert torch.equal(out[1], dequantize(packed)[12])


def test_rows_beyond_two_to_the_31_words_are_found() -> None:
    """8 GiB of addresses, of which only the last row is ever touched."""
    scheme, inputs = Scheme.parse("int8"), 8192
    rows = 2**31 // (inputs // 4) + 1
    try:
        words = torch.empty(rows, inputs // 4, dtype=torch.int32)
    except RuntimeError as error:
        pytest.skip(f"no such address space: {error}")
    words[-1] = torch.randint(-(2**31), 2**31, (inputs // 4,), dtype=torch.int32)
    scales = torch.ones(rows, 1, dtype=torch.float16)
    out = torch.empty(1, inputs)
    find("triton.int8").lookup(
        torch.tensor([rows - 1]), {"qweight": words, "scales": scales}, scheme, out
    )
    codes = torch.stack([(words[-1] >> (8 * plane)) & 255 for plane in range(4)]).view(-1)
    assert torch.equal(out[0], codes.float() - 128)


@pytest.mark.parametrize("text", (*TEXTS, *MORE))
def test_codes_lie_where_the_geometry_says(text: str) -> None:
    shape = odd_shape(text)
    packed = packed_weight(text, shape)
    own = layout.geometry(packed.scheme, shape[1])
    tensors = layout.laid_out(packed)
    nbytes = sum(t.nbytes for t in tensors.values())
    assert nbytes == layout.nbytes(packed.scheme, shape)
    assert nbytes == packed.scheme.nbytes(shape) or not own.grouped
    codes = unpack_codes(packed.qweight, packed.scheme, torch.empty(shape, dtype=torch.int32))
    for k in range(shape[1]):
        if own.grouped:
            piece, rest = divmod(k, own.piece_stride)
            plane, j = divmod(rest, own.plane_stride)
        else:
            plane, word = divmod(k, own.plane_stride)
            piece, j = divmod(word, own.piece_stride)
        assert k == piece * own.piece_stride + plane * own.plane_stride + j
        stored = tensors["qweight"][:, piece * own.span + j] >> (own.bits * plane)
        stored &= 2**own.bits - 1
        if own.upper:
            higher = tensors["upper"][:, piece * own.span + j].int() >> own.upper_place(plane)
            stored |= (higher & (2**own.upper - 1)) << 4
        assert torch.equal(stored, codes[:, k] + (128 if own.bits == 8 else 0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("text", ["int4-g32", "int8", "nf4"])
def test_products_are_captured_and_replayed(text: str) -> None:
    """A graph takes no memory, and gives what a call gives for the numbers of the moment."""
    packed, kernel = packed_weight(text, (64, 256)), kernel_of(text)
    layout, bias = kernel.prepare(packed), torch.randn(64, dtype=torch.bfloat16)
    x = torch.randn(1, 256, dtype=torch.bfloat16)
    replayed, called = torch.empty_like(bias[None]), torch.empty_like(bias[None])
    kernel.multiply(x, layout, packed.scheme, bias, replayed)  # compiles
    held = torch.cuda.memory_allocated()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel.multiply(x, layout, packed.scheme, bias, replayed)
    assert torch.cuda.memory_allocated() == held
    for _ in range(2):
        x.normal_()
        graph.replay()
        kernel.multiply(x, layout, packed.scheme, bias, called)
        assert torch.equal(replayed, called)
