"""Model references resolved to local files: a folder, a .gguf file, ``demo``, or a Hub id.

Nothing here opens a socket unless ``demo`` is not yet in the cache or a Hub id is named. Messages
go to the logger "edgelm"; the Hub's progress bars show only where that logger lets INFO through.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from edgelm.checkpoint.gguf_names import part_names
from edgelm.errors import EdgeLMError, HubError, ModelFileError, UsageError
from edgelm.hub.demo import demo_file
from edgelm.hub.weights import fetch_weights
from edgelm.plain_file import is_present

logger = logging.getLogger("edgelm")

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
    if reference == "demo":
        _refuse_revision(reference, revision)
        return demo_file(cache_dir() / "demo", offline)
    path = _path(reference)
    if is_local(reference):
        _refuse_revision(reference, revision)
        if path.is_dir() or (is_present(path) and path.suffix.lower() in (".gguf", ".pt")):
            return path
        raise ModelFileError(f"{path} is a file but not a .gguf file. {MODEL_KINDS}.")
    model_id, file, revision = hub_reference(reference, revision, offline)
    if file is not None:
        parts = part_names(file)
        return _fetch(model_id, revision, offline, parts, parts) / file
    return _snapshot(model_id, revision, offline, allow_pickle)


def is_offline() -> bool:
    """True if the environment forbids the Hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def is_local(reference: str) -> bool:
    """True if a reference is a path that exists here, be it a link to nowhere, or the demo."""
    return reference == "demo" or (bool(reference) and os.path.lexists(_path(reference)))


def _path(reference: str) -> Path:
    return Path(os.path.expanduser(reference))  # as it stands where nobody has a home


def hub_reference(
    reference: str, revision: str | None, offline: bool = False
) -> tuple[str, str | None, str | None]:
    """Parse a Hub id: (owner/name, a .gguf file of it or None, revision or None).

    Raises ModelFileError if it is not a Hub id, or looks like a mistyped path and the Hub would be
    asked; UsageError for two revisions.
    """
    match = HUB_FILE.fullmatch(reference) or HUB_ID.fullmatch(reference)
    if match is None or match["id"].lower().endswith((".gguf", ".safetensors")):
        raise ModelFileError(f"there is no file or folder {reference!r}. {MODEL_KINDS}.")
    if not (offline or revision or match["revision"]):
        _refuse_mistyped(reference)
    if revision and match["revision"]:
        raise UsageError(f"{reference!r} names a revision and --revision names {revision!r} too.")
    file = match["file"] if match.re is HUB_FILE else None
    return match["id"], file, revision or match["revision"]


def cache_dir() -> Path:
    """Cache folder of this package: EDGELM_CACHE, else one in the user's cache folder."""
    if chosen := os.environ.get("EDGELM_CACHE"):
        return Path(chosen).expanduser()
    try:
        home = Path.home()
    except RuntimeError:
        raise UsageError(
            "There is no home folder to keep the cache in. Set EDGELM_CACHE to a folder."
        ) from None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "edgelm"


def _refuse_mistyped(reference: str) -> None:
    """Raise ModelFileError for owner/name if there is a folder of the owner's name, or such a path
    but for a letter or two: a stranger may own that name on the Hub.
    """
    path = Path(reference)
    near = [own for folder in _alike(path.parent) for own in _alike(folder / path.name)]
    if near or any(folder.is_dir() for folder in [*path.parents][:-1]):
        meant = f" Was {near[0]} meant?" if near else ""
        raise ModelFileError(
            f"{reference!r} looks like a path, and nothing is there.{meant} If it is the Hub's "
            f"model, name a revision: {reference}@main."
        )


def _alike(path: Path) -> list[Path]:
    """Paths beside this one whose names are nearly its own."""
    with suppress(OSError):
        beside = {name.casefold(): path.parent / name for name in os.listdir(path.parent)}
        return [beside[name] for name in get_close_matches(path.name.casefold(), beside)]
    return []


def _refuse_revision(reference: str, revision: str | None) -> None:
    if revision:
        raise UsageError(f"--revision is for Hub ids; {reference!r} has no revisions.")


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
