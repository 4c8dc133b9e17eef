"""A Llama of 8B inside cgroups of 3 and 5 GiB: as the solver chooses, and by streamed layers.

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
from edgelm.reports.benchmark import random_model
from edgelm.machine.hardware import peak_resident_bytes
shape, stored, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
try:
    lm = edgelm.load(random_model(shape, stored), threads=1, **options)
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
        refused = json.loads(run_inside(group, GENERATE, SHAPE, *small(1024 * MIB)))
    assert refused["exit_code"] == 3 and not refused["plan"]["fits"]
    streamed = []
    for limit in (3072 * MIB, 5120 * MIB):
        with memory_cgroup(limit) as group:
            arguments = small(limit - KERNEL_BYTES)
            streamed.append(json.loads(run_inside(group, GENERATE, SHAPE, *arguments)))
        show(limit, streamed[-1])
    whole = json.loads(
        subprocess.run(
            [sys.executable, "-c", GENERATE, SHAPE, *small(64 << 30)],
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


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="memory cgroups are Linux's")
def test_8b_inside_5_gib_as_the_solver_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 GB of bfloat16 in a recipe, a cache and a chunk that nobody named; refused at 1 GiB."""
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path))
    with memory_cgroup(1 << 30) as group:
        options = json.dumps({"budget": 1 << 30})
        refused = json.loads(run_inside(group, GENERATE, SHAPE, "none", options))
    print(refused["message"])
    assert refused["exit_code"] == 3 and not refused["plan"]["fits"]
    limit = 5120 * MIB
    with memory_cgroup(limit) as group:
        options = json.dumps({"budget": limit - KERNEL_BYTES})
        told = json.loads(run_inside(group, GENERATE, SHAPE, "none", options))
    show(limit, told)
    plan = told["plan"]
    assert len(told["ids"]) == 6 and set(plan["placement"]) == {"cpu"}
    assert plan["context"] == 4096 and plan["scheme"].startswith("iq4")
    assert told["peak"] <= plan["predicted_peak_bytes"] * 1.01 < limit


def small(budget: int) -> tuple[str, str]:
    """A model stored in int4, and how it is loaded: what does not fit is streamed."""
    options = {"quant": "int4", "kv": "float32", "context": 256, "chunk": 64}
    return "int4", json.dumps(options | {"offload": "disk", "budget": budget})


def show(limit: int | None, told: dict[str, Any]) -> None:
    plan, ids = told["plan"], [token for token, *_ in told["ids"]]
    print(
        f"limit {'none' if limit is None else limit // MIB} MiB: {plan['scheme']}, {plan['kv']} "
        f"cache for {plan['context']}, "
        f"{plan['placement'].count('disk')} of {len(plan['placement'])} layers streamed, peak "
        f"{told['peak'] // MIB} MiB, predicted {plan['predicted_peak_bytes'] // MIB} MiB, "
        f"{told['tok_s']:.3f} tok/s, expected {plan['expected_tok_s'] or 0:.3f}, ids {ids}"
    )
