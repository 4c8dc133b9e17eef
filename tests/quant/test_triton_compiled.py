"""What Triton's compiler makes of the kernels for real cards, none of which need be present.

The interpreter knows no threads. That few rows read their words 16 bytes at a time, and that no
number takes a way through shared memory inside the loop, shows in the compiled code alone. The
test runs this file as a process of its own, because the kernels of the others are interpreted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CARDS = (80, 86, 89, 90)  # compute capability: A100, laptops of 2021, of 2023, H100
FEW = ("int4-g32", "int4-g128", "int4-g64-zint", "int4-row-zfloat", "int8", "int8-g32-zint", "nf4")
MANY = ("int4-g128-zfloat", "int8", "fp4")
POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
KNOWN_TO_DIVIDE = {"outputs", "inputs", "pieces", "x_stride", "out_stride"}  # by 16, as in models


def compiled(kernel: Any, text: str, card: int, warps: int, **constants: Any) -> Any:
    """The kernel for rows of 4096 inputs, bfloat16 activations and a bias, without running it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from quant import Scheme
    from quant.triton.layout import geometry

    scheme = Scheme.parse(text)
    own = geometry(scheme, 4096)
    constants |= {"BITS": own.bits, "SPAN": own.span, "GROUPED": own.grouped}
    constants |= {"ZEROS": scheme.zeros, "partial": None}
    scales = POINTERS[scheme.scales]
    types = {"x": "*bf16", "out": "*bf16", "bias": "*bf16", "words": "*i32", "scales": scales}
    types |= {"ids": "*i64", "table": "*fp32" if scheme.codebook else None}
    types["zeros"] = {"none": None, "int": "*u8", "float": scales}[scheme.zeros]
    signature, facts = {}, {}
    for place, name in enumerate(kernel.arg_names):
        kind = None if name in constants else types.get(name, "i32")
        signature[name] = kind or "constexpr"
        if kind is None:
            constants.setdefault(name, None)
        elif kind[0] == "*" or name in KNOWN_TO_DIVIDE:
            facts[(place,)] = [["tt.divisibility", 16]]
    constants = {name: value for name, value in constants.items() if name in signature}
    source = ASTSource(kernel, signature, constants, facts)
    options = {"num_warps": warps, "num_stages": 2}
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)


def few_rows(text: str, card: int, rows: int) -> dict[str, Any]:
    from quant import Scheme
    from quant.triton import gemv
    from quant.triton.configs import usual
    from quant.triton.layout import geometry

    own = geometry(Scheme.parse(text), 4096)
    each = usual(own, 4096, 1, 20).block_n // 4
    sizes = {"LANES": 4, "EACH": each, "PIECES": 128 // own.span, "SPLITS": 1}
    steps = {"STEPS": own.words // 128, "ROWS": rows}
    if rows == 1:  # a launch with an argument of 1 is compiled for it
        steps["rows"] = 1
    code = compiled(gemv.multiply_rows, text, card, 4, **sizes, **steps)
    ptx, graph = code.asm["ptx"], code.asm["ttgir"]
    # Which threads hold what is being summed, inside the loop and after it.
    names = set(re.findall(r"\d+x\d+x\d+xf32, (#\w+)>\) -> ", graph[graph.index("scf.for") :]))
    layouts = [re.search(rf"^{name} = (.*)$", graph, re.MULTILINE) for name in names]
    return {
        "sums": sorted(layout[1] for layout in layouts if layout),
        "words at once": ptx.count("ld.global.v4.b32"),
        "activations at once": ptx.count("ld.global.v2.b32"),
        "shared bytes": code.metadata.shared,
    }


def many_rows(text: str, card: int) -> dict[str, Any]:
    import triton.language as tl

    from quant import Scheme
    from quant.triton import gemm, rows
    from quant.triton.layout import geometry

    own = geometry(Scheme.parse(text), 4096)
    sizes = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_W": 16, "SPLITS": 1, "COMPUTE": tl.bfloat16}
    code = compiled(gemm.multiply_tile, text, card, 4, **sizes, STEPS=own.words // 16)
    ptx = code.asm["ptx"]
    compiled(rows.read_rows, text, card, 4, BLOCK_W=256)
    return {
        "products": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
        "numbers stored one by one": ptx.count("st.shared.b16") + ptx.count("st.shared.u16"),
    }


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for card in CARDS:
        for text in FEW if card == CARDS[-1] else FEW[:1]:
            for rows in (1, 4):
                found[f"few {text} {rows} {card}"] = few_rows(text, card, rows)
        for text in MANY if card == CARDS[-1] else MANY[:1]:
            found[f"many {text} {card}"] = many_rows(text, card)
    print(json.dumps(found), flush=True)
    os._exit(0)  # what Triton leaves behind without a driver may crash on the way out


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("triton", reason="Triton is not installed; pip install 'edgelm[gpu]'")
    root = Path(__file__).resolve().parents[2]
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(root),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, counts in json.loads(done.stdout).items():
        print(name, counts)
    return json.loads(done.stdout)


def test_few_rows_read_words_sixteen_bytes_at_a_time(found: dict[str, dict[str, Any]]) -> None:
    cases = {name: counts for name, counts in found.items() if name.startswith("few")}
    assert len(cases) == 2 * (len(FEW) + len(CARDS) - 1)
    for name, counts in cases.items():
        text, rows = name.split()[1], int(name.split()[2])
        outputs_each = 1 if text in ("int4-g64-zint", "int8-g32-zint", "nf4") else 2
        planes = 4 if text.startswith("int8") else 8
        assert counts["words at once"] == outputs_each, name
        assert counts["activations at once"] == rows * planes, name


def test_no_number_of_the_loop_goes_through_shared_memory(
    found: dict[str, dict[str, Any]],
) -> None:
    """What is left is the sum over a block's pieces at the end: a few bytes a row."""
    used = {name: counts["shared bytes"] for name, counts in found.items() if "few" in name}
    assert max(used.values()) <= 64, used


def test_sums_have_one_order_for_any_number_of_rows(found: dict[str, dict[str, Any]]) -> None:
    for text in FEW:
        alone, four = (found[f"few {text} {rows} {CARDS[-1]}"]["sums"] for rows in (1, 4))
        assert len(alone) == 2 and alone == four, text


def test_many_rows_use_the_tensor_cores(found: dict[str, dict[str, Any]]) -> None:
    cases = {name: counts for name, counts in found.items() if name.startswith("many")}
    assert len(cases) == len(MANY) + len(CARDS) - 1
    for name, counts in cases.items():
        assert counts["products"] >= 4, name
        assert counts["numbers stored one by one"] == 0, name


if __name__ == "__main__":
    main()
