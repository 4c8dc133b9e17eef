"""Peak memory of loading a bf16 folder of 3 GB in int4, against the limit and the plan.

    python benches/memory.py     writes results/memory.json; exits 1 beyond a limit

Linux only: peaks are VmHWM of fresh processes.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgelm import hardware
from edgelm.benchmark import random_model
from edgelm.checkpoint.shapes import shape_config

MIB = 1 << 20
LOAD_LIMIT_BYTES = 500 * MIB  # beside the packed weights and `import torch`
PLAN_LIMIT = (0.05, 100 * MIB)  # what the prediction may be off by: a share and a sum
SHARD_BYTES = 512 * MIB

IMPORT_TORCH = """
import re, torch
print(int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""
LOAD = """
import json, sys
import edgelm
from edgelm.benchmark import Workload, run_round
from edgelm.hardware import peak_resident_bytes
with edgelm.load(sys.argv[1], quant="int4") as lm:
    loaded = peak_resident_bytes()
    run_round(lm, Workload(prompt_tokens=1024, decode_tokens=8))
    print(json.dumps(lm.plan.to_dict() | {"loaded": loaded, "peak": peak_resident_bytes()}))
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "llama"
        write_model(folder)
        row = measure(folder)
    result = {
        "machine": f"{hardware.processor_name()}, {hardware.cores()} cores",
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python benches/memory.py",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "rows": [row],
    }
    path = Path(__file__).resolve().parent / "results" / "memory.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, value in row.items():
        print(f"{name}: {value / MIB:,.0f} MiB" if name.endswith("_bytes") else f"{name}: {value}")
    failed = row["load_peak_bytes"] > row["load_limit_bytes"]
    failed |= abs(row["prediction_error_bytes"]) > row["prediction_limit_bytes"]
    print("FAILED" if failed else "within the limits")
    return int(failed)


def write_model(folder: Path) -> None:
    """A Llama of Llama-3.2-1B's shape with a head of its own: 1.5 billion bf16 numbers, sharded."""
    config = shape_config("llama-3.2-1b") | {"tie_word_embeddings": False}
    source = random_model(config, quant="none").checkpoint
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    names = source.names()
    for name in names:
        shard[name] = source.read(name)
        if sum(t.nbytes for t in shard.values()) > SHARD_BYTES or name == names[-1]:
            file = f"model-{len(set(weight_map.values())):05}.safetensors"
            save_file(shard, folder / file)
            weight_map |= dict.fromkeys(shard, file)
            shard.clear()
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Peaks of loading and of generating, and what the plan had said."""
    torch_bytes = int(fresh_process(IMPORT_TORCH))
    told = json.loads(fresh_process(LOAD, str(folder)))
    share, added = PLAN_LIMIT
    return {
        "model": "llama-3.2-1b, untied, bf16",
        "file_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "scheme": told["scheme"],
        "bits_per_weight": round(told["bits_per_weight"], 3),
        "context": told["context"],
        "packed_bytes": told["weight_bytes"],
        "import_torch_bytes": torch_bytes,
        "load_peak_bytes": told["loaded"],
        "load_limit_bytes": told["weight_bytes"] + torch_bytes + LOAD_LIMIT_BYTES,
        "peak_bytes": told["peak"],
        "predicted_peak_bytes": told["predicted_peak_bytes"],
        "prediction_error_bytes": told["predicted_peak_bytes"] - told["peak"],
        "prediction_limit_bytes": int(share * told["peak"]) + added,
    }


def fresh_process(program: str, *arguments: str) -> str:
    """What a Python program prints."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


if __name__ == "__main__":
    raise SystemExit(main())
