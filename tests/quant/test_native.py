"""The native library: every instruction set against the reference, and rows that stay theirs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quant import PackedWeight, Scheme, choose, dequantize, native, pack, sqnr_db
from quant.backends import find
from quant.backends.kernel import Kernel
from quant.backends.native_backend import ACTIVATIONS_FLOOR_DB

CPU = torch.device("cpu")
ISAS = native.isas() if native.missing() is None else []
GROUPS = ("int4-g32", "int4-g64", "int4-g128", "int4-row", "int8", "int8-g32", "int8-g128")
GROUPS += ("int5-g32", "int5-row", "int6-g16", "int6-row")
TEXTS = [group + zeros for group in GROUPS for zeros in ("", "-zint", "-zfloat")]
TEXTS += ["int4-g16", "int5-g128-sfloat32", "int6-g64-zfloat-sbfloat16", "int8-g16"]
TEXTS += ["int4-g32-sbfloat16", "int4-g64-zfloat-sfloat32", "int8-sfloat32", "int8-g64-sbfloat16"]
TEXTS += ["nf4", "nf4-g32-sfloat16", "nf4-g128-sbfloat16", "fp4", "fp4-g128"]
CODED = [
    *("int4-g32-zfloat-coded", "int5-g32-zfloat-coded", "int6-g16-coded", "iq4-g32-coded"),
    *("int4-g16-coded", "int5-g64-zint-coded", "int6-g128-zfloat-coded-sbfloat16"),
    *("int8-g32-zfloat-coded-sfloat32", "nf4-g32-coded"),
]
TEXTS += ["iq4-g32", "iq4-g16-sbfloat16", "iq4-g128-sfloat32", *CODED]
FLOATS = ["float16", "bfloat16", "float32"]
# Outputs that fill no panel of 32; inputs that are no multiple of 256, and for schemes with one
# scale per row none of 32 either, nor of 8 where codes may have such rows.
OUTPUTS, GROUPED_INPUTS, ROW_INPUTS = 77, 384, {4: 322, 5: 328, 6: 324, 8: 322}
# What rounding the inputs that do not stand out leaves, see ACTIVATIONS_FLOOR_DB.
OUTLIERS_FLOOR_DB = 42.0
# What float32 sums leave: 117 dB where zeros are floats, which cancel, and above 125 elsewhere.
EXACT_FLOOR_DB = 112.0
# What is left of nf4's numbers as multiples of 1 / 32448.
CODEBOOK_FLOOR_DB = 90.0
BLOCKS = 768  # three blocks of 256 inputs, each with super-scales of its own

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this CPU in turn; tests/native/ emulates others."""
    native.use_isa(request.param)
    yield request.param
    native.use_isa(native.isas()[-1])


def matrix(text: str, outputs: int = OUTPUTS, inputs: int = 0) -> PackedWeight:
    scheme = Scheme.parse(text)
    shape = (
        outputs,
        inputs or (GROUPED_INPUTS if scheme.group_size else ROW_INPUTS.get(scheme.bits, 322)),
    )
    seeded = torch.Generator().manual_seed(3)
    numbers = torch.randn(shape, generator=seeded) * 0.02 + 0.005
    if scheme.is_float:
        return PackedWeight(scheme, shape, numbers.to(scheme.dtype))
    return pack([(0, numbers)], shape, scheme)[0]


def kernel_of(packed: PackedWeight, exact: bool = False) -> Kernel:
    return choose(packed.scheme, packed.shape, CPU, "native", exact=exact)


def product(
    packed: PackedWeight, layout: dict[str, Tensor], x: Tensor, exact: bool = False
) -> Tensor:
    out = torch.full((len(x), packed.shape[0]), torch.nan)
    kernel_of(packed, exact).multiply(x, layout, packed.scheme, None, out)
    return out


def layout_of(packed: PackedWeight) -> dict[str, Tensor]:
    return kernel_of(packed).prepare(packed)


@pytest.mark.parametrize("text", TEXTS)
def test_products_match_the_reference(text: str, isa: str) -> None:
    packed = matrix(text)
    x = torch.randn(29, packed.shape[1]) * torch.logspace(-3, 3, 29).unsqueeze(1)
    out, expected = product(packed, layout_of(packed), x), x @ dequantize(packed).t()
    worst = min(sqnr_db(expected[row], out[row]) for row in range(29))
    total = sqnr_db(expected / x.norm(dim=1, keepdim=True), out / x.norm(dim=1, keepdim=True))
    print(f"{isa} {text}: {total:.1f} dB, worst row {worst:.1f}, floor {ACTIVATIONS_FLOOR_DB}")
    assert total >= ACTIVATIONS_FLOOR_DB
    assert worst >= ACTIVATIONS_FLOOR_DB - 4


@pytest.mark.parametrize("text", TEXTS)
def test_activations_that_fit_8_bits_give_exact_products(text: str, isa: str) -> None:
    packed = matrix(text)
    # Integers with 127 in every group: the scale is 1 and nothing is rounded.
    x = torch.randint(-127, 128, (5, packed.shape[1])).float()
    x[:, ::16] = 127
    if not packed.scheme.group_size:
        x[:, -1] = -127
    expected = x.double() @ dequantize(packed).double().t()
    measured = sqnr_db(expected, product(packed, layout_of(packed), x))
    # A codebook's numbers are rounded to 15 bits.
    floor = CODEBOOK_FLOOR_DB if packed.scheme.codebook == "nf4" else 120
    print(f"{isa} {text}: {measured:.1f} dB, floor {floor}")
    assert measured >= floor


@pytest.mark.parametrize("text", TEXTS + FLOATS)
def test_exact_products_round_no_activations(text: str, isa: str) -> None:
    packed = matrix(text)
    x = torch.randn(29, packed.shape[1]) * torch.logspace(-3, 3, 29).unsqueeze(1)
    x[:, 40] *= 1000
    out = product(packed, layout_of(packed), x, exact=True)
    expected = x.double() @ dequantize(packed).double().t()
    worst = min(sqnr_db(expected[row], out[row]) for row in range(29))
    print(f"{isa} {text}: worst row {worst:.1f} dB, floor {EXACT_FLOOR_DB}")
    assert worst >= EXACT_FLOOR_DB


@pytest.mark.parametrize("text", TEXTS + FLOATS)
def test_exact_products_give_one_row_the_same_bits_everywhere(
    text: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = matrix(text)
    layout, x = layout_of(packed), torch.randn(23, packed.shape[1])
    alone = torch.cat([product(packed, layout, x[row : row + 1], True) for row in range(23)])
    for threads, start, stop in ((1, 0, 23), (2, 0, 23), (3, 2, 4), (1, 5, 12)):
        monkeypatch.setattr(native, "threads", lambda count=threads: count)
        assert torch.equal(product(packed, layout, x[start:stop], True), alone[start:stop])
    native.use_isa("generic")
    assert torch.equal(product(packed, layout, x, True), alone)


@pytest.mark.parametrize("text", TEXTS)
def test_inputs_that_stand_out_cost_their_group_nothing(text: str, isa: str) -> None:
    """Two inputs a hundred times the rest: rounded once, their groups would leave some 20 dB."""
    packed = matrix(text, inputs=1536)
    x = torch.randn(7, packed.shape[1])
    x[:, [40, 200]] *= 100
    weights = dequantize(packed).t().clone()
    out, expected = product(packed, layout_of(packed), x), x @ weights
    weights[[40, 200]] = 0
    rest = sqnr_db(x @ weights, x @ weights + out - expected)
    print(f"{isa} {text}: {rest:.1f} dB of what the other inputs bring, floor {OUTLIERS_FLOOR_DB}")
    assert rest >= OUTLIERS_FLOOR_DB


@pytest.mark.parametrize(
    "text",
    [
        "int4-g32",
        "int4-g128-zfloat",
        "int8",
        "int8-g32-zint",
        "nf4",
        "int5-g32-zfloat-coded",
        "int6-g16-coded",
        "iq4-g32-coded",
    ],
)
def test_a_row_never_depends_on_its_neighbours(
    text: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = matrix(text, outputs=1100)
    layout, x = layout_of(packed), torch.randn(40, packed.shape[1])
    x[::3, ::50] *= 30  # some rows have groups that are rounded twice
    alone = torch.cat([product(packed, layout, x[row : row + 1]) for row in range(40)])
    for threads in (1, 2, 3):
        monkeypatch.setattr(native, "threads", lambda count=threads: count)
        for start, stop in ((0, 40), (0, 2), (3, 6), (5, 12), (7, 32), (1, 40)):
            out = product(packed, layout, x[start:stop])
            assert torch.equal(out, alone[start:stop]), (threads, start, stop)
    permuted = torch.randperm(40)
    assert torch.equal(product(packed, layout, x[permuted]), alone[permuted])


@pytest.mark.parametrize("text", TEXTS)
def test_all_instruction_sets_give_the_same_bits(text: str, isa: str) -> None:
    packed = matrix(text)
    layout, x = layout_of(packed), torch.randn(13, packed.shape[1])
    x[:, ::50] *= 30
    own = product(packed, layout, x)
    native.use_isa("generic")
    assert torch.equal(own, product(packed, layout, x))


def test_numbers_that_are_not_finite_stay_in_their_row(isa: str) -> None:
    packed = matrix("int4-g32")
    layout, x = layout_of(packed), torch.randn(6, packed.shape[1])
    clean = product(packed, layout, x)
    x[1, 40], x[4, 7] = torch.inf, torch.nan
    x[2], clean[2] = 0, 0
    out = product(packed, layout, x)
    assert bool(out[[1, 4]].isnan().all())
    assert torch.equal(out[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])


def test_strided_activations_bias_and_bfloat16() -> None:
    packed = matrix("int4-g32")
    layout, wide = layout_of(packed), torch.randn(5, packed.shape[1] + 9)
    x, bias = wide[:, 4:-5], torch.randn(OUTPUTS)
    kernel, expected = find("native.int4"), product(packed, layout, x.contiguous()) + bias
    out = torch.full((5, OUTPUTS + 3), -1.0)
    kernel.multiply(x, layout, packed.scheme, bias, out[:, 1:-2])
    # The bias is added before the fine rows, so sums are rounded elsewhere.
    torch.testing.assert_close(out[:, 1:-2], expected, rtol=1e-6, atol=1e-6)
    assert bool((out[:, :1] == -1).all()) and bool((out[:, -2:] == -1).all())
    half = torch.empty(5, OUTPUTS, dtype=torch.bfloat16)
    kernel.multiply(x.bfloat16(), layout, packed.scheme, None, half)
    assert torch.equal(half, product(packed, layout, x.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("text", TEXTS + FLOATS)
def test_a_tied_table_reads_exact_rows_from_the_same_layout(text: str) -> None:
    packed = matrix(text)
    layout, ids = layout_of(packed), torch.tensor([OUTPUTS - 1, 0, 31, 32, 32, 17])
    out = torch.empty(6, packed.shape[1])
    kernel = choose(packed.scheme, packed.shape, CPU, "native", lookup=True)
    kernel.lookup(ids, layout, packed.scheme, out)
    assert torch.equal(out, dequantize(packed)[ids])


def random_matrix(text: str, inputs: int) -> PackedWeight:
    """Any bytes as codes, scales and zeros: more than quantizing writes, and files may hold."""
    packed = PackedWeight.empty((OUTPUTS, inputs), Scheme.parse(text))
    packed.qweight.view(torch.uint8).random_(256)
    packed.scales.random_(-128, 128)
    low, high = packed.scheme.code_range if packed.scheme.zeros == "int" else (-128, 127)
    if packed.zeros is not None:
        packed.zeros.random_(low, high + 1)
    packed.supers.normal_()
    return packed


@pytest.mark.parametrize("inputs", [GROUPED_INPUTS, BLOCKS])
@pytest.mark.parametrize("text", CODED)
def test_coded_scales_of_any_sign_and_block(text: str, inputs: int, isa: str) -> None:
    packed = random_matrix(text, inputs)
    layout, numbers = layout_of(packed), dequantize(packed)
    read = torch.empty(OUTPUTS, inputs)
    kernel_of(packed).lookup(torch.arange(OUTPUTS), layout, packed.scheme, read)
    assert torch.equal(read, numbers)
    x = torch.randn(5, inputs)
    expected = x.double() @ numbers.double().t()
    for exact, floor in ((True, EXACT_FLOOR_DB), (False, ACTIVATIONS_FLOOR_DB)):
        measured = sqnr_db(expected, out := product(packed, layout, x, exact))
        print(f"{isa} {text} exact={exact}: {measured:.1f} dB, floor {floor}")
        assert measured >= floor
        native.use_isa("generic")
        assert torch.equal(product(packed, layout, x, exact), out)
        native.use_isa(isa)


def test_layout_bytes() -> None:
    kernel, shape = find("native.int4"), (96, 256)
    assert kernel.nbytes(Scheme.parse("int4-g32"), shape) == 96 * (256 // 2 + 8 * 2)
    assert kernel.nbytes(Scheme.parse("int4-g64-zint"), shape) == 96 * (256 // 2 + 4 * 3)
    assert find("native.int8").nbytes(Scheme.parse("int8"), shape) == 96 * (256 + 2)
    assert find("native.int5").nbytes(Scheme.parse("int5-g32"), shape) == 96 * (256 * 5 // 8 + 16)
    assert find("native.int6").nbytes(Scheme.parse("int6-g16-coded"), shape) == 96 * (192 + 16 + 2)
    scheme = Scheme.parse("int4-g32-zfloat-coded")
    assert find("native.int4").nbytes(scheme, (96, 512)) == 96 * (256 + 2 * 16 + 2 * 2 * 2)
    assert find("native.int4").nbytes(scheme, (96, 96)) == 96 * (48 + 2 * 3 + 2 * 2)
    # Tails: a panel is 32 rows, a step 8 inputs.
    assert find("native.int8").nbytes(Scheme.parse("int8"), (33, 9)) == 64 * (16 + 2)


def test_callers_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "threads", lambda: 3)
    packed = matrix("int4-g32", outputs=1100)
    layout = layout_of(packed)
    inputs = [torch.randn(3, packed.shape[1]) for _ in range(4)]
    expected = [product(packed, layout, x) for x in inputs]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(20):
            results = callers.map(lambda x: product(packed, layout, x), inputs)
            assert all(map(torch.equal, results, expected))


@pytest.mark.skipif(sys.platform != "linux", reason="cores are asked of Linux alone")
def test_workers_may_run_where_the_process_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that left the caller's core is bound to no other."""
    monkeypatch.setattr(native, "threads", lambda: 3)
    packed = matrix("int8", outputs=1100)
    layout, x = layout_of(packed), torch.randn(2, packed.shape[1])
    for _ in range(300):
        product(packed, layout, x)
    told = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
    allowed = {line for text in told for line in text.splitlines() if "Cpus_allowed:" in line}
    print(f"{len(told)} threads, {allowed}")
    assert len(told) > 1 and len(allowed) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_products_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "threads", lambda: 3)
    packed = matrix("int8", outputs=1100)
    layout, x, out = layout_of(packed), torch.randn(2, packed.shape[1]), torch.empty(2, 1100)
    expected = product(packed, layout, x)
    pid = os.fork()
    if pid == 0:
        # No assertion may leave this process: its exit status is the answer.
        signal.alarm(20)
        find("native.int8").multiply(x, layout, packed.scheme, None, out)
        same_bits = ctypes.string_at(out.data_ptr(), out.nbytes) == ctypes.string_at(
            expected.data_ptr(), expected.nbytes
        )
        os._exit(0 if same_bits else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert torch.equal(product(packed, layout, x), expected)
