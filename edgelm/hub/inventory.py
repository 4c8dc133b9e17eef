"""Models that were fetched to this machine: in the Hub library's cache and in this package's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.checkpoint.gguf_names import SUFFIX
from edgelm.errors import EdgeLMError, UsageError
from edgelm.hub.demo import DEMO_MEMBER
from edgelm.hub.references import cache_dir, hub_reference, is_local

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, CachedRevisionInfo, HFCacheInfo

WEIGHTS = (SUFFIX, ".safetensors", ".bin", ".msgpack")


@dataclass(frozen=True)
class Fetched:
    """A model as it can be named again.

    used: when its files were last read, in seconds since the epoch, as the file system tells; some
    never do. complete: false where no weights are there, as of a model that was only planned.
    """

    model: str
    bytes: int
    used: float
    path: str
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fetched_models() -> list[Fetched]:
    """Every model, the one that was used last first; of GGUF files each is a model."""
    repositories = (repo for repo in _scanned().repos if repo.repo_type == "model")
    found = [own for repo in repositories for own in _models_of(repo)]
    demo = _demo()
    with suppress(FileNotFoundError):
        told = demo.stat()
        found.append(Fetched("demo", told.st_size, told.st_atime, str(demo)))
    return sorted(found, key=lambda own: own.used, reverse=True)


def other_bytes() -> int:
    """Bytes of this package's cache folder beside the demo."""
    folder, demo = cache_dir(), _demo()
    paths = (path for path in folder.rglob("*") if path != demo and path.is_file())
    return sum(path.lstat().st_size for path in paths)


def remove(model: str) -> int:
    """Delete a model that was fetched; the bytes that are free then.

    Of a Hub id with @revision that revision alone; of one that ends in a .gguf file that file, and
    what was fetched with it once no other weights are left.

    Raises:
        UsageError: it is not among ``fetched_models``. EdgeLMError: it cannot be deleted.
    """
    try:
        if model == "demo" and _demo().is_file():
            freed = _demo().stat().st_size
            _demo().unlink()
            return freed
        if model == "demo" or is_local(model):
            raise _unknown(model)
        name, file, revision = hub_reference(model, None, offline=True)
        repo = next((own for own in _scanned().repos if own.repo_id == name), None)
        if repo is None or repo.repo_type != "model":
            raise _unknown(model)
        if file is not None and _others(repo, file):
            return _remove_file(repo, file, model)
        hashes = [own.commit_hash for own in repo.revisions if _is(own, revision)]
        if not hashes or (file is not None and file not in _names(repo)):
            raise _unknown(model)
        strategy = _scanned().delete_revisions(*hashes)
        strategy.execute()
    except OSError as error:
        raise EdgeLMError(f"{model} could not be deleted: {error}.") from error
    return int(strategy.expected_freed_size)


def _scanned() -> HFCacheInfo:
    from huggingface_hub import CacheNotFound, HFCacheInfo, constants, scan_cache_dir

    try:
        return scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return HFCacheInfo(0, frozenset(), frozenset(), [], Path())


def _models_of(repo: CachedRepoInfo) -> Iterator[Fetched]:
    """A repository's GGUF files, else the repository."""
    ggufs = [file for file in _files(repo) if file.file_name.lower().endswith(SUFFIX)]
    for name, files in _by_name(ggufs).items():
        blobs = {own.blob_path: own.size_on_disk for own in files}
        used = max(own.blob_last_accessed for own in files)
        path = str(files[0].file_path)
        yield Fetched(f"{repo.repo_id}/{name}", sum(blobs.values()), used, path)
    if not ggufs:
        complete = any(own.file_name.lower().endswith(WEIGHTS) for own in _files(repo))
        size, used, path = repo.size_on_disk, repo.last_accessed, str(repo.repo_path)
        yield Fetched(repo.repo_id, size, used, path, complete)


def _by_name(files: Iterable[CachedFileInfo]) -> dict[str, list[CachedFileInfo]]:
    found: dict[str, list[CachedFileInfo]] = {}
    for own in files:
        found.setdefault(own.file_name, []).append(own)
    return dict(sorted(found.items()))


def _remove_file(repo: CachedRepoInfo, name: str, model: str) -> int:
    """Delete a file in every revision, with its content, which the other names do not share."""
    files = [own for own in _files(repo) if own.file_name == name]
    if not files:
        raise _unknown(model)
    shared = {own.blob_path for own in _files(repo) if own.file_name != name}
    freed = {own.blob_path: own.size_on_disk for own in files if own.blob_path not in shared}
    for own in files:
        own.file_path.unlink()
    for blob in freed:
        with suppress(FileNotFoundError):  # without links, the file was its content
            os.unlink(blob)
    return sum(freed.values())


def _others(repo: CachedRepoInfo, file: str) -> bool:
    """True if a repository holds weights beside a file."""
    return any(name != file and name.lower().endswith(WEIGHTS) for name in _names(repo))


def _files(repo: CachedRepoInfo) -> list[CachedFileInfo]:
    return [file for revision in repo.revisions for file in revision.files]


def _names(repo: CachedRepoInfo) -> set[str]:
    return {file.file_name for file in _files(repo)}


def _is(own: CachedRevisionInfo, revision: str | None) -> bool:
    return revision is None or revision in own.refs or own.commit_hash.startswith(revision)


def _demo() -> Path:
    return cache_dir() / "demo" / Path(DEMO_MEMBER).name


def _unknown(model: str) -> UsageError:
    advice = "It is a path: delete it yourself." if is_local(model) and model != "demo" else ""
    names = ", ".join(own.model for own in fetched_models()[:8]) or "nothing"
    return UsageError(
        f"{model!r} is not among the models that were fetched. {advice or f'There are: {names}.'}"
    )
