"""Packing block by block, and the report."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from quant import ModuleReport, QuantError, Report, Scheme, Sqnr, dequantize, pack, sqnr_db
from quant.convert import _BLOCK_ELEMENTS

INT4 = Scheme.parse("int4-g32")


def blocks(weights: Tensor, *starts: int) -> list[tuple[int, Tensor]]:
    stops = (*starts[1:], weights.shape[0])
    return [(start, weights[start:stop]) for start, stop in zip(starts, stops, strict=True)]


@pytest.mark.parametrize(
    "text", ["int4-g32", "int4-g32-zfloat", "int8", "int8-g64-zint", "float16"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_give_what_the_whole_gives(text: str, dtype: torch.dtype) -> None:
    scheme = Scheme.parse(text)
    shape = (_BLOCK_ELEMENTS // 128 + 61, 128)
    weights = torch.randn(shape).to(dtype)
    whole, whole_db = pack(blocks(weights, 0), shape, scheme)
    split, split_db = pack(blocks(weights, 0, 1, 30), shape, scheme)
    for name, tensor in whole.tensors().items():
        assert torch.equal(split.tensors()[name], tensor)
    assert (whole_db is None) == (split_db is None)
    if whole_db is not None and split_db is not None:
        measured = sqnr_db(weights, dequantize(whole))
        print(f"{text}: {whole_db:.3f} dB, in blocks {split_db:.3f}, directly {measured:.3f}")
        assert whole_db == pytest.approx(measured, abs=1e-3)
        assert split_db == pytest.approx(measured, abs=1e-3)


def test_exact_storage_has_no_error() -> None:
    weights = torch.randn(5, 32).bfloat16()
    for text in ("bfloat16", "float32"):
        packed, error_db = pack(blocks(weights, 0), (5, 32), Scheme.parse(text))
        assert error_db is None
        assert torch.equal(dequantize(packed), weights.float())


def test_the_source_is_left_alone() -> None:
    weights = torch.randn(5, 32)
    before = weights.clone()
    pack(blocks(weights, 0), (5, 32), INT4)
    assert torch.equal(weights, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(0, torch.zeros(3, 32))], "got 3 rows for a matrix of 4"),
        ([(0, torch.zeros(5, 32))], "rows up to 5 for a matrix of 4"),
        ([(0, torch.zeros(2, 32)), (3, torch.zeros(1, 32))], "from row 2 on"),
        ([(0, torch.zeros(4, 64))], r"expected rows \[n, 32\]"),
        ([(0, torch.zeros(4))], r"got \[4\]"),
    ],
)
def test_rows_must_cover_the_matrix_once(given: list[tuple[int, Tensor]], message: str) -> None:
    with pytest.raises(QuantError, match=message):
        pack(given, (4, 32), INT4)


def test_bad_numbers_and_methods_are_refused() -> None:
    weights = torch.full((4, 32), 1e6)
    with pytest.raises(QuantError, match="beyond float16"):
        pack(blocks(weights, 0), (4, 32), Scheme.parse("float16"))
    weights[3, 3] = float("nan")
    for text in ("float32", "int8", "int4-g32"):
        with pytest.raises(QuantError, match="NaN"):
            pack(blocks(weights, 0), (4, 32), Scheme.parse(text))
    with pytest.raises(QuantError, match="unknown method 'magic'; allowed: rtn"):
        pack(blocks(weights, 0), (4, 32), INT4, method="magic")


def test_sqnr_adds_up() -> None:
    exact = torch.randn(8, 100)
    near = exact + 0.01 * torch.randn(8, 100)
    ratio = Sqnr()
    ratio.add(exact[:3], near[:3])
    ratio.add(exact[3:], near[3:])
    assert ratio.db == pytest.approx(sqnr_db(exact, near), abs=1e-4)
    assert ratio.db == pytest.approx(40, abs=1)
    assert sqnr_db(exact, exact) == float("inf")
    assert sqnr_db(torch.zeros(2), torch.ones(2)) == -float("inf")


def test_report_counts_bits_and_is_json() -> None:
    q = ModuleReport("layers.0.attn.q", INT4, (64, 64), 2400, 21.5, "padded")
    head = ModuleReport("head", Scheme(8), (10, 64), 660, None, "reference", "kept as in the file")
    report = Report([q, head], other_bytes=256, other_stored_bytes=128, other_elements=64)
    assert report.nbytes == 2400 + 660 + 256
    assert report.bits_per_weight == (2304 + 660 + 128) * 8 / (4096 + 640 + 64)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["modules"][1] == {
        "name": "head",
        "scheme": "int8",
        "shape": [10, 64],
        "nbytes": 660,
        "error_db": None,
        "kernel": "reference",
        "note": "kept as in the file",
    }
    assert Report().bits_per_weight == 0
