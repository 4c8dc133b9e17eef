"""One engine in a process of its own: a JSON line says what to load, each further one is a turn.

python -m comparison.worker        run by ``process.Worker``
"""

from __future__ import annotations

import json
import os
import sys
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
    """Answers go to what was stdout; whatever engines print goes to stderr.

    Engines that run on torch have one more, before they are loaded: what torch alone takes.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    spec = json.loads(sys.stdin.readline())
    try:
        if spec["engine"] in ON_TORCH:
            answer(torch_alone())
        engine = load(spec)
        answer(engine.about)
        for number, line in enumerate(sys.stdin):
            prefill_s, decode_s = engine.turn(**json.loads(line), seed=number)
            answer({"prefill_s": prefill_s, "decode_s": decode_s} | memory())
    except Exception as error:  # whatever it is stands in the result file
        answer({"missing": f"{type(error).__name__}: {error}"[:400]})


def load(spec: dict[str, Any]) -> Any:
    """The engine, loaded: it has `about`, and `turn(prompt, steps, seed)`."""
    module, name = ENGINES[spec.pop("engine")]
    return getattr(import_module(f"comparison.{module}"), name)(**spec)


def torch_alone() -> dict[str, int]:
    """Bytes resident once torch is imported, and nothing else."""
    import torch  # noqa: F401

    return {"import_torch_bytes": memory()["resident_bytes"]}


def memory() -> dict[str, int]:
    """Bytes resident now, and of them those that are no file's."""
    import psutil

    told = psutil.Process().memory_info()
    return {"resident_bytes": told.rss, "anonymous_bytes": told.rss - getattr(told, "shared", 0)}


if __name__ == "__main__":
    main()
