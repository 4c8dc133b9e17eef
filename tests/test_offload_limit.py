"""A Llama of 8B inside cgroups of 3 and 5 GiB: streamed layers, the whole model's probabilities.

Minutes, 4 GB of disk and 6 GiB of memory; the weights are random.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from memory_cgroup import memory_cgroup, run_inside

SHAPE = "llama-3-8b"
MIB = 1 << 20
KERNEL_BYTES = 128 * MIB  # of a group's limit: page tables and the like, and pages being read
GENERATE = """
import json, sys
import edgelm
from edgelm.benchmark import random_model
from edgelm.hardware import peak_resident_bytes
shape, offload, budget = sys.argv[1:]
options = {"quant": "int4", "kv": "float32", "context": 256, "chunk": 64, "threads": 1}
try:
    lm = edgelm.load(random_model(shape), offload=offload, budget=int(budget), **options)
except edgelm.DoesNotFitError as error:
    told = {"exit_code": error.exit_code, "message": str(error), "plan": error.plan.to_dict()}
    print(json.dumps(told))
    raise SystemExit
with lm:
    asked = {"max_new_tokens": 6, "temperature": 0.0, "logprobs": 3}
    request = lm.request(list(range(1000, 1100)), **asked)
    with lm.batch([request], end_ids=frozenset()) as batch:
        answers = [answer for answer, _ in batch.tokens()]
        stats = batch.stats(0)
    ids = [(own.token_id, own.logprob, own.top) for own in answers[0].logprobs]
    told = {"ids": ids, "tok_s": stats.decode_tok_s, "peak": peak_resident_bytes()}
    print(json.dumps(told | {"plan": lm.plan.to_dict()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="memory cgroups are Linux's")
def test_8b_inside_3_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path))
    with memory_cgroup(1 << 30) as group:
        refused = json.loads(run_inside(group, GENERATE, SHAPE, "disk", str(1024 * MIB)))
    assert refused["exit_code"] == 3 and not refused["plan"]["fits"]
    streamed = []
    for limit in (3072 * MIB, 5120 * MIB):
        with memory_cgroup(limit) as group:
            budget = str(limit - KERNEL_BYTES)
            streamed.append(json.loads(run_inside(group, GENERATE, SHAPE, "disk", budget)))
        show(limit, streamed[-1])
    whole = json.loads(
        subprocess.run(
            [sys.executable, "-c", GENERATE, SHAPE, "none", str(64 << 30)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ,
        ).stdout
    )
    show(None, whole)
    for limit, told in zip((3072 * MIB, 5120 * MIB), streamed, strict=True):
        plan = told["plan"]
        assert told["ids"] == whole["ids"] and len(set(plan["placement"])) == 2
        assert told["peak"] <= plan["predicted_peak_bytes"] * 1.01 < limit
    assert set(whole["plan"]["placement"]) == {"cpu"}
    assert whole["plan"]["predicted_peak_bytes"] > 5120 * MIB  # it would not have fitted


def show(limit: int | None, told: dict[str, Any]) -> None:
    plan, ids = told["plan"], [token for token, *_ in told["ids"]]
    print(
        f"limit {'none' if limit is None else limit // MIB} MiB: "
        f"{plan['placement'].count('disk')} of {len(plan['placement'])} layers streamed, peak "
        f"{told['peak'] // MIB} MiB, predicted {plan['predicted_peak_bytes'] // MIB} MiB, "
        f"{told['tok_s']:.3f} tok/s, expected {plan['expected_tok_s'] or 0:.3f}, ids {ids}"
    )
