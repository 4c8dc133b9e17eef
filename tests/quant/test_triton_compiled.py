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
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_cards import pretend

from quant import PackedWeight, Scheme
from quant.triton import launch, layout
from quant.triton.configs import Config, usual
from quant.triton.layout import geometry

SHAPE = (64, 4096)
CARDS = (80, 86, 89, 90)  # compute capability: A100, laptops of 2021, of 2023, H100
# Outputs that a thread has in the usual config, by scheme.
FEW = {
    **{"int4-g32": 2, "int4-g128": 2, "int4-g64-zint": 1, "int4-row-zfloat": 2, "int8": 2},
    **{"int8-g32-zint": 1, "nf4": 1, "iq4-g32-coded": 2, "int5-g32-zfloat-coded": 2},
    **{"int6-g32-coded": 2, "int6-g16-coded": 4},
}
MANY = ("int4-g128-zfloat", "int8", "fp4", "int6-g16-coded", "int5-g32-zfloat-coded")


LOADS = {16: "v4.b32", 8: "v2.b32", 4: "b32"}  # of so many bytes a thread


def few_rows(text: str, rows: int, made: list[Any]) -> dict[str, Any]:
    own = geometry(Scheme.parse(text), SHAPE[1])
    product(text, rows, usual(own, SHAPE[0], rows, processors=1))
    code = made[-1]
    ptx, graph = code.asm["ptx"], code.asm["ttgir"]
    # Which threads hold what is being summed, inside the loop and after it.
    names = set(re.findall(r"\d+x\d+x\d+xf32, (#\w+)>\) -> ", graph[graph.index("scf.for") :]))
    layouts = [re.search(rf"^{name} = (.*)$", graph, re.MULTILINE) for name in names]
    return {
        "sums": sorted(layout[1] for layout in layouts if layout),
        "loads": {width: ptx.count(f"ld.global.{name} ") for width, name in LOADS.items()},
        "shared bytes": code.metadata.shared,
    }


def many_rows(text: str, made: list[Any]) -> dict[str, Any]:
    product(text, 64, Config("tile", 64, 64, 16, 4, 2))
    ptx = made[-1].asm["ptx"]
    product(text, 200, Config("unpack"))  # which must compile
    return {
        "products": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
        "numbers stored one by one": ptx.count("st.shared.b16") + ptx.count("st.shared.u16"),
    }


def product(text: str, rows: int, config: Config, shape: tuple[int, int] = SHAPE) -> None:
    """Launch a product of float16 activations, with a bias."""
    scheme, half = Scheme.parse(text), torch.float16
    matrix = launch.Matrix(layout.laid_out(PackedWeight.empty(shape, scheme)), scheme, shape)
    x, out = torch.zeros(rows, shape[1], dtype=half), torch.zeros(rows, shape[0], dtype=half)
    launch.run(config, x, matrix, torch.zeros(shape[0], dtype=half), out)


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    made: list[Any] = []
    for card in CARDS:
        pretend(card, made)
        newest = card == CARDS[-1]
        for text in FEW if newest else [*FEW][:1]:
            for rows in (1, 4):
                found[f"few {text} {rows} {card}"] = few_rows(text, rows, made)
        for text in MANY if newest else MANY[:1]:
            found[f"many {text} {card}"] = many_rows(text, made)
    # Sizes of one are constants to the compiler.
    product("int4-g32", 1, Config("rows", 1, 8, 128), (1, 32))
    product("int8", 9, Config("tile", 16, 64, 16, 4, 2), (1, 1))
    product("int8", 1, Config("rows", 1, 8, 128), (1, 1))
    print(json.dumps(found), flush=True)
    os._exit(0)  # what Triton leaves behind without a driver may crash on the way out


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("triton", reason="Triton is not installed; pip install 'edgelm[gpu]'")
    root = Path(__file__).resolve().parents[2]
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, counts in json.loads(done.stdout).items():
        print(name, counts)
    return json.loads(done.stdout)


def test_few_rows_read_four_words_at_a_time(found: dict[str, dict[str, Any]]) -> None:
    """With what lies beside them and their activations; of a group of 16, its two."""
    cases = {name: counts for name, counts in found.items() if name.startswith("few")}
    assert len(cases) == 2 * (len(FEW) + len(CARDS) - 1)
    for name, counts in cases.items():
        text, rows = name.split()[1], int(name.split()[2])
        own = geometry(Scheme.parse(text), SHAPE[1])
        together = min(4, own.span)
        loads = Counter({f"{4 * together}": FEW[text]})
        if own.upper:
            loads[f"{own.upper * together}"] += FEW[text]
        loads[f"{2 * together}"] += rows * own.planes
        assert {width: counts["loads"][width] for width in loads} == loads, name


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
