"""Plans, load reports and models as they are printed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import Run, run  # noqa: F401  (fixture)

import edgelm
from edgelm.budget.plan_view import tensor_classes


@pytest.fixture(scope="module")
def plan(assets: Path) -> edgelm.Plan:
    return edgelm.plan(assets / "nano" / "llama", budget="2GiB", context=96)


def test_a_plan_prints_in_a_page(plan: edgelm.Plan, assets: Path) -> None:
    open_rows = edgelm.plan(assets / "nano" / "llama", rows="auto")
    assert len(open_rows.rejected) > 30 and len(str(open_rows)) < 6000
    text = str(plan)
    print(text)
    assert len(text) < 6000 and max(map(len, text.splitlines())) <= 120
    assert all(part.name in text for part in plan.parts)
    assert all(kind.kernel in text for kind in tensor_classes(plan))
    assert "budget 2.0 GiB: fits" in text and "why not" in text


def test_a_plan_prints_as_the_command_line_does(
    plan: edgelm.Plan, assets: Path, run: Run  # noqa: F811
) -> None:  # fmt: skip
    folder = str(assets / "nano" / "llama")
    shown = run("plan", folder, "--budget", "2GiB", "--context", 96).out
    words = [line.split()[:3] for line in shown.splitlines()]
    for line in str(plan).splitlines()[2 : 3 + len(plan.parts)]:
        own = line.split()[:3]
        assert own in words or own[0] == "runtime"  # which grows with what tests import
    assert shown.startswith(f"{folder}: {str(plan).splitlines()[0][:40]}")


def test_what_a_plan_lacks_is_printed(plan: edgelm.Plan) -> None:
    text = str(replace(plan, fits=False, budget_bytes=plan.predicted_peak_bytes - 1024))
    assert "DOES NOT FIT" in text and "1.0 KiB more than the" in " ".join(text.split())


def test_a_plan_s_repr_is_one_short_line(plan: edgelm.Plan) -> None:
    assert len(repr(plan)) < 200 and plan.scheme in repr(plan) and "\n" not in repr(plan)
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_notebooks_get_tables(plan: edgelm.Plan) -> None:
    marked = replace(plan, rejected=({**plan.rejected[0], "scheme": "x", "reason": "<b>"},))
    html = marked._repr_html_()
    assert html.count("<table>") == 3 and "weights.attn" in html
    assert "&lt;b&gt;" in html and "<b>" not in html


def test_a_model_and_its_report_print(assets: Path) -> None:
    with edgelm.load(assets / "nano" / "llama", quant="int4", context=96) as lm:
        assert lm.name in repr(lm) and "int4" in repr(lm) and len(repr(lm)) < 300
        assert str(lm).startswith(f"{lm.name}: int4") and "weights.mlp" in str(lm)
        assert "<table>" in lm._repr_html_()
        report = lm.report
        text = str(report)
        print(text)
        assert f"{report.bits_per_weight:.2f} bits per weight" in repr(report)
        assert "iq4-g32-coded" in text and max(map(len, text.splitlines())) <= 120
        assert len(text) < 2000 and "<table>" in report._repr_html_()
        noted = type(report)([replace(m, note="left alone") for m in report.modules[:2]])
        assert "2 matrices: left alone" in str(noted) and "left alone" in noted._repr_html_()
    assert "closed" in repr(lm)


def test_printing_is_what_imports_rich() -> None:
    program = (
        "import sys, edgelm\nfrom edgelm.budget import plan_view\n"
        "assert 'rich' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
