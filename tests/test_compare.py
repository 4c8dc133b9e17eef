"""The comparison with other engines, as far as it needs none: turns, files, failures, tables."""

from __future__ import annotations

import importlib
import json
import runpy
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from edgelm.checkpoint.gguf_header import read_header
from edgelm.checkpoint.gguf_writer import Entry, create_gguf
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.reports.benchmark import random_model

BENCHES = Path(__file__).resolve().parent.parent / "benches"
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 300,
    "eos_token_id": 301,
}


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of benches/comparison by its name."""
    monkeypatch.syspath_prepend(BENCHES)

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"comparison.{name}")

    return load


def test_everybody_has_one_turn_a_round_and_begins_once(part: Any) -> None:
    order = part("turns").order
    rounds = [order(["a", "b", "c"], i) for i in range(3)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 3
    assert {names[0] for names in rounds} == {"a", "b", "c"}


def test_ratio_is_the_median_of_pairs_of_one_round(part: Any) -> None:
    """On a machine that slows down, pairs tell 2x where medians of each side would tell 1.5x."""
    summary = part("turns").summary
    values = {
        "us": {0: 30.0, 1: 20.0, 2: 2.0, 3: 1.0},
        "they": {0: 15.0, 1: 10.0, 2: 1.0},  # out in the last round
        "never": {},
    }
    rows = summary(values, {"they": values["us"]}, True)
    print(rows)
    assert rows["they"]["pairs"] == [2.0, 2.0, 2.0] and rows["they"]["ratio"] == 2.0
    assert rows["they"]["value"] == 10.0 and rows["they"]["turns"] == 3
    assert "ratio" not in rows["us"] and "never" not in rows
    seconds = summary({"they": {0: 3.0}}, {"they": {0: 1.0}}, False)
    assert seconds["they"]["ratio"] == 3.0


def test_who_is_hopeless_has_one_turn(part: Any) -> None:
    is_hopeless = part("turns").is_hopeless
    rates = {"us": {0: 40.0, 1: 41.0}, "slow": {0: 3.0}, "hopeless": {0: 1.9}, "late": {1: 0.1}}
    assert [name for name in rates if is_hopeless(name, rates, True)] == ["hopeless"]
    seconds = {"us": {0: 0.5}, "slow": {0: 9.0}, "hopeless": {0: 10.1}, "free": {0: 0.0}}
    assert [name for name in seconds if is_hopeless(name, seconds, False)] == ["hopeless"]


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1"])
def test_files_of_random_blocks_load_and_equal(part: Any, tmp_path: Path, kind: str) -> None:
    """Our reader gives what gguf's own dequantization gives, q and k in Hugging Face's order."""
    models = part("gguf_models")
    path = tmp_path / "tiny.gguf"
    models.write_zeros(path, TINY)
    if kind != "F16":
        as_kind(path, kind)
    models.fill(path)
    checkpoint = open_checkpoint(path)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    pairs = {
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
    }
    for ours, theirs in pairs.items():
        stored = tensors[theirs]
        expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
        found = checkpoint.read(ours).float().numpy()
        deviation = float(found.std())
        print(f"{kind} {ours}: standard deviation {deviation:.4f}")
        assert np.array_equal(found, expected)
        assert 0.8 * models.STD < deviation < 1.25 * models.STD
    assert checkpoint.read("model.norm.weight").eq(1).all()
    assert checkpoint.config["vocab_size"] == TINY["vocab_size"]


def as_kind(path: Path, kind: str) -> None:
    """The file with its matrices' places as `kind`, as a quantizer would leave it."""
    header = read_header(path)
    keys = {k: v for k, v in header.metadata.items() if k != "general.architecture"}
    entries = [
        Entry(t.name, kind if len(t.shape) == 2 else "F32", t.shape)
        for t in header.tensors.values()
    ]
    path.unlink()
    create_gguf(path, "llama", keys, entries)


def test_sizes_leave_a_mere_lookup_table_out(part: Any, tmp_path: Path) -> None:
    models = part("gguf_models")
    for tied in (True, False):
        path = tmp_path / f"tied-{tied}.gguf"
        models.write_zeros(path, TINY | {"tie_word_embeddings": tied})
        sizes = models.gguf_sizes(path)
        table = 320 * 64 * 2
        assert sizes["weight_bytes"] - sizes["bytes_per_token"] == (0 if tied else table)
        assert 16 < sizes["bits_per_weight"] < 16.2


def test_a_shape_without_gguf_is_named(part: Any, tmp_path: Path) -> None:
    with pytest.raises(part("missing").Missing, match="helium"):
        part("gguf_models").write_zeros(tmp_path / "h.gguf", "helium-1-preview-2b")


def test_every_case_of_the_goals_is_there(part: Any) -> None:
    cases = part("cases")
    goals = {
        *("decode-int4-1b", "decode-int4-2b", "decode-int4-8b", "decode-int4-demo"),
        *("decode-int8-1b", "prefill-int4-1b", "prefill-int4-2b", "prefill-int8-1b"),
        *("decode-long", "prompt-lookup", "second-start", "resident"),
    }
    assert goals <= set(cases.CASES)
    for case in cases.CASES.values():
        names = [entrant.name for entrant in cases.entrants(case)]
        assert len(set(names)) == len(names) and names[0].startswith("edgelm")
        assert "llama.cpp" in names


def test_who_is_not_there_says_why_and_the_others_are_measured(
    part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run with one engine that answers, one that dies in its second turn, one not installed."""
    run, cases, missing = part("run"), part("cases"), part("missing").Missing

    class Scripted:
        def __init__(self, spec: dict[str, Any], environment: dict[str, str]) -> None:
            self.speed, self.turns = spec.get("speed", 0), 0
            self.dies = spec.get("dies", False)
            if not self.speed:
                raise missing("ModuleNotFoundError: No module named 'theirs'")
            self.about = {"type": "int4", "bits_per_weight": 4.5, "bytes_per_token": 10**9}

        def turn(self, prompt: int, steps: int) -> dict[str, float]:
            self.turns += 1
            taken.append(self.speed)
            if self.dies and self.turns > 2:
                raise missing("its process ended with -9")
            return {"prefill_s": 1.0, "decode_s": steps / self.speed}

        def seconds_alive(self) -> float:
            return 1.0

        def close(self) -> None:
            pass

    taken: list[int] = []
    entrants = [
        cases.Entrant("edgelm, native", "edgelm", ({"speed": 20},)),
        cases.Entrant("best of two", "edgelm", ({"speed": 5}, {"speed": 10})),
        cases.Entrant("dies", "edgelm", ({"speed": 40, "dies": True},)),
        cases.Entrant("absent", "edgelm", ({},)),
    ]
    monkeypatch.setattr(run, "Worker", Scripted)
    monkeypatch.setattr(run, "REST_S", 0.0)
    monkeypatch.setattr(run, "entrants", lambda case: entrants)
    monkeypatch.setattr(run.Machine, "read_gb_s", lambda self: 40.0)
    monkeypatch.setattr(run.Machine, "vnni_gops", lambda self: None)
    runner = run.Runner(tmp_path, 3, torch.get_num_threads(), 60.0, lambda text: None)
    rows = {row["engine"]: row for row in runner.run(cases.CASES["decode-int4-1b"])}
    print(json.dumps(rows, indent=1))
    assert rows["best of two"]["ratio"] == 2.0 and rows["best of two"]["settings"]["speed"] == 10
    assert [tried["value"] for tried in rows["best of two"]["tried"]] == [5.0, 10.0]
    assert rows["edgelm, native"]["gb_s"] == 20.0 and rows["edgelm, native"]["read_gb_s"] == 40.0
    assert rows["dies"]["missing"] == "its process ended with -9" and rows["dies"]["turns"] == 1
    assert "theirs" in rows["absent"]["missing"] and "value" not in rows["absent"]
    # After two trials and the turns that warm up: we beside each of the others, in both orders.
    assert taken[7:] == [20, 10, 20, 40, 40, 20, 10, 20, 20, 10]


def test_a_stopped_run_goes_on_and_a_named_case_is_run_again(
    part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compare = importlib.import_module("compare")
    ran: list[str] = []

    class Scripted:
        def __init__(self, *arguments: Any) -> None:
            pass

        def run(self, case: Any) -> list[dict[str, Any]]:
            ran.append(case.name)
            if len(ran) == 3:
                raise KeyboardInterrupt
            return [{"case": case.name, "engine": "edgelm", "value": len(ran), "unit": "tok/s"}]

    names = list(compare.CASES)
    monkeypatch.setattr(compare, "Runner", Scripted)
    monkeypatch.setattr(compare, "RESULT", tmp_path / "results" / "compare.json")
    command = ["compare.py", "--files", str(tmp_path / "files")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(KeyboardInterrupt):
        compare.main()
    assert compare.main() == 0
    assert ran == [*names[:3], *names[2:]]
    monkeypatch.setattr("sys.argv", [*command, names[1]])
    assert compare.main() == 0
    result = json.loads(compare.RESULT.read_text("utf-8"))
    print(ran, result["versions"])
    assert [row["case"] for row in result["rows"]] == names
    assert result["rows"][1]["value"] == len(ran) and set(result["versions"]) > {"torch", "torchao"}
    monkeypatch.setattr("sys.argv", ["compare.py", "decode-int3"])
    with pytest.raises(SystemExit):
        compare.main()


def test_a_worker_that_cannot_load_says_why(part: Any) -> None:
    """In a real process: what fails there comes back as words."""
    spec = {"engine": "edgelm", "model": "no-such-shape", "threads": 1, "shape": True}
    with pytest.raises(part("missing").Missing, match="no-such-shape"):
        part("process").Worker(spec | {"quant": "int4", "context": 64}, {})


def test_what_torch_alone_costs_is_measured_in_the_process_it_is_taken_from(
    part: Any, tmp_path: Path
) -> None:
    """Measured in another process it was more than all of a second start, now and then."""
    path = tmp_path / "tiny.gguf"
    part("gguf_models").write_zeros(path, TINY)
    part("gguf_models").fill(path)
    spec = {"engine": "edgelm", "model": str(path), "threads": 1, "context": 64}
    worker = part("process").Worker(spec, {})
    with closing(worker):
        worker.turn(prompt=4, steps=1)
        assert 0 < worker.about["import_torch_s"] < worker.seconds_alive()
        assert worker.about["import_torch_bytes"] > 50 * 2**20
    start = part("cases").START.value
    assert start([{"alive_s": 2.0}], {"import_torch_s": 1.5}) == 0.5


def test_the_table_shows_shares_ratios_and_who_was_absent() -> None:
    columns = runpy.run_path(str(BENCHES / "tables.py"))["TABLES"]["compare"]
    row = {
        "case": "decode-int4-1b", "engine": "llama.cpp", "type": "Q4_0", "bits_per_weight": 4.94,
        "value": 40.0, "unit": "tok/s", "ratio": 1.5, "pairs": [1.4, 1.5, 1.7],
        "gb_s": 30.0, "read_gb_s": 40.0,
    }  # fmt: skip
    shown = {name: show(row) for name, show in columns.items()}
    print(shown)
    assert shown["we are better by"] == "**1.50x** (1.40–1.70)"
    assert shown["GB/s (of reading)"] == "30 (75%)" and shown["measured"] == "40 tok/s"
    absent = {"case": "decode-int4-1b", "engine": "OpenVINO GenAI", "missing": "not installed"}
    shown = {name: show(absent) for name, show in columns.items()}
    assert shown["we are better by"] == "not measured" and shown["measured"] == ""


def test_only_engines_import_peers() -> None:
    """Engines are imported by a worker that is asked for them; everything else runs without."""
    found = [
        path.stem
        for path in (BENCHES / "comparison").glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import ", "from "))
        and line.split()[1].split(".")[0] in ("llama_cpp", "openvino", "transformers")
    ]
    print(found)
    assert found and all(name.endswith("_engine") for name in found)


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "Q8_0", "F16"])
def test_llama_cpp_runs_the_files(
    part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """Its own quantizer chooses the types, and a worker answers turns from an empty cache."""
    pytest.importorskip("llama_cpp", reason="extra 'peers': llama-cpp-python")
    models = part("gguf_models")
    monkeypatch.setattr(models, "random_model", lambda shape, quant: random_model(TINY, quant))
    path = models.gguf_file(tmp_path, "tiny", kind, 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    spec = {"engine": "llama.cpp", "model": str(path), "threads": 1, "context": 64, "flash": True}
    worker = part("process").Worker(spec, {})
    try:
        told = [worker.turn(40, 8) for _ in range(2)]
    finally:
        worker.close()
    print(worker.about, told)
    assert worker.about["type"] == kind and all(t["decode_s"] > 0 for t in told)
