"""A second start maps what the first one laid out: the same bits, nothing packed again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from test_offload import FAMILIES, PROMPT, SETTINGS, cut, empty, flip, layer_files, shorten, tight

import edgelm
from edgelm.engine.loader import Loader
from edgelm.layerstore import layer_folder
from edgelm.planning.settings import Settings
from edgelm.reports.benchmark import random_model
from edgelm.reports.diagnosis import clear_cache
from quant import native

needs_library = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)
Answer = tuple[torch.Tensor, dict[str, int], Any]
OTHER = "mse" if Settings().method == "rtn" else "rtn"
"""A method that a load does not choose."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which the smallest models are kept too."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("EDGELM_CACHE", str(cache))
    monkeypatch.setattr(layer_folder, "PAYS_BYTES", 0)
    monkeypatch.setattr(layer_folder, "_FREE_SHARE", 10**6)  # this machine's disk may be full
    return cache


@pytest.fixture
def nano(assets: Path) -> Path:
    return assets / "nano" / "llama"


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of matrices that are packed, as they are."""
    told: list[str] = []
    prepared = Loader._prepared

    def telling(loader: Loader, product: Any) -> Any:
        told.append(product.names[0])
        return prepared(loader, product)

    monkeypatch.setattr(Loader, "_prepared", telling)
    return told


def answer(folder: Path, **settings: Any) -> Answer:
    """Logits of a text, what the ledger handed out, and the report of the weights."""
    with edgelm.load(folder, **(SETTINGS | settings)) as lm:
        ids = torch.tensor([lm.encode(PROMPT)])
        taken = {part: n for part, n in lm.ledger.taken.items() if part.startswith("weights.")}
        return lm.forward(ids).logits.clone(), taken, lm.report


def assert_same(found: Answer, expected: Answer) -> None:
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_start_gives_the_same_bits(
    assets: Path, family: str, machine: Path, packed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = assets / "nano" / family
    with monkeypatch.context() as patched:
        patched.setattr(layer_folder, "PAYS_BYTES", 1 << 60)
        expected = answer(folder)
        assert not layer_files(machine)
    count = len(packed)
    first = answer(folder)
    assert len(packed) == 2 * count > 0
    second = answer(folder)
    print(f"{family}: {count} matrices packed, then {len(packed) - 2 * count}")
    assert len(packed) == 2 * count
    assert_same(first, expected)
    assert_same(second, expected)


@pytest.mark.parametrize(
    ("quant", "backend"),
    [
        pytest.param("int8", "native", marks=needs_library),
        ("nf4", "auto"),
        ("int4-g64", "torch"),
        ("int8-g32", "reference"),
    ],
)
def test_other_kernels_layouts(nano: Path, packed: list[str], quant: str, backend: str) -> None:
    first = answer(nano, quant=quant, backend=backend)
    count = len(packed)
    assert_same(answer(nano, quant=quant, backend=backend), first)
    assert len(packed) == count


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
def test_files_are_mapped_while_the_model_is_open(machine: Path, nano: Path) -> None:
    answer(nano)
    with edgelm.load(nano, **SETTINGS) as lm:
        maps = Path("/proc/self/maps").read_text()
        assert {path for path in layer_files(machine) if str(path) in maps} == set(
            layer_files(machine)
        )
        assert lm.ledger.taken["weights.mlp"] == lm.ledger.planned["weights.mlp"]
    assert str(machine) not in Path("/proc/self/maps").read_text()


def test_what_does_not_pay_is_not_kept(
    machine: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floats, weights that are in no file, and little ones."""
    answer(nano, quant="none")
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1,
              "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
              "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4}  # fmt: skip
    with edgelm.load(random_model(config), quant="int4", context=16, chunk=8):
        pass
    monkeypatch.setattr(layer_folder, "PAYS_BYTES", 64 << 20)
    answer(nano)
    assert not layer_files(machine)


def test_a_fresh_head_is_not_kept(machine: Path, nano: Path, packed: list[str]) -> None:
    for _ in range(2):
        packed.clear()
        task = {"task": "sequence-classification", "num_labels": 3}
        with edgelm.load(nano, **SETTINGS, **task):
            assert not list(machine.rglob("head.layer")) and layer_files(machine)
    assert packed == ["head"]


def test_floats_among_quantized_matrices_are_kept_too(nano: Path, packed: list[str]) -> None:
    """So that matrices are laid out in the order that the plan added up."""
    quant = {"default": "int4-g32", "overrides": {"embed": "none", "layers.*.mlp.down": "none"}}
    first, order = answer(nano, quant=quant), list(packed)
    assert_same(answer(nano, quant=quant), first)
    assert packed == order and order[0] == "embed"


def test_the_plan_knows_what_is_laid_out(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made beside the weights then, as headers and file names tell."""
    monkeypatch.setattr("edgelm.machine.hardware.resident_bytes", lambda: 300 << 20)
    monkeypatch.setattr(
        "edgelm.budget.past_runs.record", lambda *_: None
    )  # other tests' memory teaches nothing
    before = edgelm.plan(nano, **SETTINGS)
    answer(nano)
    after = edgelm.plan(nano, **SETTINGS)
    runtime = next(part.bytes for part in after.parts if part.name == "runtime")
    matrices = sum(product.nbytes for product in after.products)
    print(f"load peaks {before.load_peak_bytes} and {after.load_peak_bytes}")
    layout = next(part for part in before.parts if part.name == "layout cache")
    assert layout.where == "disk" and layout.bytes == matrices, "of all weights here, no memory"
    assert before.steady_peak_bytes == sum(p.bytes for p in before.parts) - layout.bytes
    assert after.load_peak_bytes == runtime + matrices < before.load_peak_bytes
    assert after.parts == before.parts and after.steady_peak_bytes == before.steady_peak_bytes


@pytest.mark.parametrize(
    "damage", [cut, empty, flip(-1), flip(-40), shorten],
    ids=["cut", "empty", "tail", "table", "shorter"],
)  # fmt: skip
def test_a_damaged_file_is_noticed_and_made_again(
    machine: Path, nano: Path, damage: Callable[[Path], None], packed: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = answer(nano)
    (target,) = machine.rglob("layers.3.layer")
    before = target.read_bytes()
    damage(target)
    packed.clear()
    assert_same(answer(nano), first)
    assert f"{target} is damaged" in caplog.text and target.read_bytes() == before
    assert packed and all(name.startswith("layers.3.") for name in packed)


def test_a_changed_model_is_laid_out_anew(tmp_path: Path, assets: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(assets / "nano" / "llama", folder)
    first = answer(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100_000:] = data[-200_000:-100_000]
    weights.write_bytes(data)
    changed = answer(folder)
    shutil.rmtree(Path(os.environ["EDGELM_CACHE"]))
    assert_same(answer(folder), changed)
    assert not torch.equal(first[0], changed[0])


def test_method_recipe_and_library_have_their_own_files(
    machine: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = machine / layer_folder.FOLDER
    chosen = {"backend": "reference"}  # `auto` may be the same as `torch` where no library is
    for settings in ({}, {"method": OTHER}, {"quant": "int8"}, {"backend": "torch"}):
        answer(nano, **(chosen | settings))
    assert len(list(folder.iterdir())) == 4
    missing = native.missing()
    monkeypatch.setattr("quant.native.ABI", -1)
    with monkeypatch.context() as patched:
        patched.setattr("quant.native.missing", lambda: missing)
        answer(nano, **chosen)
    assert len(list(folder.iterdir())) == 5


def test_a_full_disk_costs_the_second_start_only(
    machine: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before writing, while writing, and where the folder cannot be made."""
    with monkeypatch.context() as patched:
        patched.setattr(layer_folder, "PAYS_BYTES", 1 << 60)
        expected = answer(nano)
    usage = shutil.disk_usage(machine)
    with monkeypatch.context() as patched:
        nearly = type(usage)(10 << 30, 9 << 30, (1 << 30) - 1)
        patched.setattr("shutil.disk_usage", lambda _: nearly)
        patched.setattr(layer_folder, "_FREE_SHARE", 10)
        assert_same(answer(nano), expected)
    assert not layer_files(machine)
    calls: list[int] = []
    real = os.fsync

    def refuse(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", refuse)
        assert_same(answer(nano), expected)
    assert len(layer_files(machine)) == 2 and not list(machine.rglob("*.partial"))
    assert_same(answer(nano), expected)
    shutil.rmtree(machine / layer_folder.FOLDER)
    (machine / layer_folder.FOLDER).write_text("a file, not a folder")
    assert_same(answer(nano), expected)


def test_old_models_make_room(
    machine: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, packed: list[str]
) -> None:
    """The longest unused goes first, and a start that only maps counts as use."""
    for family in ("llama", "helium", "llama"):
        answer(assets / "nano" / family)
        time.sleep(0.02)
    held = sum(path.stat().st_size for path in layer_files(machine))
    monkeypatch.setattr(layer_folder, "LIMIT_BYTES", held + 1000)
    answer(assets / "nano" / "helium", method=OTHER)
    packed.clear()
    answer(assets / "nano" / "llama")
    assert packed == [], "evicted though used last"
    answer(assets / "nano" / "helium")
    assert packed


def test_nothing_goes_where_that_makes_no_room(
    machine: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(assets / "nano" / "llama")
    kept = layer_files(machine)
    usage = shutil.disk_usage(machine)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type(usage)(10**13, 10**13, 1000))
    answer(assets / "nano" / "helium")
    assert layer_files(machine) == kept


KILLED = """
import os, sys
import edgelm
from edgelm.layerstore import layer_file
from edgelm.layerstore import layer_folder
layer_folder.PAYS_BYTES = 0
layer_folder._FREE_SHARE = 10**6  # this machine's disk may be full
real, calls = os.fsync, []
def fsync(handle):
    calls.append(handle)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    real(handle)
layer_file.os.fsync = fsync
with edgelm.load(sys.argv[1], quant="int4", kv="float32", context=64, chunk=8) as lm:
    print(lm.generate("Once upon a time", max_new_tokens=8, temperature=0.0).text)
"""


def start(folder: Path, kill_at: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, str(folder), str(kill_at)]
    installed = Path(edgelm.__file__).parent.parent  # the working folder may lack the library
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=installed)


def test_a_kill_while_writing_leaves_nothing_half(
    machine: Path, nano: Path, packed: list[str]
) -> None:
    process = start(nano, 3)
    process.communicate()
    assert process.returncode == -9
    finished = layer_files(machine)
    assert len(finished) == 2 and len(list(machine.rglob("*.partial"))) == 1
    first = answer(nano)
    written = {"embed", "layers.0"}
    assert {path.stem for path in finished} == written
    assert not written & {".".join(name.split(".")[:2]) for name in packed} and packed
    packed.clear()
    assert_same(answer(nano), first)
    assert packed == [] and not list(machine.rglob("*.partial"))


def test_two_processes_at_once(machine: Path, nano: Path, packed: list[str]) -> None:
    """Both answer, whoever writes; afterwards everything is there."""
    processes = [start(nano, 0) for _ in range(2)]
    texts = [process.communicate()[0] for process in processes]
    assert texts[0] == texts[1] != "" and [p.returncode for p in processes] == [0, 0]
    answer(nano)
    assert packed == []


def test_another_writer_is_not_waited_for(machine: Path, nano: Path, packed: list[str]) -> None:
    first = answer(nano)
    (folder,) = (machine / layer_folder.FOLDER).iterdir()
    count = len(packed)
    for path in layer_files(machine):
        path.unlink()
    began = time.perf_counter()
    with FileLock(folder / "lock"):
        assert_same(answer(nano), first)
    assert time.perf_counter() - began < 10
    assert len(packed) == 2 * count and not layer_files(machine)


def test_clearing_the_cache_does_not_stop_a_running_model(machine: Path, nano: Path) -> None:
    first = answer(nano)
    with edgelm.load(nano, **SETTINGS) as lm:
        assert clear_cache() > 0 and not (machine / layer_folder.FOLDER).exists()
        ids = torch.tensor([lm.encode(PROMPT)])
        assert torch.equal(lm.forward(ids).logits, first[0])


def test_streamed_layers_and_mapped_ones_share_their_files(
    machine: Path, nano: Path, packed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm.machine.hardware.resident_bytes", lambda: 300 << 20)
    (machine / "disk.json").write_text('{"read_gb_s": 0.001}')
    first = answer(nano)
    files = {path: path.stat().st_mtime_ns for path in layer_files(machine)}
    packed.clear()
    found = answer(nano, **tight(nano, 0.5, **SETTINGS))
    assert torch.equal(found[0], first[0]) and packed == []
    assert {path: path.stat().st_mtime_ns for path in layer_files(machine)} == files


@pytest.mark.parametrize("starts", [1, 2])
def test_every_start_counts_every_byte(nano: Path, starts: int) -> None:
    """For the loading bar: never backwards, and each matrix once."""
    told: list[tuple[str, int, int]] = []
    for _ in range(starts):
        told.clear()
        with edgelm.load(nano, **SETTINGS, progress=lambda *now: told.append(now)) as lm:
            products = lm.plan.products
    done = [count for _, count, _ in told]
    assert done == sorted(done) and done[-1] == lm.plan.weight_bytes
    assert done[-2] == sum(product.nbytes for product in products)
