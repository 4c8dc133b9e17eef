"""One engine in a process of its own: a JSON line says what to load, each further one is a turn.

python -m comparison.worker        run by ``process.Worker``
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

ENGINES = {
    "edgelm": ("edgelm_engine", "EdgeLM"),
    "llama.cpp": ("llama_cpp_engine", "LlamaCpp"),
    "openvino": ("openvino_engine", "OpenVINO"),
    "transformers": ("transformers_engine", "Transformers"),
}
ON_TORCH = ("edgelm", "transformers")


def main() -> None:
    """Answers go to what was stdout; whatever engines print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    spec = json.loads(sys.stdin.readline())
    try:
        engine = load(spec)
        answer(engine.about)
        for number, line in enumerate(sys.stdin):
            prefill_s, decode_s = engine.turn(**json.loads(line), seed=number)
            answer({"prefill_s": prefill_s, "decode_s": decode_s} | memory())
    except Exception as error:  # whatever it is stands in the result file
        answer({"missing": f"{type(error).__name__}: {error}"[:400]})


def load(spec: dict[str, Any]) -> Any:
    """The engine, loaded: it has `about`, and `turn(prompt, steps, seed)`."""
    chosen = spec.pop("engine")
    base = torch_alone() if chosen in ON_TORCH else {"import_torch_s": 0.0, "import_torch_bytes": 0}
    module, name = ENGINES[chosen]
    engine = getattr(import_module(f"comparison.{module}"), name)(**spec)
    engine.about |= base
    return engine


def torch_alone() -> dict[str, float]:
    """Age and resident bytes of this process once it has imported torch and nothing else."""
    import psutil
    import torch  # noqa: F401

    own = psutil.Process()
    return {
        "import_torch_s": time.time() - own.create_time(),
        "import_torch_bytes": own.memory_info().rss,
    }


def memory() -> dict[str, int]:
    """Bytes resident now, and of them those that are no file's."""
    import psutil

    told = psutil.Process().memory_info()
    return {"resident_bytes": told.rss, "anonymous_bytes": told.rss - getattr(told, "shared", 0)}


if __name__ == "__main__":
    main()
