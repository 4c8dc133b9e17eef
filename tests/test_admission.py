"""Refused before harm: memory that is asked for again before it is taken, and runs that teach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from test_hub_headers import files_of, weight_bytes
from test_hub_server import Hub, server  # noqa: F401  (a fixture)

import edgelm
from edgelm import loading
from edgelm.budget import past_runs
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import Part, PartName
from edgelm.hub.references import cache_dir
from edgelm.machine import cgroups, disk, hardware
from edgelm.planning.load_peak import load_peak_bytes
from edgelm.version import __version__
from quant import find

GIB = 1 << 30


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone, where runs are kept."""
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(past_runs, "KEPT", "runs.json")
    return cache_dir()


def memory_is_taken_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From so many questions on, another process has all the memory; what was answered."""
    answers: list[int] = []

    def available() -> int:
        answers.append(64 * GIB if len(answers) < calls else 1 << 20)
        return answers[-1]

    monkeypatch.setattr(hardware, "available_memory_bytes", available)
    return answers


@pytest.mark.parametrize("when", ["before the weights", "among them", "before the buffers"])
def test_memory_taken_between_plan_and_load_is_refused(
    assets: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """At whatever moment it goes; the process lives on and loads the model when it is back."""
    folder = assets / "nano" / "llama"
    asked = memory_is_taken_after(1000, monkeypatch)
    with edgelm.load(folder, quant="int8", context=32) as lm:
        products, expected = len(lm.plan.products), lm.generate([1, 2], max_new_tokens=3).token_ids
    assert len(asked) == 1 + products + 1  # the plan, each product, the buffers
    moment = {"before the weights": 1, "among them": 4, "before the buffers": 1 + products}[when]
    asked = memory_is_taken_after(moment, monkeypatch)
    with pytest.raises(edgelm.DoesNotFitError, match=r"1\.0 MiB are available now") as caught:
        edgelm.load(folder, quant="int8", context=32)
    assert len(asked) == moment + 1
    assert caught.value.exit_code == 3 and caught.value.plan.fits
    monkeypatch.undo()
    with edgelm.load(folder, quant="int8", context=32) as lm:
        assert lm.generate([1, 2], max_new_tokens=3).token_ids == expected


def test_a_budget_beyond_the_machine_is_no_memory(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(edgelm.DoesNotFitError, match="beyond what this machine has"):
        edgelm.load(tiny_llama(), budget="10TiB")


def test_the_ledger_asks_the_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger([Part("a", 0)], headroom_bytes=1000)
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 99)
    with pytest.raises(edgelm.BudgetExceededError, match="99 B"):
        ledger.extend({"a": 100})
    ledger.extend({"a": 99})


def test_a_request_too_long_is_refused_and_the_next_one_served(assets: Path) -> None:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=16) as lm:
        expected = lm.generate([5, 6, 7], max_new_tokens=4).token_ids
        for prompt, wanted in (([1] * 10, 7), ([1] * 16, 1)):
            with pytest.raises(edgelm.ContextLengthError) as caught:
                lm.generate(prompt, max_new_tokens=wanted)
            assert (caught.value.given, caught.value.allowed) == (len(prompt) + wanted, 16)
            assert str(len(prompt)) in str(caught.value) and "16" in str(caught.value)
            assert lm.generate([5, 6, 7], max_new_tokens=4).token_ids == expected


def with_the_hub(
    server: Hub, home: Path, program: str, *references: str  # noqa: F811
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a program in a process of its own; the stand-in serves "owner/model"."""
    root = Path(edgelm.__file__).parent.parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": server.address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(root),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", program, *references], env=environment, text=True,
        capture_output=True, timeout=120, cwd=root,
    )  # fmt: skip


@pytest.mark.parametrize("call", ["edgelm.load(sys.argv[1], budget='64MiB')", "command"])
def test_a_hub_model_that_does_not_fit_is_not_fetched(
    server: Hub, assets: Path, tmp_path: Path, call: str  # noqa: F811
) -> None:  # fmt: skip
    """Of megabytes of weights only kilobytes of headers are sent, and the exit code is 3."""
    server.files = files_of(assets / "nano" / "llama")
    program = (
        "import sys, edgelm\nfrom edgelm.cli.main import main\n"
        "sys.exit(main(['generate', sys.argv[1], 'Hello', '--budget', '64MiB', '--json']))"
        if call == "command"
        else f"import sys, edgelm\ntry:\n    {call}\nexcept edgelm.DoesNotFitError as error:\n"
        "    print(error)\n    sys.exit(error.exit_code)"
    )
    done = with_the_hub(server, tmp_path, program, "owner/model")
    assert done.returncode == 3, done.stdout + done.stderr
    print(f"sent {server.sent} bytes of {weight_bytes(server.files)}")
    assert server.sent < 100_000 < weight_bytes(server.files) / 50
    assert not list(tmp_path.rglob("*.safetensors"))


PLANS = """
import sys, edgelm
from edgelm import loading
planned, solve = [], loading.solve
def counted(model, *given, **named):
    planned.append(model.name)
    return solve(model, *given, **named)
loading.solve = counted
draft = {"draft": sys.argv[2]} if len(sys.argv) > 2 else {}
with edgelm.load(sys.argv[1], quant="int8", context=32, chunk=16, **draft) as lm:
    print(*planned, len(lm.generate([5, 6, 7], max_new_tokens=4).token_ids))
"""


@pytest.mark.parametrize("draft", [None, "nano", "owner/model"])
def test_a_hub_model_is_planned_once(
    server: Hub, assets: Path, tmp_path: Path, draft: str | None  # noqa: F811
) -> None:  # fmt: skip
    """From headers, before it is fetched; its tokens and a draft's are compared after."""
    folder = assets / "nano" / "llama"
    server.files = files_of(folder)
    more = [] if draft is None else [str(folder) if draft == "nano" else draft]
    done = with_the_hub(server, tmp_path, PLANS, "owner/model", *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["owner/model", "4"]
    assert list(tmp_path.rglob("*.safetensors"))


def test_a_copy_of_the_embedding_is_planned_again(
    server: Hub, assets: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """Headers name a head beside a tied embedding; only the weights tell that it is a copy."""
    folder = Path(shutil.copytree(assets / "nano" / "llama", tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    server.files = files_of(folder)
    done = with_the_hub(server, tmp_path / "home", PLANS, "owner/model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["owner/model", "owner/model", "4"]


def test_a_draft_is_not_opened_beside_a_model_that_does_not_fit(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft without headers to read would be fetched whole."""
    opened: list[str] = []

    def counted(model: Any, *given: Any, **named: Any) -> Any:
        opened.append(str(model))
        return open_(model, *given, **named)

    open_ = loading._open
    monkeypatch.setattr(loading, "_open", counted)
    folder = assets / "nano" / "llama"
    with pytest.raises(edgelm.DoesNotFitError):
        edgelm.load(folder, draft="owner/model", budget="64MiB")
    with pytest.raises(edgelm.UsageError, match="guesses none"):
        edgelm.load(folder, draft="owner/model", draft_depth=0, quant="int8", context=32)
    assert opened == [str(folder)] * 2


def test_a_draft_that_does_not_fit_is_not_fetched(
    server: Hub, assets: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    folder = assets / "nano" / "llama"
    server.files = files_of(folder)
    # The model alone fits.
    alone = "edgelm.plan(sys.argv[1], quant='int8', context=32, chunk=16).predicted_peak_bytes"
    program = PLANS.replace("context=32", f"context=32, budget={alone} + (3 << 20)")
    done = with_the_hub(server, tmp_path, program, str(folder), "owner/model")
    assert done.returncode == 1 and "DoesNotFitError" in done.stderr
    assert server.sent < 200_000 and not list(tmp_path.rglob("*.safetensors"))


def test_runs_are_kept_and_shown(
    cache: Path, tiny_llama: Callable[..., Path], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What a run takes beyond its plan is what the next plan adds to its runtime."""
    from edgelm.cli.main import main

    folder = tiny_llama()
    plan = edgelm.plan(folder, quant="none", context=32)
    assert PartName.RUNTIME_LEARNED not in {part.name for part in plan.parts}
    beyond = 30 << 20
    peaks = iter([1, plan.predicted_peak_bytes + beyond])  # when it begins, when it is closed
    monkeypatch.setattr(hardware, "peak_resident_bytes", lambda: next(peaks))
    with edgelm.load(folder, quant="none", context=32) as lm:
        predicted = lm.plan.predicted_peak_bytes
    (run,) = past_runs.recorded(cache)
    assert run.predicted_bytes == predicted and run.version == __version__
    assert abs(run.beyond_bytes - beyond) < 8 << 20  # the process may have grown since the plan
    after = {p.name: p.bytes for p in edgelm.plan(folder, quant="none", context=32).parts}
    assert after[PartName.RUNTIME_LEARNED] == run.beyond_bytes == past_runs.correction_bytes(cache)
    monkeypatch.setattr(hardware, "read_gb_s", lambda: 20.0)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["peak_bytes"] == run.peak_bytes
    assert told["learned_bytes"] == run.beyond_bytes
    assert main(["doctor", "--clear-cache"]) == 0
    assert not (cache / "runs.json").exists()


def kept(cache: Path, *beyond_mib: int, version: str = __version__) -> None:
    entries = [
        {"model": "m", "scheme": "int4", "predicted_bytes": GIB, "version": version,
         "peak_bytes": GIB + (mib << 20), "ended": "2026-01-01T00:00:00Z"}
        for mib in beyond_mib
    ]  # fmt: skip
    cache.mkdir(exist_ok=True)
    (cache / "runs.json").write_text(json.dumps(entries))


def test_the_correction_is_a_median_and_never_negative(cache: Path) -> None:
    assert past_runs.correction_bytes(cache) == 0
    kept(cache, 10, 200, 12)
    assert past_runs.correction_bytes(cache) == 12 << 20  # one odd run changes little
    kept(cache, -30, -20, 5)
    assert past_runs.correction_bytes(cache) == 0
    kept(cache, 90, version="0.0.0")
    assert past_runs.correction_bytes(cache) == 0 and len(past_runs.recorded(cache)) == 1


@pytest.mark.parametrize("damage", ["", "{}", "[1, null]", '[{"model": "m"}]', "[" * 100_000])
def test_damaged_runs_count_as_absent(cache: Path, damage: str) -> None:
    cache.mkdir()
    (cache / "runs.json").write_text(damage)
    assert past_runs.recorded(cache) == () and past_runs.correction_bytes(cache) == 0


@pytest.mark.parametrize(
    ("predicted", "peak"),
    [(1, 1 << 60), (1, 10**400), (10**400, 10**400 + 1), (0, 1), (-GIB, GIB), (GIB, -1), (GIB, 0),
     (GIB, GIB + (300 << 20)), (1.0, 2.0), (True, True), ("1", "2"), (None, None)],
)  # fmt: skip
def test_an_implausible_run_refuses_no_model(
    cache: Path, tiny_llama: Callable[..., Path], predicted: Any, peak: Any
) -> None:
    """Alone or among others; it is dropped when the next run is kept."""
    folder = tiny_llama()
    expected = edgelm.plan(folder)
    kept(cache, 10)
    (own,) = json.loads((cache / "runs.json").read_text())
    wrong = own | {"predicted_bytes": predicted, "peak_bytes": peak}
    (cache / "runs.json").write_text(json.dumps([wrong]))
    assert past_runs.recorded(cache) == ()
    found = edgelm.plan(folder)
    assert found.fits and PartName.RUNTIME_LEARNED not in {part.name for part in found.parts}
    (cache / "runs.json").write_text(json.dumps([wrong, own, wrong]))
    assert past_runs.correction_bytes(cache) == 10 << 20
    past_runs.record(cache, "m", expected, expected.predicted_peak_bytes)
    assert len(json.loads((cache / "runs.json").read_text())) == 2


@pytest.mark.parametrize(
    "speed", ["0", "-1", "NaN", "Infinity", "-Infinity", "1e-300", "1e300", "1" + "0" * 400,
              '"40"', "true", "null", "[]"],
)  # fmt: skip
def test_an_implausible_speed_counts_as_not_measured(cache: Path, speed: str) -> None:
    cache.mkdir()
    processor = json.dumps(hardware.processor_name())
    (cache / "machine.json").write_text(f'{{"processor": {processor}, "read_gb_s": {speed}}}')
    (cache / "disk.json").write_text(f'{{"read_gb_s": {speed}}}')
    assert hardware.recorded_read_gb_s(cache) is None and disk.recorded_read_gb_s(cache) is None
    assert disk.expected_tok_s(cache, 10**9, 10**8) is None
    for name in ("machine.json", "disk.json"):
        (cache / name).write_text("[1]")
    assert hardware.recorded_read_gb_s(cache) is None and disk.recorded_read_gb_s(cache) is None


def test_few_runs_are_kept_and_no_foreign_memory(
    cache: Path, tiny_llama: Callable[..., Path]
) -> None:
    plan = edgelm.plan(tiny_llama())
    for index in range(past_runs.KEPT_RUNS + 3):
        past_runs.record(cache, str(index), plan, plan.predicted_peak_bytes)
    assert past_runs.recorded(cache)[0].model == "3"
    assert len(past_runs.recorded(cache)) == past_runs.KEPT_RUNS
    past_runs.record(cache, "beside a data frame", plan, plan.predicted_peak_bytes + GIB)
    assert past_runs.recorded(cache)[-1].model != "beside a data frame"


V1 = {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "700",
      "memory.stat": "inactive_file 1\nactive_file 1\ntotal_inactive_file 250\n"
                     "total_active_file 100\ntotal_mapped_file 70\ntotal_shmem 20\n"}  # fmt: skip
V2 = {"memory.max": "1000", "memory.current": "700",
      "memory.stat": "anon 400\ninactive_file 250\nactive_file 100\n"
                     "file_mapped 70\nshmem 20\n"}  # fmt: skip
OPEN = {"memory.max": "max", "memory.current": "700", "memory.stat": "anon 700\n"}


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("5:memory:/a/b\n0::/\n", {"memory/a": V1}, [(1000, 400)]),
        ("5:cpu:/a\n4:memory,hugetlb:/docker/x\n", {"memory": V1}, [(1000, 400)]),
        ("0::/a/b\n", {"a": V2, "a/b": OPEN}, [(1000, 400)]),
        ("0::/a\n", {"": V2, "a": V2 | {"memory.max": "900"}}, [(900, 400), (1000, 400)]),
        ("4:memory:/\n0::/a\n", {"unified/a": V2}, [(1000, 400)]),
        ("0::/\n", {"": OPEN}, []),
        ("4:memory:/\n", {"memory": V1 | {"memory.limit_in_bytes": "9223372036854771712"}}, []),
        ("0::/a\n", {"a": V2 | {"memory.current": "?"}}, []),
    ],
)
def test_limits_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, groups: dict[str, dict[str, str]],
    expected: list[tuple[int, int]],
) -> None:  # fmt: skip
    """Of the own group and those around it, of both versions; pages of files count as free."""
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path / "mount")
    for group, files in groups.items():
        folder = tmp_path / "mount" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    found = [(limit.limit_bytes, limit.used_bytes) for limit in cgroups.limits()]
    assert found == expected
    if expected:
        least = min(limit - used for limit, used in expected)
        assert hardware.available_memory_bytes() == least


def test_mapped_files_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process and others; shared memory, which is mapped too, was never counted free."""
    available = []
    for mapped, shared in ((0, 0), (3 << 20, 1 << 20), (1 << 20, 3 << 20)):
        (tmp_path / "meminfo").write_text(f"Mapped: {mapped >> 10} kB\nShmem: {shared >> 10} kB\n")
        monkeypatch.setattr(hardware, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(cgroups, "limits", lambda: ())
        memory = type("Memory", (), {"available": 10 << 20})
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        available.append(hardware.available_memory_bytes())
    assert available == [10 << 20, 8 << 20, 10 << 20]


def test_the_load_peak_is_that_of_its_worst_moment(tiny_llama: Callable[..., Path]) -> None:
    """A head that comes last is made beside all other weights; an embedding beside none."""
    files: Any = edgelm.models.model_files.ModelFiles.open(tiny_llama(vocab_size=64000))
    plan = edgelm.plan(files, quant="none", context=32)
    names = files.assemble("causal-lm").names
    embed, *layers, head = plan.products
    alone = load_peak_bytes([embed], names, 0)
    assert embed.nbytes < alone < embed.nbytes + (50 << 20)
    rest = embed.nbytes + sum(product.nbytes for product in layers)
    assert load_peak_bytes(plan.products, names, 0) == rest + load_peak_bytes([head], names, 0)
    assert load_peak_bytes(plan.products, names, 7) == load_peak_bytes(plan.products, names, 0) + 7


def test_memory_is_given_back_before_and_after_a_layout(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that were read linger in the C library, up to 48 MiB of them, beside the layout."""
    kernel, events = type(find("reference")), []
    prepare = kernel.prepare

    def preparing(*given: Any) -> Any:
        events.append("laid out")
        return prepare(*given)

    monkeypatch.setattr(kernel, "prepare", preparing)
    monkeypatch.setattr(hardware, "release_freed_memory", lambda: events.append("given back"))
    with edgelm.load(tiny_llama(), quant="int8", backend="reference", context=32) as lm:
        products = len(lm.plan.products)
    assert events == ["given back", "laid out", "given back"] * products
