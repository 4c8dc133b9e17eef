"""Quantizing to a .gguf file that is killed or disturbed; two processes with one OUT."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_quantize import in_child, needs_fork

import edgelm
from edgelm.checkpoint.gguf_writer import GGUFTensors
from edgelm.checkpoint.journal import Journal

SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
EVENTS = 50
"""The tiny Llama has 21 weights and the rope's divisors: a write and a journal line each, syncs,
the rename and the journal's end."""


@needs_fork
def test_a_killed_gguf_goes_on(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """At 20 events, half of the writes torn, then the same bytes as an undisturbed run's."""
    source = tiny_llama(rope_theta=500000.0, rope_scaling=SCALING)
    edgelm.quantize(source, tmp_path / "undisturbed.gguf")
    expected, resumed, kills = (tmp_path / "undisturbed.gguf").read_bytes(), [], 0
    for point in [*range(1, EVENTS - 10, 5), *range(EVENTS - 10, EVENTS, 1)]:
        out = tmp_path / f"out-{point}.gguf"
        killed = in_child(lambda out=out: edgelm.quantize(source, out), kill_at=point)
        kills += killed
        if killed:
            resumed.append(edgelm.quantize(source, out).resumed)
        assert out.read_bytes() == expected
        assert not list(tmp_path.glob(f"{out.name}.*"))
    print(f"{kills} runs were killed; weights that were done: {resumed}")
    assert kills >= 12 and max(resumed) > 15
    # A run killed behind the rename counts all weights as done without going on with any.
    assert any(0 < done < max(resumed) for done in resumed)


@needs_fork
def test_another_gguf_begins_anew(tiny_llama: Callable[..., Path], tmp_path: Path,
                                  caplog: Any) -> None:  # fmt: skip
    source, out = tiny_llama(), tmp_path / "out.gguf"
    in_child(lambda: edgelm.quantize(source, out, quant="int8"), kill_at=20)
    assert edgelm.quantize(source, out).resumed == 0 and "a different job" in caplog.text
    edgelm.quantize(source, tmp_path / "undisturbed.gguf")
    assert out.read_bytes() == (tmp_path / "undisturbed.gguf").read_bytes()


def test_a_flipped_bit_of_a_gguf_is_found(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = GGUFTensors.verify

    def damage(self: GGUFTensors, digests: Any) -> None:
        data = bytearray(self.path.read_bytes())
        data[-65] ^= 4
        self.path.write_bytes(data)
        verify(self, digests)

    monkeypatch.setattr(GGUFTensors, "verify", damage)
    with pytest.raises(edgelm.ModelFileError, match="read back"):
        edgelm.quantize(tiny_llama(), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def hold_at_first_weight(source: Path, out: Path) -> None:
    """Quantize, but stop for good once a weight is in the journal."""
    Journal.add = lambda *_: time.sleep(60)  # type: ignore[method-assign]
    edgelm.quantize(source, out)


@needs_fork
@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_second_process_is_refused(
    tiny_llama: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """While the first lives; what it was writing stays untouched, and its death frees OUT."""
    source, out = tiny_llama(), tmp_path / name
    child = os.fork()
    if child == 0:
        hold_at_first_weight(source, out)
        os._exit(0)
    try:
        journal = out.with_name(f"{name}.partial.journal")
        for _ in range(200):
            if journal.exists():
                break
            time.sleep(0.05)
        with pytest.raises(edgelm.UsageError, match="another process is writing"):
            edgelm.quantize(source, out)
        assert journal.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    edgelm.quantize(source, out)
    assert out.exists() and not list(tmp_path.glob(f"{name}.*"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that refuses even root")
@pytest.mark.parametrize("name", ["out", "out.gguf"])
@pytest.mark.parametrize("place", ["/proc", "/proc/absent", "FILE", "FILE/deeper"])
def test_a_place_that_cannot_be_written(
    place: str, name: str, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """Said before anything is promised, and not as if somebody else were writing there."""
    (tmp_path / "file").write_text("three years")
    source, told = tiny_llama(), []
    out = Path(place.replace("FILE", str(tmp_path / "file"))) / name
    with pytest.raises(edgelm.EdgeLMError, match=r"could not be written.*another place"):
        edgelm.quantize(source, out, quant="int8-g32", announce=told.append)
    assert not told and (tmp_path / "file").read_text() == "three years"


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_disk_with_too_little_room(
    name: str, tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(edgelm.EdgeLMError, match="its disk has 1000 B free"):
        edgelm.quantize(source, tmp_path / name, quant="int8-g32")
    assert [*tmp_path.iterdir()] == [source]
