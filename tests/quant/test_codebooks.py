"""nf4 and fp4 against bitsandbytes: the same codes, scales and numbers, bit for bit."""

from __future__ import annotations

import pytest
import torch

from quant import PackedWeight, Scheme, dequantize, pack, sqnr_db
from quant.codebooks import number_pairs, numbers
from quant.methods.rtn import rtn

functional = pytest.importorskip("bitsandbytes.functional")

CPU = torch.device("cpu")
# Floors in dB on Gaussian weights, a tenth under what is measured.
GAUSSIAN_FLOOR_DB = {"nf4": 20.5, "nf4-g32": 21.0, "nf4-g128": 20.2, "fp4": 18.1}


@pytest.mark.parametrize("codebook", ("nf4", "fp4"))
def test_tables_are_those_of_bitsandbytes(codebook: str) -> None:
    assert torch.equal(numbers(codebook, CPU), functional.get_4bit_type(codebook, device="cpu"))
    pairs = number_pairs(codebook, CPU)
    assert torch.equal(pairs[0x2A], numbers(codebook, CPU)[[10, 2]])


@pytest.mark.parametrize("codebook", ("nf4", "fp4"))
@pytest.mark.parametrize("magnitude", [1e-20, 0.02, 1e10])
def test_codes_scales_and_numbers_equal_bitsandbytes(codebook: str, magnitude: float) -> None:
    weights = torch.randn(61, 384) * magnitude
    weights[3, 64:128] = 0
    theirs, state = functional.quantize_4bit(weights, blocksize=64, quant_type=codebook)
    packed = rtn(weights, Scheme.parse(codebook))
    assert packed.scales is not None
    swapped = (packed.qweight << 4) | (packed.qweight >> 4)  # theirs: the even code is high
    assert torch.equal(swapped.view(-1), theirs.view(-1))
    assert torch.equal(packed.scales.view(-1), state.absmax)
    assert torch.equal(dequantize(packed), functional.dequantize_4bit(theirs, state))


@pytest.mark.parametrize("text", GAUSSIAN_FLOOR_DB)
def test_error_on_gaussian_weights(text: str) -> None:
    weights = torch.randn(61, 384) * 0.02
    packed = rtn(weights, Scheme.parse(text))
    measured = sqnr_db(weights, dequantize(packed))
    print(f"{text}: {measured:.2f} dB, floor {GAUSSIAN_FLOOR_DB[text]}")
    assert measured >= GAUSSIAN_FLOOR_DB[text]
    # Half the widest gap between neighbours, of the largest magnitude in the group.
    table = numbers(str(packed.scheme.codebook), CPU).sort().values
    assert packed.scales is not None and packed.scheme.group_size
    step = packed.scales.repeat_interleave(packed.scheme.group_size, 1)
    bound = step * float(table.diff().max()) / 2 * (1 + 1e-6)
    assert bool(((weights - dequantize(packed)).abs() <= bound).all())


def test_blocks_of_rows_pack_as_a_whole() -> None:
    weights = torch.randn(37, 128)
    scheme = Scheme.parse("nf4")
    blocks = ((start, weights[start : start + 10]) for start in range(0, 37, 10))
    packed, error_db = pack(blocks, (37, 128), scheme, "rtn")
    whole: PackedWeight = rtn(weights, scheme)
    assert torch.equal(packed.qweight, whole.qweight) and error_db is not None
