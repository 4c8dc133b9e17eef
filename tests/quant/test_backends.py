"""Every kernel against the reference's definition, its sizes, and the choice among kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from quant import (
    KernelUnavailableError,
    PackedWeight,
    Scheme,
    choose,
    dequantize,
    find,
    native,
    pack,
    sqnr_db,
)
from quant.backends import KERNELS, Kernel
from quant.backends.aten import BFLOAT16_FLOOR_DB, no_vector_code
from quant.backends.bitsandbytes_backend import INT8_ACTIVATIONS_FLOOR_DB
from quant.backends.native_backend import ACTIVATIONS_FLOOR_DB
from quant.backends.torch_backend import Int4Tile
from quant.library import library

CPU = torch.device("cpu")
LAYOUTS = ("int4-g32", "int4-g64", "int4-g128", "int8", "int8-g32", "int8-g64", "int8-g128")
TEXTS = [
    *(layout + zeros for layout in LAYOUTS for zeros in ("", "-zint", "-zfloat")),
    *("int4-row", "int4-row-zint", "int4-g64-zint-sbfloat16", "int4-g32-zfloat-sfloat32"),
    *("int8-sbfloat16", "int8-sfloat32", "int8-g32-sbfloat16", "nf4", "nf4-g32-sfloat16", "fp4"),
    *("float32", "bfloat16", "float16"),
]
# The second has many outputs, so that int8 in groups takes its product by groups; the third
# needs several blocks of rows in every kernel.
SHAPES = [(61, 384), (1040, 128), (4800, 768)]
# The reference computes in float32 (or rounds once to the activations' bfloat16).
REFERENCE_FLOOR_DB = {torch.float32: 110.0, torch.bfloat16: 45.0}
# Kernels that round activations whatever their dtype; others keep to the reference's floor.
FLOOR_DB = {kernel.name: BFLOAT16_FLOOR_DB for kernel in KERNELS if kernel.backend == "torch"}
FLOOR_DB |= {"bitsandbytes.fused4bit": BFLOAT16_FLOOR_DB}
FLOOR_DB |= {kernel.name: ACTIVATIONS_FLOOR_DB for kernel in KERNELS if kernel.backend == "native"}
FLOOR_DB |= {"bitsandbytes.int8": INT8_ACTIVATIONS_FLOOR_DB}
# Two blocks of int8 kernels, in float32 where the CPU multiplies no bfloat16, and activations.
SCRATCH_LIMIT_BYTES = 18 * 2**20
# Above what rounding outliers with the rest of their rows can reach: INT8_ACTIVATIONS_FLOOR_DB.
OUTLIERS_FLOOR_DB = 50.0


def packed_weight(text: str, shape: tuple[int, int]) -> PackedWeight:
    weights = torch.randn(shape) * 0.02 + 0.005
    return pack([(0, weights)], shape, Scheme.parse(text))[0]


def cases(shapes: list[tuple[int, int]], lookup: bool = False) -> list:
    return [
        pytest.param(kernel, text, shape, id=f"{kernel.name}-{text}-{shape[0]}x{shape[1]}")
        for kernel in KERNELS
        for text in TEXTS
        for shape in shapes
        if kernel.refusal(Scheme.parse(text), shape, CPU, lookup) is None
    ]


@pytest.mark.parametrize(("kernel", "text", "shape"), cases(SHAPES[:2]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_match_the_definition(
    kernel: Kernel, text: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    packed = packed_weight(text, shape)
    layout = kernel.prepare(packed)
    weights, (outputs, inputs) = dequantize(packed), shape
    floor = FLOOR_DB.get(kernel.name, REFERENCE_FLOOR_DB[dtype])
    worst = float("inf")
    for rows in (1, 3, 8, 70):
        x = torch.randn(rows, inputs).to(dtype)
        bias = torch.randn(outputs).to(dtype) if rows != 3 else None
        expected = x.double() @ weights.double().t() + (0 if bias is None else bias.double())
        wide = torch.full((rows, outputs + 7), -1.0, dtype=dtype)
        kernel.multiply(x, layout, packed.scheme, bias, wide[:, 3:-4])
        assert bool((wide[:, :3] == -1).all()) and bool((wide[:, -4:] == -1).all())
        worst = min(worst, sqnr_db(expected, wide[:, 3:-4]))
    print(f"{kernel.name} {text} {dtype}: {worst:.1f} dB, floor {floor}")
    assert worst >= floor


@pytest.mark.parametrize(("kernel", "text", "shape"), cases(SHAPES[2:]))
def test_products_by_blocks_match_the_reference(
    kernel: Kernel, text: str, shape: tuple[int, int]
) -> None:
    packed = packed_weight(text, shape)
    layout, x, out = kernel.prepare(packed), torch.randn(20, shape[1]), torch.empty(20, shape[0])
    kernel.multiply(x, layout, packed.scheme, None, out)
    measured = sqnr_db(x @ dequantize(packed).t(), out)
    print(f"{kernel.name} {text}: {measured:.1f} dB")
    assert measured >= FLOOR_DB.get(kernel.name, BFLOAT16_FLOOR_DB)


@pytest.mark.parametrize(("kernel", "text", "shape"), cases(SHAPES[:2], lookup=True))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_read_exactly(
    kernel: Kernel, text: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    packed = packed_weight(text, shape)
    ids = torch.tensor([shape[0] - 1, 0, 17, 17])
    wide = torch.full((4, shape[1] + 2), -1.0, dtype=dtype)
    kernel.lookup(ids, kernel.prepare(packed), packed.scheme, wide[:, 1:-1])
    assert torch.equal(wide[:, 1:-1], dequantize(packed)[ids].to(dtype))
    assert bool((wide[:, 0] == -1).all()) and bool((wide[:, -1] == -1).all())


@pytest.mark.parametrize(("kernel", "text", "shape"), cases(SHAPES))
def test_layouts_take_the_bytes_they_claim(
    kernel: Kernel, text: str, shape: tuple[int, int]
) -> None:
    scheme = Scheme.parse(text)
    layout = kernel.prepare(packed_weight(text, shape))
    assert sum(t.nbytes for t in layout.values()) == kernel.nbytes(scheme, shape)


@pytest.mark.skipif(library("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_outlier_columns_keep_their_precision() -> None:
    kernel, packed = find("bitsandbytes.int8"), packed_weight("int8", (64, 384))
    x, out = torch.randn(5, 384).clamp(-5, 5), torch.empty(5, 64)
    x[2, 100], x[4, 7] = 400.0, -90.0
    kernel.multiply(x, kernel.prepare(packed), packed.scheme, None, out)
    measured = sqnr_db(x @ dequantize(packed).t(), out)
    print(f"with outliers: {measured:.1f} dB, floor {OUTLIERS_FLOOR_DB}")
    assert measured >= OUTLIERS_FLOOR_DB


def peak_bytes(work: Callable[[], None]) -> int:
    """Most bytes that torch's allocator held at once during `work`, beyond those before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in memory:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(("kernel", "text", "shape"), cases(SHAPES[2:]))
def test_scratch_stays_under_its_bound(kernel: Kernel, text: str, shape: tuple[int, int]) -> None:
    packed = packed_weight(text, shape)
    layout = kernel.prepare(packed)
    for rows, dtype in ((1, torch.float32), (1, torch.bfloat16), (40, torch.float32)):
        x, out = torch.randn(rows, shape[1]).to(dtype), torch.empty(rows, shape[0], dtype=dtype)

        def work(x: Tensor = x, out: Tensor = out) -> None:
            kernel.multiply(x, layout, packed.scheme, None, out)

        peak, bound = peak_bytes(work), kernel.scratch_bytes(packed.scheme, shape, rows)
        print(f"{kernel.name} {text} rows={rows}: {peak} of {bound} bytes")
        assert peak <= bound <= SCRATCH_LIMIT_BYTES


def test_choice_prefers_the_first_that_fits() -> None:
    assert choose(Scheme.parse("nf4"), (64, 64), "cuda").name == "reference"
    assert choose(Scheme.parse("int4-g32"), (64, 64), "cuda").name == "reference"
    assert choose(Scheme.parse("float32"), (64, 64), CPU, "reference").name == "reference"
    assert choose(Scheme.parse("float32"), (64, 64), CPU, "torch").name == "torch.mm"
    for kernel in KERNELS:
        assert find(kernel.name) is kernel


@pytest.mark.skipif(no_vector_code(CPU) is not None, reason=str(no_vector_code(CPU)))
def test_choice_within_torch_on_a_machine_with_vector_code() -> None:
    names = {"int4-g128-zint": "torch.int4pack", "int8": "torch.int8pack"}
    names |= {"int8-g32": "torch.int8groups", "int4-row": "torch.int4pack"}
    names |= {"int8-sfloat32": "torch.int8pack", "int8-g32-sbfloat16": "torch.int8groups"}
    for text, name in names.items():
        assert choose(Scheme.parse(text), (64, 128), CPU, "torch").name == name
    assert choose(Scheme.parse("int8"), (64, 64), CPU, "torch", lookup=True).name == (
        "torch.int8pack"
    )
    for text, shape in (("int8", (64, 72)), ("int4-row", (64, 72)), ("nf4", (64, 64))):
        with pytest.raises(KernelUnavailableError, match="has no kernel for"):
            choose(Scheme.parse(text), shape, CPU, "torch")


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_choice_of_kernels_that_round_no_activations() -> None:
    names = {text: f"native.{text}.exact" for text in ("nf4", "fp4", "int8")}
    names |= {"int4-g32": "native.int4.exact", "bfloat16": "native.float"}
    for text, name in names.items():
        scheme = Scheme.parse(text)
        ranking = [f"native.{text}", "torch.mm", "torch.int8pack"]
        assert choose(scheme, (64, 64), CPU, ranking=ranking, exact=True).name == name
        assert choose(scheme, (64, 64), CPU, "reference", exact=True).name == "reference"
        with pytest.raises(KernelUnavailableError, match="it rounds activations"):
            choose(scheme, (64, 64), CPU, "torch", exact=True)


@pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
def test_choice_with_the_native_library() -> None:
    for text in ("int4-g32", "int4-g128-zfloat", "int8", "int8-g64-zint"):
        scheme = Scheme.parse(text)
        for lookup in (False, True):
            assert choose(scheme, (61, 128), CPU, lookup=lookup).name == f"native.int{scheme.bits}"


def test_choice_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "not built")
    assert choose(Scheme.parse("int4-g32"), (64, 64), CPU).backend != "native"
    with pytest.raises(KernelUnavailableError, match="int4: not built"):
        choose(Scheme.parse("int4-g32"), (64, 64), CPU, "native")


@pytest.mark.parametrize("text", ["int4-g32", "int4-g128-zint", "int4-row", "int4-g64-zfloat"])
def test_tiles_of_cuda_s_int4_have_the_sizes_that_are_planned(text: str) -> None:
    """With torch's fakes, which hold no numbers and check what the operations are given."""
    scheme, shape = Scheme.parse(text), (64, 384)
    kernel = Int4Tile()
    with FakeTensorMode():
        tensors = kernel.prepare(PackedWeight.empty(shape, scheme, CPU))
        out = torch.empty(5, 64)
        kernel.multiply(torch.empty(5, 384), tensors, scheme, torch.empty(64), out)
    assert sum(t.nbytes for t in tensors.values()) == kernel.nbytes(scheme, shape)
    assert "NVIDIA CUDA devices" in str(kernel.refusal(scheme, shape, CPU, False))
    assert "multiple of 8 outputs" in str(kernel.refusal(scheme, (60, 384), CPU, False))


def test_bitsandbytes_on_a_card_dequantizes_and_leaves_the_rest() -> None:
    nf4, card = Scheme.parse("nf4"), torch.device("cuda")
    told = {k.name: str(k.refusal(nf4, (64, 64), card, False)) for k in KERNELS}
    assert "supports CPUs, not" in told["bitsandbytes.fused4bit"]
    assert "supports CPUs" not in told["bitsandbytes.4bit"]
    xpu = find("bitsandbytes.4bit").refusal(nf4, (64, 64), torch.device("xpu"), False)
    assert "CPUs and CUDA devices, not xpu" in str(xpu)


def test_a_backend_that_cannot_gives_every_reason() -> None:
    with pytest.raises(KernelUnavailableError) as caught:
        choose(Scheme.parse("int4-g32"), (61, 64), CPU, "torch", lookup=True)
    for kernel in KERNELS:
        assert (f"{kernel.name}: " in str(caught.value)) == (kernel.backend == "torch")
    assert "cannot be read by rows" in str(caught.value)
    assert "use backend auto or reference" in str(caught.value)
    # A table that is only read by rows needs no product: the reference reads it.
    scheme = Scheme.parse("int4-g32")
    assert choose(scheme, (61, 64), CPU, "torch", multiply=False).name == "reference"


def test_unknown_backends_are_named() -> None:
    with pytest.raises(
        KernelUnavailableError,
        match="'magic'; allowed here: auto, native, triton, torch, reference",
    ):
        choose(Scheme.parse("int8"), (64, 64), CPU, "magic")
