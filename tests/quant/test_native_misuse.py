"""The native library given what it cannot take: an error or a slower kernel, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quant import QuantError, Scheme, choose, native, pack
from quant.backends import find
from quant.backends.timing import time_kernels
from quant.errors import KernelUnavailableError
from quant.native import library_file

CPU = torch.device("cpu")
# Where the package under test lies: in the working folder there may be one without a library.
INSTALLED = Path(native.__path__[0]).parent.parent
SCHEME, SHAPE = Scheme.parse("int4-g32"), (70, 64)

pytestmark = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


def prepared() -> dict[str, torch.Tensor]:
    return find("native.int4").prepare(pack([(0, torch.randn(SHAPE))], SHAPE, SCHEME)[0])


def test_short_buffers_are_refused() -> None:
    kernel, tensors = find("native.int4"), prepared()
    x, out = torch.randn(3, 64), torch.empty(3, 70)
    short = {"layout": tensors["layout"][:-1]}
    with pytest.raises(QuantError, match=r"takes 3456 contiguous bytes.* has 3455"):
        kernel.multiply(x, short, SCHEME, None, out)
    every_second = {"layout": torch.stack([tensors["layout"]] * 2, dim=1)[:, 0]}
    with pytest.raises(QuantError, match="contiguous bytes"):
        kernel.multiply(x, every_second, SCHEME, None, out)
    with pytest.raises(QuantError, match=r"takes \d+ contiguous bytes"):
        kernel.multiply(torch.randn(3, 96), tensors, SCHEME, None, out)
    with pytest.raises(QuantError, match="do not match"):
        kernel.multiply(x, tensors, SCHEME, None, torch.empty(4, 70))
    with pytest.raises(QuantError, match="do not match"):
        kernel.multiply(x, tensors, SCHEME, torch.zeros(69), out)


@pytest.mark.parametrize("ids", [[-1], [0, 96], [2**40]])
def test_rows_that_are_not_there_are_refused(ids: list[int]) -> None:
    with pytest.raises(QuantError, match="the table has 96 rows"):
        find("native.int4").lookup(torch.tensor(ids), prepared(), SCHEME, torch.empty(len(ids), 64))


def test_misaligned_layouts_and_activations_give_the_same_bits() -> None:
    kernel, tensors = find("native.int4"), prepared()
    x, expected, out = torch.randn(3, 64), torch.empty(3, 70), torch.empty(3, 70)
    kernel.multiply(x, tensors, SCHEME, None, expected)
    bytes_ = torch.empty(tensors["layout"].nbytes + 1, dtype=torch.uint8)
    moved = bytes_[1:].copy_(tensors["layout"])
    kernel.multiply(torch.cat([torch.zeros(1), x.view(-1)])[1:].view(3, 64), {"layout": moved},
                    SCHEME, None, out)  # fmt: skip
    assert torch.equal(out, expected)


@pytest.mark.parametrize("threads", [-3, 0, 1000])
def test_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, shape = find("native.int8"), (9000, 64)
    scheme = Scheme.parse("int8")
    tensors = kernel.prepare(pack([(0, torch.randn(shape))], shape, scheme)[0])
    x, expected, out = torch.randn(9, 64), torch.empty(9, 9000), torch.empty(9, 9000)
    kernel.multiply(x, tensors, scheme, None, expected)
    monkeypatch.setattr(native, "threads", lambda: threads)
    kernel.multiply(x, tensors, scheme, None, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "reason",
    [
        "the package was installed without its native library",
        "edgelm_native.so is of version 1",
    ],
)
def test_without_a_usable_library_others_run_and_say_so(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "missing", lambda: reason)
    for text in ("int4-g32", "int8", "nf4", "float16"):
        for exact in (False, True):
            kernel = choose(Scheme.parse(text), (64, 64), CPU, exact=exact)
            assert kernel.backend != "native"
    with pytest.raises(KernelUnavailableError, match=reason):
        choose(SCHEME, (64, 64), CPU, "native")


def test_two_processes_at_once() -> None:
    code = (
        "import torch; from quant import Scheme, choose, pack\n"
        "scheme, numbers = Scheme.parse('int4-g32'), torch.linspace(-1, 1, 3000 * 64)\n"
        "packed, _ = pack([(0, numbers.view(3000, 64))], (3000, 64), scheme)\n"
        "kernel = choose(scheme, packed.shape, 'cpu', 'native')\n"
        "out = torch.empty(2, 3000)\n"
        "kernel.multiply(torch.ones(2, 64), kernel.prepare(packed), scheme, None, out)\n"
        "print(out.double().sum().item())"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            cwd=INSTALLED,
        )
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second != ""


def test_exact_products_are_not_ranked() -> None:
    """They are as fast with one row, which is what is timed, and slower with many."""
    names = time_kernels(SCHEME, (512, 512), CPU)
    assert "native.int4" in names and "native.int4.exact" not in names


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from quant import Scheme, choose\n"
        "kernel = choose(Scheme.parse('int4-g32'), (64, 64), 'cpu', 'native')\n"
        "print(kernel.nbytes(Scheme.parse('int4-g32'), (64, 64)))"
    )
    environment = os.environ | {"EDGELM_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=INSTALLED,
    )


def test_an_instruction_set_by_environment() -> None:
    assert run_with_isa("generic").stdout.strip() == str(64 * (64 // 2 + 2 * 2))
    refused = run_with_isa("avx9")
    assert "KernelUnavailableError: EDGELM_ISA='avx9': this CPU and library have" in refused.stderr
    assert "generic" in refused.stderr and "unset the variable" in refused.stderr


def test_a_library_that_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "path", lambda: None)
    assert native.missing.__wrapped__() == library_file.absence(native.__path__)
    broken = tmp_path / "edgelm_native.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native, "path", lambda: broken)
    assert "cannot be loaded" in str(native.missing.__wrapped__())
    monkeypatch.undo()
    monkeypatch.setattr(native, "ABI", native.ABI + 1)
    assert f"this package needs {native.ABI}" in str(native.missing.__wrapped__())
