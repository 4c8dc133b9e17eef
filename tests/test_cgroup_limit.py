"""Inside a memory cgroup: what is planned runs, what is too much is refused and nobody killed."""

from __future__ import annotations

import json
from pathlib import Path

from memory_cgroup import memory_cgroup, run_inside

MIB = 1 << 20
GENERATE = """
import json, sys
import edgelm
from edgelm.machine import hardware
with edgelm.load(sys.argv[1], quant="int8", context=int(sys.argv[2])) as lm:
    answer = lm.generate("Once upon a time", max_new_tokens=8, temperature=0.0)
    peak = hardware.peak_resident_bytes()
    print(json.dumps(lm.plan.to_dict() | {"peak": peak, "text": answer.text,
                                          "limit": hardware.cgroup_limit_bytes()}))
"""
COMMAND = """
import json, sys
from edgelm.cli.main import main
code = main([*sys.argv[1:], "--json"])
print(json.dumps({"code": code}))
"""


def test_generating_inside_a_group_as_planned(assets: Path) -> None:
    """The budget is the group's, and the peak stays below the plan and the limit."""
    with memory_cgroup(400 * MIB) as group:
        told = json.loads(run_inside(group, GENERATE, str(assets / "nano" / "llama"), "512"))
    print(
        f"limit {told['limit'] / MIB:.0f} MiB, budget {told['budget_bytes'] / MIB:.0f}, planned "
        f"{told['predicted_peak_bytes'] / MIB:.0f}, measured {told['peak'] / MIB:.0f}"
    )
    assert told["limit"] == 400 * MIB and told["text"]
    # Code pages that another process has touched before are resident here and not charged here.
    assert told["budget_bytes"] < told["limit"] + 250 * MIB
    assert told["peak"] <= told["predicted_peak_bytes"] * 1.01


def test_a_shape_of_8b_is_refused_at_1_gib() -> None:
    """Exit code 3 and the plan, from a process that lives to say so."""
    for verb in ("plan", "bench"):
        with memory_cgroup(1024 * MIB) as group:
            arguments = (verb, "--shape", "llama-3-8b", "--quant", "int4")
            said = run_inside(group, COMMAND, *arguments).splitlines()
        assert json.loads(said[-1]) == {"code": 3}
        told = json.loads("\n".join(said[:-1]))
        plan = told if verb == "plan" else told["error"]["plan"]
        print(f"{verb}: needs {plan['predicted_peak_bytes'] / MIB:.0f} MiB")
        assert not plan["fits"] and plan["predicted_peak_bytes"] > 4096 * MIB
        assert plan["budget_bytes"] < 1300 * MIB
