"""Folders that `quantize` writes: same integers, same logits, same bytes after a kill."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.checkpoint import safetensors_writer
from edgelm.checkpoint.gguf_writer import GGUFTensors
from edgelm.checkpoint.journal import Journal
from edgelm.checkpoint.manifest import MANIFEST
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.packed_layout import ROW_STEP, from_stored, specs, to_stored
from edgelm.checkpoint.safetensors_writer import TensorFiles
from edgelm.quantization.packed_folder import file_sha256
from edgelm.reports.inspection import inspect_files
from quant import PackedWeight, Scheme, native
from quant.methods.rtn import rtn

FAMILIES = ("bloom", "gemma2", "helium", "llama", "persimmon")
MIXED = {"default": "int4-g64-zint", "overrides": {"*.o": "int5-g32", "*.down": "none",
         "embed": "int8-g32"}}  # fmt: skip


def logits(model: Path, quant: Any, **settings: Any) -> torch.Tensor:
    tokens = torch.randint(3, 150, (2, 21), generator=torch.Generator().manual_seed(3))
    with edgelm.load(model, quant=quant, method="mse", context=64, **settings) as lm:
        return lm.forward(tokens).logits


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("text", ["int4-g32", "int4-g32-zint", "int4-g64-zfloat", "int8",
                                  "int8-zint", "int8-g32-zint", "int8-g128-zfloat",
                                  "int4-row-zint", "nf4", "fp4"])  # fmt: skip
def test_layout_round_trip(text: str) -> None:
    """Every stored tensor has the shape that was planned; every block of rows comes back."""
    scheme = Scheme.parse(text)
    rows, inputs = 37, 256 if scheme.group_size else 250
    packed = rtn(torch.randn(rows, inputs), scheme)
    stored = to_stored(packed)
    planned = specs(scheme, (rows, inputs))
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()}
    assert shapes == {name: spec for name, spec in planned.items() if name != "weight_shape"}
    same(from_stored(stored, scheme, inputs), packed)
    wide = stored | {"weight_scale": stored["weight_scale"].float()}  # as older folders have them
    same(from_stored(wide, scheme, inputs), packed)
    blocks = (packed.rows(0, 3 * ROW_STEP), packed.rows(3 * ROW_STEP, rows))
    halves = [to_stored(block) for block in blocks]
    joined = {name: torch.cat([half[name] for half in halves]) for name in stored}
    assert all(torch.equal(joined[name], stored[name]) for name in stored)


def same(ours: PackedWeight, theirs: PackedWeight) -> None:
    for name, tensor in theirs.tensors().items():
        assert torch.equal(ours.tensors()[name], tensor), name


@pytest.mark.parametrize("recipe", ["int4", "nf4", MIXED], ids=["int4", "nf4", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_as_quantizing_at_load(
    assets: Path, tmp_path: Path, family: str, recipe: Any
) -> None:
    source = assets / "nano" / family
    done = edgelm.quantize(source, tmp_path / "out", quant=recipe)
    print(f"{family}: {done.manifest.bits_per_weight:.2f} bits per weight")
    own = {"backend": "reference"} if native.missing() else {}  # torch's take other schemes
    assert torch.equal(logits(tmp_path / "out", "auto", **own), logits(source, recipe, **own))


def test_every_row_range_reads_alike(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Zero points share words between rows; ranges may begin and end inside of one."""
    out = tmp_path / "out"
    edgelm.quantize(tiny_llama(), out, quant="int4-g32-zint")
    checkpoint = open_checkpoint(out)
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = checkpoint.read_packed(name)
    for start, stop in ((0, 1), (3, 9), (7, 8), (8, 16), (9, 9), (61, 64), (0, 64)):
        same(checkpoint.read_packed(name, start, stop), whole.rows(start, stop))


def test_gguf_with_float_minima_keeps_its_integers(tmp_path: Path) -> None:
    try:
        demo = edgelm.hub.references.resolve("demo")
    except edgelm.HubError as error:
        pytest.skip(f"the demo cannot be fetched: {error}")
    done = edgelm.quantize(demo, tmp_path / "out")
    assert "cannot express int4-g32-zfloat" in done.peer_note
    assert {module.note for module in done.manifest.modules.values()} == {"kept as stored"}
    assert torch.equal(logits(tmp_path / "out", "auto"), logits(demo, "auto"))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with edgelm.load(tmp_path / "out") as ours, edgelm.load(demo) as theirs:
        assert ours.chat_ids(question) == theirs.chat_ids(question)
        assert ours.end_ids == theirs.end_ids
        assert ours.encode("Ein Satz, 123 Wörter 🙂") == theirs.encode("Ein Satz, 123 Wörter 🙂")


def test_shards(tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: Any) -> None:
    source = tiny_llama()
    edgelm.quantize(source, tmp_path / "one")
    monkeypatch.setattr(safetensors_writer.plan_layout, "__defaults__", (20_000,))
    edgelm.quantize(source, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    assert torch.equal(logits(tmp_path / "one", "auto"), logits(tmp_path / "many", "auto"))


def test_what_inspect_and_the_manifest_say(assets: Path, tmp_path: Path) -> None:
    source, out = assets / "nano" / "gemma2", tmp_path / "out"
    copy = tmp_path / "source"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "LICENSE").write_text("mine", encoding="utf-8")
    (copy / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    said: list[dict[str, int]] = []
    done = edgelm.quantize(copy, out, announce=said.append)
    assert said == [done.promised_parts] and sum(said[0].values()) == done.promised_peak_bytes
    found = inspect_files(edgelm.models.model_files.ModelFiles.open(out))
    assert found.format == "edgelm" and found.licence == "gemma"
    assert found.bits_per_weight == pytest.approx(done.manifest.bits_per_weight)
    assert found.certificate and found.certificate["method"] == "mse"
    assert (out / "LICENSE").read_text() == "mine"
    assert "license: gemma" in (out / "README-source.md").read_text()
    data = json.loads((out / MANIFEST).read_text())
    assert set(data["files"]) == {path.name for path in out.iterdir()} - {MANIFEST}
    for name, digest in data["files"].items():
        assert file_sha256(out / name) == digest
    assert "lm_head.weight" not in open_checkpoint(out).names()


def test_an_existing_folder_is_refused(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(edgelm.UsageError, match="exists"):
        edgelm.quantize(tiny_llama(), tmp_path / "out")


def test_newer_and_damaged_manifests(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    edgelm.quantize(tiny_llama(), out)
    data = json.loads((out / MANIFEST).read_text())
    for change, error in (
        ({"format_version": 3}, edgelm.UnsupportedModelError),
        ({"format_version": "1"}, edgelm.ModelFileError),
        ({"format_version": True}, edgelm.ModelFileError),
        ({"format_version": 1}, edgelm.ModelFileError),
        ({"modules": [1]}, edgelm.ModelFileError),
        ({"modules": {"x.weight": data["modules"]["lm_head.weight"]}}, edgelm.ModelFileError),
    ):
        (out / MANIFEST).write_text(json.dumps(data | change))
        with pytest.raises(error):
            open_checkpoint(out)


def test_a_flipped_bit_is_found(tiny_llama: Callable[..., Path], tmp_path: Path,
                                monkeypatch: Any) -> None:  # fmt: skip
    """What the disk holds is read back before the folder gets its name."""
    sync = TensorFiles.sync

    def damage(self: TensorFiles) -> None:
        sync(self)
        path = self.folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-9] ^= 4
        path.write_bytes(data)

    monkeypatch.setattr(TensorFiles, "sync", damage)
    with pytest.raises(edgelm.ModelFileError, match="read back"):
        edgelm.quantize(tiny_llama(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_at_once(tiny_llama: Callable[..., Path], tmp_path: Path,
                                     monkeypatch: Any) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        raise full()

    source = tiny_llama()
    monkeypatch.setattr(safetensors_writer, "reserve", refuse)
    with pytest.raises(edgelm.EdgeLMError, match="disk is full"):
        edgelm.quantize(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {source.name}


def test_a_disk_that_fills_up(tiny_llama: Callable[..., Path], tmp_path: Path,
                              monkeypatch: Any) -> None:  # fmt: skip
    source, write, count = tiny_llama(), TensorFiles.write, 0
    edgelm.quantize(source, tmp_path / "undisturbed")

    def fail(self: TensorFiles, *given: Any) -> None:
        nonlocal count
        count += 1
        if count == 20:
            raise full()
        write(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(TensorFiles, "write", fail)
        with pytest.raises(edgelm.EdgeLMError, match="disk is full"):
            edgelm.quantize(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(edgelm.ModelFileError):
        open_checkpoint(tmp_path / "out.partial")
    done = edgelm.quantize(source, tmp_path / "out")
    assert done.resumed > 2
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_another_job_begins_anew(tiny_llama: Callable[..., Path], tmp_path: Path,
                                 caplog: Any) -> None:  # fmt: skip
    source, out = tiny_llama(), tmp_path / "out"
    in_child(lambda: edgelm.quantize(source, out, quant="int8"), kill_at=30)
    assert out.with_name("out.partial").exists()
    done = edgelm.quantize(source, out, quant="int4")
    assert done.resumed == 0 and "a different job" in caplog.text


def in_child(work: Callable[[], Any], *, kill_at: int = 0, after_s: float = 0.0) -> bool:
    """Run `work` in a forked child that dies by SIGKILL; whether it did.

    kill_at: at so many events (writes, half of them torn; journal lines; syncs; renames).
    after_s: or so many seconds after the start.
    """
    child = os.fork()
    if child == 0:
        if kill_at:
            die_at(kill_at)
        work()
        os._exit(0)
    if after_s:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die_at(event: int) -> None:
    """From now on the process kills itself at that many events."""
    passed = 0

    def counted(function: Any, torn: bool = False) -> Any:
        def run(*given: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == event:
                if torn and event % 2:
                    *where, rows = given
                    function(*where, rows[: max(1, len(rows) // 2)])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given)

        return run

    TensorFiles.write = counted(TensorFiles.write, torn=True)  # type: ignore[method-assign]
    GGUFTensors.write = counted(GGUFTensors.write, torn=True)  # type: ignore[method-assign]
    Journal.add = counted(Journal.add)  # type: ignore[method-assign]
    Journal.remove = counted(Journal.remove)  # type: ignore[method-assign]
    os.fsync, os.rename = counted(os.fsync), counted(os.rename)


def test_a_cut_off_journal_line(tmp_path: Path) -> None:
    """It is forgotten, and what follows does not stick to it."""
    journal = Journal(tmp_path / "journal", "job")
    journal.start()
    journal.add("a", {"n": 1})
    with journal.path.open("ab") as file:
        file.write(b'{"name": "b", "n"')
    again = Journal(tmp_path / "journal", "job")
    assert again.read() and again.done == {"a": {"n": 1}}
    again.add("c", {"n": 3})
    assert Journal(tmp_path / "journal", "job").read()
    again.read()
    assert again.done == {"a": {"n": 1}, "c": {"n": 3}}


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
EVENTS = 105
"""So many events a run of the tiny Llama has, plus a few at which it is already done."""


def killed_and_resumed(
    source: Path, tmp_path: Path, points: list[int], quant: str = "int4-g32-zint"
) -> int:
    """How many of the runs were killed; each ends with the bytes of an undisturbed run."""
    edgelm.quantize(source, tmp_path / "undisturbed", quant=quant)
    expected, kills = content(tmp_path / "undisturbed"), 0
    for point in points:
        out = tmp_path / f"out-{point}"
        again = lambda out=out: edgelm.quantize(source, out, quant=quant)  # noqa: E731
        killed = in_child(again, kill_at=point)
        kills += killed
        if out.exists() and not killed:
            continue
        done = again()
        print(f"killed at event {point}, {done.resumed} weights were done")
        assert content(out) == expected
        assert not list(tmp_path.glob(f"{out.name}.*"))
    return kills


@needs_fork
def test_kill_and_resume(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    points = [1, 2, 31, 64, *range(EVENTS - 12, EVENTS, 2)]
    assert killed_and_resumed(tiny_llama(), tmp_path, points) >= 6


@needs_fork
@pytest.mark.slow
def test_kill_at_20_random_points(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    points = random.Random(4).sample(range(1, EVENTS), 20)
    assert killed_and_resumed(tiny_llama(), tmp_path, points) >= 18


@needs_fork
@pytest.mark.slow
def test_kill_at_20_random_times(assets: Path, tmp_path: Path) -> None:
    """Again and again on one folder, as an impatient user does, at moments nobody chose."""
    source, kills = assets / "nano" / "bloom", 0
    start = time.perf_counter()
    edgelm.quantize(source, tmp_path / "undisturbed")
    whole_s = time.perf_counter() - start
    for round_ in range(20):
        out = tmp_path / f"out-{round_}"
        after_s = random.Random(round_).uniform(0.02, whole_s)
        kills += in_child(lambda out=out: edgelm.quantize(source, out), after_s=after_s)
        if not out.exists() or Path(f"{out}.partial.journal").exists():
            edgelm.quantize(source, out)
        assert content(out) == content(tmp_path / "undisturbed")
    print(f"{kills} of 20 runs were killed within {whole_s:.2f} s")
    assert kills >= 15


def test_version_1_still_loads() -> None:
    """A folder written when format version 1 was new, with every kind of scheme in it."""
    folder = Path(__file__).parent / "data" / "packed-v1"
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in manifest["files"].items():
        assert file_sha256(folder / name) == digest
    expected = json.loads(folder.with_name("packed-v1-logits.json").read_text())
    with edgelm.load(folder, backend="reference") as lm:
        assert {p.scheme for p in lm.plan.products} == {
            "int8", "int4-g32", "int4-g32-zint", "int4-g32-zfloat", "int8-g32", "int8-zint",
            "float32",
        }  # fmt: skip
        got = lm.forward(torch.tensor([[1, 7, 42, 60, 3]])).logits[0, -1]
    assert (got - torch.tensor(expected)).abs().max() < 1e-4


def test_command(tiny_llama: Callable[..., Path], tmp_path: Path, capfd: Any) -> None:
    """The promise first, the measured peak last; with --json one document."""
    from edgelm.cli.main import main

    source, out = str(tiny_llama()), str(tmp_path / "out")
    assert main(["quantize", source, out, "--quant", "int4-g32"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("promised peak memory")
    assert "verified; peak memory" in lines[-1]
    assert main(["quantize", source, out, "--json"]) == 2
    said = json.loads(capfd.readouterr().out)
    assert "exists" in said["error"]["message"]
    assert main(["quantize", source, f"{out}2", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["manifest"]["format_version"] == 2
    assert said["promised_peak_bytes"] > 300 << 20
