"""Layers streamed from disk: the same tokens in a smaller budget, and files that are checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.budget.placement import streamed_layers
from edgelm.layerstore import layer_folder
from edgelm.layerstore.layer_file import LayerFile
from edgelm.layerstore.layer_stream import LayerStream, _Slot
from edgelm.machine import disk
from edgelm.planning.solver import _rank
from edgelm.reports.diagnosis import clear_cache

FAMILIES = ("bloom", "gemma2", "helium", "llama", "persimmon")
SETTINGS: dict[str, Any] = {"quant": "int4", "kv": "float32", "context": 64, "chunk": 8}
PROMPT = "Once upon a time there was a little girl who"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, a process of a fixed size (layers here are smaller than its swings), and
    a disk that need not be measured."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("EDGELM_CACHE", str(cache))
    monkeypatch.setattr("edgelm.machine.hardware.resident_bytes", lambda: 300 << 20)
    (cache / disk.PROFILE).write_text('{"read_gb_s": 0.001}')
    return cache


def layer_bytes(plan: edgelm.Plan) -> int:
    return sum(p.nbytes for p in plan.products if p.names[0].startswith("layers."))


def tight(folder: Path, share: float = 1.0, **settings: Any) -> dict[str, Any]:
    """Settings under which ``share`` of what streaming can save must be saved."""
    plan = edgelm.plan(folder, **settings)
    room = 1 - 2 / len(plan.placement)
    budget = plan.predicted_peak_bytes - int(share * room * layer_bytes(plan)) + (96 << 10)
    return settings | {"budget": budget, "offload": "disk"}


@pytest.fixture
def nano(assets: Path) -> Path:
    return assets / "nano" / "llama"


def layer_files(cache: Path) -> list[Path]:
    return sorted((cache / layer_folder.FOLDER).rglob("*.layer"))


@pytest.mark.parametrize(("share", "streamed"), [(0.4, 4), (0.65, 5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_same(assets: Path, family: str, share: float, streamed: int) -> None:
    """Bit for bit: prompts in chunks, decoding, batches of different lengths, probabilities."""
    folder = assets / "nano" / family
    settings = tight(folder, share, rows=2, **SETTINGS)
    prompts = [PROMPT, "The", "It was late and the king"]
    answers = []
    for offload in ("none", "disk"):
        own = settings | {"offload": offload} | ({"budget": None} if offload == "none" else {})
        with edgelm.load(folder, **own) as lm:
            found = lm.generate(prompts, max_new_tokens=12, temperature=0.0, logprobs=3)
            answers.append([(result.token_ids, result.logprobs) for result in found])
            places = lm.plan.placement
    print(family, places)
    assert answers[0] == answers[1] and all(ids for ids, _ in answers[0])
    assert places.count("disk") == streamed


@pytest.mark.parametrize("quant", ["none", "int8", "nf4"])
def test_other_schemes(nano: Path, quant: str) -> None:
    settings = tight(nano, 0.7, **(SETTINGS | {"quant": quant}))
    with edgelm.load(nano, **(SETTINGS | {"quant": quant})) as lm:
        expected = lm.generate(PROMPT, max_new_tokens=8, temperature=0.0).token_ids
        report = lm.report
    with edgelm.load(nano, **settings) as lm:
        assert lm.generate(PROMPT, max_new_tokens=8, temperature=0.0).token_ids == expected
        assert lm.report == report  # in the same order, with the same errors in dB


def test_the_plan_names_what_streaming_takes(nano: Path) -> None:
    whole = edgelm.plan(nano, **SETTINGS)
    settings = tight(nano, 0.5, **SETTINGS)
    plan = edgelm.plan(nano, **settings)
    assert not edgelm.plan(nano, **(settings | {"offload": "none"})).fits
    parts = {part.name: part for part in plan.parts}
    assert plan.fits and plan.predicted_peak_bytes <= plan.budget_bytes
    assert parts["weights.streamed"].where == "disk" and parts["streaming buffers"].where == "host"
    assert plan.weight_bytes == whole.weight_bytes
    assert plan.bits_per_weight == whole.bits_per_weight
    host = sum(part.bytes for part in plan.parts if part.where == "host")
    assert plan.steady_peak_bytes == host < whole.steady_peak_bytes
    streamed = [p for p in plan.products if p.names[0].startswith("layers.")
                and plan.placement[int(p.names[0].split(".")[1])] == "disk"]  # fmt: skip
    assert parts["weights.streamed"].bytes == sum(p.nbytes for p in streamed)
    assert plan.expected_tok_s == pytest.approx(1e6 / parts["weights.streamed"].bytes)
    with edgelm.load(nano, **settings) as lm:
        taken = dict(lm.ledger.taken)
        names = {part.name for part in lm.plan.parts if part.where == "host"}
        assert taken == {n: b for n, b in lm.ledger.planned.items() if n in taken}
        assert names - set(taken) == {"runtime", "kernel scratch"}
        buffers = {b.data_ptr() for layer in streamed_layers(lm.plan)
                   for b in lm._session.engine.decoder.layers[layer].attn.buffers()}  # fmt: skip
    print(f"{len(streamed_layers(plan))} of {len(plan.placement)} layers, {len(buffers)} addresses")


def test_what_is_streamed_ranks_behind_what_fits(nano: Path) -> None:
    """And with the longest chunks, since every chunk of a prompt reads it all, then least of it."""
    plan = edgelm.plan(nano, **tight(nano, 0.5, **SETTINGS))
    fewer = [replace(p, bytes=p.bytes // 2) if p.where == "disk" else p for p in plan.parts]
    whole = edgelm.plan(nano, **SETTINGS)
    ranked = [
        replace(whole, context=plan.context, chunk=1),
        replace(plan, parts=tuple(fewer)),
        plan,
        replace(plan, parts=tuple(fewer), chunk=plan.chunk // 2),
        replace(plan, parts=tuple(fewer), context=plan.context // 2),
    ]
    assert sorted(reversed(ranked), key=_rank) == ranked


def test_as_many_layers_as_fit_stay(nano: Path) -> None:
    """Never more than needed go to disk; with room for all of them none does."""
    plan = edgelm.plan(nano, **SETTINGS)
    peak, size = plan.predicted_peak_bytes, layer_bytes(plan)
    counts = []
    for over in (-1, *range(4096, size, size // 12)):
        made = edgelm.plan(nano, **SETTINGS, offload="disk", budget=peak - over)
        counts.append(made.placement.count("disk"))
        assert made.fits == (made.predicted_peak_bytes <= peak - over)
        assert made.fits or counts[-1] == 6
    print(counts)
    assert counts == sorted(counts) and set(counts) >= {0, 3, 4, 5, 6} and not made.fits
    assert set(edgelm.plan(nano, **SETTINGS).placement) == {"cpu"}


def test_refusals(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.machine.hardware.resident_bytes", lambda: 255 << 20)
    with pytest.raises(edgelm.UsageError, match="offload 'cpu'"):
        edgelm.plan(nano, offload="cpu")
    with pytest.raises(edgelm.DoesNotFitError, match="offload='disk'"):
        edgelm.load(nano, budget="300MiB")
    with pytest.raises(edgelm.DoesNotFitError) as caught:
        edgelm.load(nano, budget="300MiB", offload="disk")
    assert "offload" not in str(caught.value) and set(caught.value.plan.placement) == {"disk"}


def test_the_speed_is_said_beforehand(nano: Path, caplog: pytest.LogCaptureFixture) -> None:
    with edgelm.load(nano, **tight(nano, 0.5, **SETTINGS)) as lm:
        streamed = len(streamed_layers(lm.plan))
        told = f"{streamed} of {len(lm.plan.placement)} layers are read from disk for every token"
    assert told in caplog.text and "tok/s, an estimate" in caplog.text


def test_the_disk_is_measured_once(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_PROBE_BYTES", 32 << 20)
    (machine / disk.PROFILE).unlink()
    disk.measure_once(machine)
    measured = disk.recorded_read_gb_s(machine)
    print(f"{measured:.2f} GB/s")
    assert measured is not None and measured > 0.001
    assert [path.name for path in machine.iterdir()] == [disk.PROFILE]
    monkeypatch.setattr(disk, "read_gb_s", lambda _: 0.0)
    disk.measure_once(machine)
    assert disk.recorded_read_gb_s(machine) == measured


@pytest.fixture
def answer(nano: Path) -> Callable[[], tuple[int, ...]]:
    """Loads under a tight budget and answers."""
    settings = tight(nano, 0.8, **SETTINGS)

    def run() -> tuple[int, ...]:
        with edgelm.load(nano, **settings) as lm:
            return tuple(lm.generate(PROMPT, max_new_tokens=6, temperature=0.0).token_ids)

    return run


def test_files_are_written_once(machine: Path, answer: Callable[[], Any]) -> None:
    expected = answer()
    stamps = {path: path.stat().st_mtime_ns for path in layer_files(machine)}
    assert answer() == expected and stamps
    assert {path: path.stat().st_mtime_ns for path in layer_files(machine)} == stamps


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(offset: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return damage


def shorten(path: Path) -> None:
    """A hole in the middle, table and tail as they were."""
    data = path.read_bytes()
    path.write_bytes(data[:1000] + data[1064:])


@pytest.mark.parametrize(
    "damage",
    [cut, empty, flip(1000), flip(-1), flip(-40), shorten],
    ids=["cut", "empty", "weights", "tail", "table", "shorter"],
)
def test_a_damaged_file_is_noticed_and_written_anew(
    machine: Path, answer: Callable[[], Any], damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expected = answer()
    target = layer_files(machine)[1]
    before = target.read_bytes()
    damage(target)
    assert answer() == expected
    assert f"{target} is damaged" in caplog.text and target.read_bytes() == before


def test_a_file_changed_while_in_use_is_an_error(machine: Path, nano: Path) -> None:
    with edgelm.load(nano, **tight(nano, **SETTINGS)) as lm:
        expected = lm.generate(PROMPT, max_new_tokens=6, temperature=0.0).token_ids
        for path in layer_files(machine):
            cut(path)
        with pytest.raises(edgelm.ModelFileError, match="changed while it was in use"):
            lm.generate(PROMPT + " went", max_new_tokens=6, temperature=0.0)
    with edgelm.load(nano, **tight(nano, **SETTINGS)) as lm:
        assert lm.generate(PROMPT, max_new_tokens=6, temperature=0.0).token_ids == expected


def test_deleted_files_do_not_stop_a_running_model(
    machine: Path, nano: Path, answer: Callable[[], Any]
) -> None:
    expected = answer()
    with edgelm.load(nano, **tight(nano, 0.8, **SETTINGS)) as lm:
        clear_cache()
        assert not (machine / layer_folder.FOLDER).exists()
        assert not (machine / disk.PROFILE).exists()
        found = lm.generate(PROMPT, max_new_tokens=6, temperature=0.0)
    assert tuple(found.token_ids) == expected


def test_another_model_in_the_same_place_has_its_own_files(tmp_path: Path, assets: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(assets / "nano" / "llama", folder)
    settings = tight(folder, 0.7, **SETTINGS)
    with edgelm.load(folder, **settings):
        pass
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100_000:] = data[-200_000:-100_000]
    weights.write_bytes(data)
    found = []
    for own in (settings, SETTINGS):
        with edgelm.load(folder, **own) as lm:
            found.append(lm.generate(PROMPT, max_new_tokens=6, temperature=0.0, logprobs=3))
    assert found[0].logprobs == found[1].logprobs


def test_a_full_disk_is_one_clear_error(
    machine: Path, answer: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before writing, and while writing; nothing half is left."""
    usage = shutil.disk_usage(machine)
    with monkeypatch.context() as patched:
        full = type(usage)(usage.total, usage.total, 1000)
        patched.setattr("shutil.disk_usage", lambda _: full)
        with pytest.raises(edgelm.EdgeLMError, match=r"disk has 1000 B free.*EDGELM_CACHE"):
            answer()

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", refuse)
        with pytest.raises(edgelm.EdgeLMError, match=r"No space left on device.*EDGELM_CACHE"):
            answer()
    left = [path.name for path in (machine / layer_folder.FOLDER).rglob("*") if path.is_file()]
    assert left == ["lock"]
    assert answer()


def test_old_models_make_room(machine: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unused goes first, and only so many as the limit asks for."""
    folders = []
    for family in ("llama", "helium", "bloom"):
        folder = assets / "nano" / family
        with edgelm.load(folder, **tight(folder, 0.7, **SETTINGS)):
            folders.append(max((machine / layer_folder.FOLDER).iterdir(), key=os.path.getmtime))
        time.sleep(0.02)
        if family == "helium":
            held = sum(path.stat().st_size for path in layer_files(machine))
            monkeypatch.setattr(layer_folder, "LIMIT_BYTES", held + 1000)
    assert len(set(folders)) == 3
    assert not folders[0].exists() and folders[2].exists()


KILLED = """
import os, sys
import edgelm
from edgelm.machine import hardware
from edgelm.layerstore import layer_file
hardware.resident_bytes = lambda: 300 << 20
real, calls = os.fsync, []
def fsync(handle):
    calls.append(handle)
    if len(calls) == 3:
        os.kill(os.getpid(), 9)
    real(handle)
layer_file.os.fsync = fsync
settings = {"quant": "int4", "kv": "float32", "context": 64, "chunk": 8, "offload": "disk"}
edgelm.load(sys.argv[1], budget=int(sys.argv[2]), **settings)
"""


def test_a_kill_while_writing_leaves_nothing_half(
    machine: Path, nano: Path, answer: Callable[[], Any]
) -> None:
    budget = tight(nano, 0.8, **SETTINGS)["budget"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(nano), str(budget)],
        cwd=Path(edgelm.__file__).parent.parent,
    )
    assert done.returncode == -9
    finished = layer_files(machine)
    (folder,) = (machine / layer_folder.FOLDER).iterdir()
    job = json.loads(finished[0].read_bytes().split(b'{"job": ')[1].split(b",")[0])
    stamps = {path: path.stat().st_mtime_ns for path in finished}
    for path in finished:
        file = LayerFile(path)
        file.check()
        assert file.table.job == job
        file.close()
    assert len(finished) == 2 and len(list(folder.glob("*.partial"))) == 1
    assert answer()
    assert {path: path.stat().st_mtime_ns for path in finished} == stamps
    assert not list(folder.glob("*.partial"))


@pytest.fixture
def streaming(nano: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(nano, **tight(nano, **SETTINGS)) as lm:
        yield lm


def test_a_step_that_broke_off_is_forgotten(
    streaming: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next step begins at the first layer again, wherever the reader was."""
    expected = streaming.generate(PROMPT, max_new_tokens=6, temperature=0.0).token_ids
    layers = streaming._session.engine.decoder.layers
    for index in range(len(layers)):
        with monkeypatch.context() as patched:

            def fail(*_: object, **__: object) -> None:
                raise RuntimeError("broke off")

            patched.setattr(layers[index].mlp, "forward", fail)
            with pytest.raises(RuntimeError, match="broke off"):
                streaming.generate(PROMPT, max_new_tokens=6, temperature=0.0)
        found = streaming.generate(PROMPT, max_new_tokens=6, temperature=0.0)
        assert found.token_ids == expected, f"after layer {index}"


@pytest.mark.parametrize(("share", "count"), [(0.4, 4), (0.7, 5)])
def test_buffers_are_read_ahead(
    nano: Path, share: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every read is of a layer still to come, the next step's first ones too; none waits for a
    layer to be asked for it."""
    told: list[tuple[str, int]] = []
    start, ask = _Slot.start, LayerStream._await

    def started(slot: _Slot, position: int, file: LayerFile) -> None:
        told.append(("read", position))
        start(slot, position, file)

    def asked(stream: LayerStream, position: int) -> None:
        told.append(("use", position))
        ask(stream, position)

    monkeypatch.setattr(_Slot, "start", started)
    monkeypatch.setattr(LayerStream, "_await", asked)
    with edgelm.load(nano, **tight(nano, share, **SETTINGS)) as lm:
        assert told == [("read", 0), ("read", 1)]
        lm.generate([5, 6, 7], max_new_tokens=3, temperature=0.0)
    uses = [position for kind, position in told if kind == "use"]
    assert uses == [*range(count)] * (len(uses) // count) and len(uses) >= 2 * count
    held: dict[int, int] = {}
    for kind, position in told:
        if kind == "read":
            assert held.get(position % 2) != position
            held[position % 2] = position
        assert held[position % 2] == position, "asked for before its read began"


def test_a_slow_disk_is_waited_for(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer computes with what its buffer held before."""
    read = LayerFile.read_into

    def slowly(file: LayerFile, buffer: torch.Tensor) -> None:
        buffer.zero_()
        time.sleep(0.02)
        read(file, buffer)

    with edgelm.load(nano, **SETTINGS) as lm:
        expected = lm.generate(PROMPT, max_new_tokens=4, temperature=0.0).token_ids
    monkeypatch.setattr(LayerFile, "read_into", slowly)
    with edgelm.load(nano, **tight(nano, 0.7, **SETTINGS)) as lm:
        assert lm.generate(PROMPT, max_new_tokens=4, temperature=0.0).token_ids == expected


def test_another_recipe_has_its_own_files(machine: Path, nano: Path) -> None:
    for quant in ("int8", "int4", "int8"):
        own = SETTINGS | {"quant": quant}
        with edgelm.load(nano, **own) as lm:
            expected = lm.generate(PROMPT, max_new_tokens=6, temperature=0.0, logprobs=3)
        with edgelm.load(nano, **tight(nano, 0.8, **own)) as lm:
            found = lm.generate(PROMPT, max_new_tokens=6, temperature=0.0, logprobs=3)
        assert found.logprobs == expected.logprobs
    assert len(list((machine / layer_folder.FOLDER).iterdir())) == 2


def test_closing_ends_reads_and_closes_files(streaming: edgelm.LanguageModel) -> None:
    stream = streaming._closing[-1].__self__
    streaming.generate(PROMPT, max_new_tokens=2, temperature=0.0)
    streaming.close()
    assert all(file._file.closed for file in stream._files)
    assert not [t for t in threading.enumerate() if t.name == "edgelm-read-ahead"]
