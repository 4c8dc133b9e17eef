"""Download of weights into the Hub library's cache, resuming where a killed run stopped.

huggingface_hub 2.4 gives every download its own temporary file, which no later run resumes. So
weights are fetched here first, under one name and one lock, and moved to where the cache keeps
contents (blobs/ETAG); ``snapshot_download`` finds them there and only has to link them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

SHA256_DIGITS = 64  # the Hub's etag of a big file is its sha256, of a small one git's shorter id


def fetch_weights(model_id: str, revision: str | None, patterns: list[str]) -> None:
    """Fetch a model's files of these names into the cache, one after another.

    Files above 50 GB, which the Hub does not serve by plain HTTP, are left to the library, as are
    all files if the cache cannot use links and would hold contents twice.

    Raises what the library raises, and HubError for a file that differs from what the Hub
    announced.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors
    from huggingface_hub.file_download import are_symlinks_supported

    try:
        found = huggingface_hub.snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            dry_run=True,
        )
    except errors.DryRunError:
        return  # the Hub cannot be reached; what the cache holds may be enough
    for file in found:
        cache = Path(file.local_path).parents[3]  # .../models--owner--name/snapshots/COMMIT/FILE
        size = file.file_size
        if size is None or size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            continue
        if file.will_download and are_symlinks_supported(cache):
            _fetch(model_id, file, size)


def _fetch(model_id: str, file: DryRunFileInfo, size: int) -> None:
    """Fetch the file's content into blobs/; a second process waits for the first and finds it."""
    from filelock import FileLock
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(model_id, file.filename, revision=file.commit_hash)
    etag = get_hf_file_metadata(url).etag
    if etag is None:
        return
    model = Path(file.local_path).parents[2]
    blob, locks = model / "blobs" / etag, model.parent / ".locks" / model.name
    for folder in (blob.parent, locks):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{etag}.edgelm.lock"):
        if not blob.exists():
            _download(url, blob, size)


def _download(url: str, blob: Path, size: int) -> None:
    """Fetch the missing part of the incomplete file, then rename it."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial = blob.with_name(f"{blob.name}.edgelm.incomplete")
    with partial.open("ab") as file:
        start = file.tell()
        if start > size:
            start = file.truncate(0)
        http_get(url, file, resume_size=start, headers=build_hf_headers(), expected_size=size)
    if start and len(blob.name) == SHA256_DIGITS:
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != blob.name:
            partial.unlink()
            raise HubError(
                f"{url}, fetched in two parts, has the sha256 {found}; the Hub announced "
                f"{blob.name}. What was fetched is deleted: try again."
            )
    partial.replace(blob)
