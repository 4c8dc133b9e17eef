"""Promised peaks of quantizing, and resident memory over hundreds of requests: fresh processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_model
from safetensors import safe_open

import edgelm
from edgelm.checkpoint.shapes import shape_config
from quant import METHODS

MIB = 1 << 20
PROMISED_BESIDE_BYTES = 300 * MIB  # two largest tensors and `import torch`
STARTED_BYTES = 40 * MIB  # what the command line's own libraries take beyond `import torch`
GROWTH_LIMIT_BYTES = 20 * MIB
IMPORT_TORCH = "import torch; from edgelm.hardware import resident_bytes; print(resident_bytes())"
QUANTIZE = "import sys; from edgelm.cli.main import main; sys.exit(main(sys.argv[1:]))"
REQUESTS = """
import random, sys
import edgelm
from edgelm.benchmark import Workload, run_round
from edgelm.hardware import resident_bytes
random.seed(0)
with edgelm.load(sys.argv[1], quant=sys.argv[2], backend=sys.argv[4], context=512) as lm:
    for index in range(int(sys.argv[3])):
        run_round(lm, Workload(random.randint(1, 480), random.randint(1, 30), seed=index))
        if index >= 19:
            print(resident_bytes())
"""


def fresh(program: str, *arguments: object) -> str:
    """What a Python program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], text=True, capture_output=True,
        cwd=Path(edgelm.__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def largest_tensor_bytes(folder: Path) -> int:
    """As stored."""
    sizes = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            sizes += [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
    return max(sizes)


def kept_promise(source: Path, out: Path, method: str, largest: int) -> None:
    """The peak is below what was promised, and the promise is no more than the rule allows."""
    told: dict[str, Any] = json.loads(
        fresh(QUANTIZE, "quantize", source, out, "--method", method, "--json")
    )
    promised, measured = told["promised_peak_bytes"], told["peak_rss_bytes"]
    allowed = int(fresh(IMPORT_TORCH)) + 2 * largest + PROMISED_BESIDE_BYTES
    print(
        f"{method}: measured {measured / MIB:.0f} MiB, promised {promised / MIB:.0f}, "
        f"allowed {allowed / MIB:.0f}"
    )
    assert measured <= promised <= allowed + STARTED_BYTES
    assert measured <= allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("out", ["folder", "file.gguf"])
def test_quantizing_keeps_its_promise(
    tiny_llama: Callable[..., Path], assets: Path, tmp_path: Path, method: str, out: str
) -> None:
    source = assets / "nano" / "llama"
    kept_promise(source, tmp_path / out, method, largest_tensor_bytes(source))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_quantizing_6_gb_keeps_its_promise(tmp_path: Path, method: str) -> None:
    """The shape of Llama-3.2-3B in bfloat16."""
    if shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("the disk has no 12 GiB free")
    config = shape_config("llama-3.2-3b")
    write_model(config, tmp_path / "source")
    largest = config["vocab_size"] * config["hidden_size"] * 2
    try:
        kept_promise(tmp_path / "source", tmp_path / "out", method, largest)
    finally:
        shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["int8", "int4", "none"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_500_requests_take_no_more_than_20(assets: Path, family: str, quant: str) -> None:
    """Of random lengths, every number of rows in a step among them."""
    seen = [
        int(line) for line in fresh(REQUESTS, assets / "nano" / family, quant, 500, "auto").split()
    ]
    growth = max(seen) - seen[0]
    print(f"{family} {quant}: {seen[0] / MIB:.1f} MiB, then at most {growth / MIB:+.1f} MiB")
    assert len(seen) == 481 and growth <= GROWTH_LIMIT_BYTES


def test_requests_of_many_lengths_leave_little(assets: Path) -> None:
    """oneDNN would keep a compiled product for every number of rows: megabytes a request."""
    told = fresh(REQUESTS, assets / "nano" / "gemma2", "int8", 60, "torch")
    seen = [int(line) for line in told.split()]
    growth = max(seen) - seen[0]
    print(f"60 requests: {growth / MIB:+.1f} MiB after the first 20")
    assert growth <= GROWTH_LIMIT_BYTES
