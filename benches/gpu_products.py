"""Products of layers on a CUDA card: ours, torch's bfloat16, torchao's int4, bitsandbytes' nf4.

    python benches/gpu_products.py [--models llama-3-8b gemma-2-2b llama-1b] [--rows 1 4 8 256 2048]
                                   [--cases triton.int4:int4-g32 torchao.int4 ...] [--rounds 15]
                                   [--cache FOLDER] [--no-tuning] [--out FILE]

Every round times every case of a shape once, in turn, by events on the device and with the weights
out of its cache, and copies plain memory and multiplies plain bfloat16 once; a line has the
medians. `of_copy` is the share of the copy's bandwidth that the bytes of the weights reach,
`of_matmul` that of the bfloat16 rate. Before the first product our tiles are tuned for the card
unless they are known; the choices lie in the cache folder. A line of JSON per case goes to the file
and to the terminal; a peer that is missing gets a line that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import announce

from quant import Scheme, find
from quant.triton import tuning

# Outputs and inputs of each model's matrices, those that a step fuses as one.
SHAPES = {
    "llama-3-8b": {
        **{"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096)},
        **{"down": (4096, 14336), "head": (128256, 4096)},
    },
    "gemma-2-2b": {
        **{"qkv": (4096, 2304), "o": (2304, 2048), "gate_up": (18432, 2304)},
        **{"down": (2304, 9216), "head": (256000, 2304)},
    },
    "llama-1b": {
        **{"qkv": (3072, 2048), "o": (2048, 2048), "gate_up": (16384, 2048)},
        **{"down": (2048, 8192), "head": (128256, 2048)},
    },
}
CASES = (
    *("triton.int4:int4-g32", "triton.int4:int4-g64", "triton.int4:int4-g128"),
    *("triton.int4:int4-g32-zfloat", "triton.int8:int8", "triton.int8:int8-g32", "triton.nf4:nf4"),
    *("triton.int4:int4-g32-zfloat-coded", "triton.int5:int5-g32-zfloat-coded"),
    *("triton.int6:int6-g16-coded", "triton.iq4:iq4-g32-coded"),
    *("torch.bfloat16", "torchao.int4", "bitsandbytes.nf4"),
)
HEAD_ROWS = 8  # a prompt's last row goes through the head, not all of them
Work = Callable[[], None]
Shape = tuple[int, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 256, 2048])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("EDGELM_CACHE", ".")))
    parser.add_argument("--no-tuning", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu_products.jsonl"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: gpu_products measures a CUDA card, and torch sees none here; run it on a "
            "machine with an NVIDIA driver and a CUDA build of torch",
            file=sys.stderr,
        )
        return 1
    with options.out.open("a", encoding="utf-8") as file:

        def report(row: dict[str, Any]) -> None:
            line = json.dumps(row)
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()

        report(machine())
        for model in options.models:
            for name, shape in SHAPES[model].items():
                rows = [m for m in options.rows if name != "head" or m <= HEAD_ROWS]
                measure(f"{model} {name}", shape, rows, options, report)
    return 0


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    card = torch.cuda.get_device_properties(0)
    return {
        "card": card.name,
        "processors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def measure(
    name: str,
    shape: Shape,
    all_rows: list[int],
    options: argparse.Namespace,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Every case at one shape, for every number of rows."""
    layers = {}
    for case in options.cases:
        try:
            made = layer(case, shape)
            made[0](torch.randn(1, shape[1], dtype=torch.bfloat16, device="cuda"))
            layers[case] = made
        except Exception as error:  # whatever a peer raises where it cannot run
            report({"shape": name, "case": case, "missing": f"{type(error).__name__}: {error}"})
    for rows in all_rows:
        if not options.no_tuning:
            tune(list(layers), shape, rows, options.cache)
        x = torch.randn(rows, shape[1], dtype=torch.bfloat16, device="cuda")
        works = {case: bind(multiply, x) for case, (multiply, _) in layers.items()}
        times, copy_gb_s, matmul_tf = take_turns(works, options.rounds)
        for case, (_, nbytes) in layers.items():
            seconds = statistics.median(times[case])
            gb_s = nbytes / seconds / 1e9
            tf = 2 * rows * shape[0] * shape[1] / seconds / 1e12
            row = {"shape": name, "outputs": shape[0], "inputs": shape[1], "rows": rows}
            row |= {"case": case, "us": round(seconds * 1e6, 1), "weight_bytes": nbytes}
            row |= {"gb_s": round(gb_s, 1), "of_copy": round(gb_s / copy_gb_s, 3)}
            row |= {"tf": round(tf, 2), "of_matmul": round(tf / matmul_tf, 3)}
            report(row | {"copy_gb_s": round(copy_gb_s, 1), "matmul_tf": round(matmul_tf, 1)})


def take_turns(works: dict[str, Work], rounds: int) -> tuple[dict[str, list[float]], float, float]:
    """(seconds by case, GB/s of a copy read and written, TF/s of bfloat16), in one run."""
    count = min(1 << 29, torch.cuda.mem_get_info()[0] // 8)
    source = torch.empty(count, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = torch.empty_like(a)
    limits = {
        "copy": lambda: target.copy_(source),
        "matmul": lambda: torch.mm(a, b, out=product),
    }
    once = tuning.device_clock(torch.device("cuda"), rounds=1)
    every: dict[str, Work] = {**limits, **works}
    for work in every.values():  # compilers and libraries begin here
        work()
    times: dict[str, list[float]] = {case: [] for case in every}
    for _ in range(rounds):
        for case, work in every.items():
            times[case].append(once(work))
    copy_gb_s = 2 * count / statistics.median(times["copy"]) / 1e9
    return times, copy_gb_s, 2 * 4096**3 / statistics.median(times["matmul"]) / 1e12


def bind(multiply: Callable[[torch.Tensor], None], x: torch.Tensor) -> Work:
    return lambda: multiply(x)


def layer(case: str, shape: Shape) -> tuple[Callable[[torch.Tensor], None], int]:
    """(a product with random weights in bfloat16, bytes that it reads of them)."""
    name, _, text = case.partition(":")
    if name == "torch.bfloat16":
        return torch_bfloat16(shape)
    if name == "torchao.int4":
        return torchao_int4(shape)
    if name == "bitsandbytes.nf4":
        return bitsandbytes_nf4(shape)
    kernel, scheme = find(name), Scheme.parse(text)
    reason = kernel.refusal(scheme, shape, torch.device("cuda"), False)
    if reason is not None:
        raise ValueError(reason)
    tensors = kernel.prepare(tuning.random(scheme, shape, torch.device("cuda")))
    outs: dict[int, torch.Tensor] = {}

    def multiply(x: torch.Tensor) -> None:
        out = outs.get(len(x))
        if out is None:
            out = outs[len(x)] = x.new_empty(len(x), shape[0])
        kernel.multiply(x, tensors, scheme, None, out)

    return multiply, kernel.nbytes(scheme, shape)


def torch_bfloat16(shape: Shape) -> tuple[Callable[[torch.Tensor], None], int]:
    weight = torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    def multiply(x: torch.Tensor) -> None:
        torch.mm(x, weight.t())

    return multiply, weight.nbytes


def torchao_int4(shape: Shape) -> tuple[Callable[[torch.Tensor], None], int]:
    """Groups of 128 in the one packing whose kernels come with torch."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16, device="cuda")
    config = Int4WeightOnlyConfig(
        group_size=128, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )
    quantize_(linear, config)
    return unrecorded(linear), shape[0] * shape[1] // 2 + shape[0] * shape[1] // 128 * 4


def bitsandbytes_nf4(shape: Shape) -> tuple[Callable[[torch.Tensor], None], int]:
    """As transformers loads it: float32 scales of 64 numbers."""
    import bitsandbytes

    linear = bitsandbytes.nn.Linear4bit(
        shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    return unrecorded(linear.cuda().eval()), shape[0] * shape[1] // 2 + shape[0] * shape[1] // 16


def unrecorded(module: torch.nn.Module) -> Callable[[torch.Tensor], None]:
    @torch.no_grad()
    def multiply(x: torch.Tensor) -> None:
        module(x)

    return multiply


def tune(cases: list[str], shape: Shape, rows: int, folder: Path) -> None:
    ours = [case.partition(":")[2] for case in cases if case.startswith("triton.")]
    wanted = [tuning.Case(Scheme.parse(t), shape, rows, torch.bfloat16) for t in ours]
    tuning.tune(wanted, folder, torch.device("cuda"))


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
