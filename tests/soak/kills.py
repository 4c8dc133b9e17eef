"""SIGKILL at random moments of writing, then again: the same bytes as an undisturbed run leaves.

    python tests/soak/kills.py [--kills 100] [--seed 1]

Quantizing by rtn, mse and gptq into a folder and a GGUF file, and the laid-out weights that a start
keeps: a forked process is killed after a random part of the time that an undisturbed one takes,
then another one goes on. Exits 1 where what it leaves differs, or where anything half is left.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import edgelm
from edgelm.layerstore import layer_folder
from quant import CALIBRATED_METHODS

ASSETS = Path(
    os.environ.get("EDGELM_ASSETS") or Path(__file__).resolve().parents[3] / "shared" / "assets"
)
SOURCE = ASSETS / "nano" / "llama"
METHODS = ("rtn", "mse", "gptq")
TEXT = Path(str(resources.files("edgelm").joinpath("data/calibration/prose.txt")))


def quantize(method: str, out: Path) -> None:
    text = {"calibration": TEXT} if method in CALIBRATED_METHODS else {}
    edgelm.quantize(SOURCE, out, quant="int4-g32", method=method, certificate=False, **text)


def lay_out(out: Path) -> None:
    """A start that keeps its weights in ``out``, however small they are."""
    os.environ["EDGELM_CACHE"] = str(out)
    layer_folder.PAYS_BYTES, layer_folder._FREE_SHARE = 0, 10**6
    edgelm.load(SOURCE, quant="int4", context=64).close()


@dataclass(frozen=True)
class Job:
    """``name``: of what ``work`` writes."""

    name: str
    work: Callable[[Path], None]

    def run(self, out: Path, kill_after_s: float | None = None) -> bool:
        """In a forked process; whether it was killed in the middle."""
        child = os.fork()
        if child == 0:
            logging.disable()
            status = 1
            try:
                self.work(out)
                status = 0
            finally:
                os._exit(status)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)  # waits to be reaped if it has ended
        status = os.waitpid(child, 0)[1]
        if status and not os.WIFSIGNALED(status):
            raise SystemExit(f"{out} cannot be written: run it in the foreground")
        return os.WIFSIGNALED(status)

    def contents(self, out: Path) -> dict[str, bytes]:
        """What was written, by path; of a cache only the laid-out weights."""
        files = [out] if out.is_file() else out.rglob("*.layer" if self.name == "layouts" else "*")
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in files if p.is_file()}


JOBS = (
    *(Job(f"{method}{end}", partial(quantize, method)) for method in METHODS
      for end in ("", ".gguf")),
    Job("layouts", lay_out),
)  # fmt: skip


def tried(job: Job, folder: Path, kills: int, generator: random.Random) -> int:
    """The number of kills after which something else was left."""
    whole, out = folder / job.name, folder / "again" / job.name
    out.parent.mkdir(exist_ok=True)
    begun = time.monotonic()
    job.run(whole)
    lasts = time.monotonic() - begun
    expected, different, done = job.contents(whole), 0, 0
    while done < kills:
        if not job.run(out, generator.uniform(0.0, lasts)):
            remove(out)
            continue
        done += 1
        if job.name == "layouts" or not out.exists():  # else the kill came behind the rename
            job.run(out)
        left = [path for path in folder.rglob("*.partial*")]
        different += bool(job.contents(out) != expected or left)
        remove(out)
    print(f"{job.name}: {lasts:.2f} s undisturbed, {len(expected)} files, {done} kills, "
          f"{different} left something else", flush=True)  # fmt: skip
    return different


def remove(out: Path) -> None:
    shutil.rmtree(out) if out.is_dir() else out.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    generator, different = random.Random(given.seed), 0
    for index, job in enumerate(JOBS):
        kills = given.kills // len(JOBS) + (index < given.kills % len(JOBS))
        with tempfile.TemporaryDirectory() as scratch:
            different += tried(job, Path(scratch), kills, generator)
    print(f"{given.kills} kills, {different} left something else")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
