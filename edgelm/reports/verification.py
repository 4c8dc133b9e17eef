"""Verification of a quantized folder: its files against the hashes in edgelm.json."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelm.checkpoint.manifest import MANIFEST, Manifest
from edgelm.checkpoint.rows import opened
from edgelm.errors import ModelFileError, UsageError
from edgelm.progress import Progress

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Verification:
    """Names of a folder's files by what became of them since they were written.

    ``extra`` files were added: no hash is known for them, which is no damage.
    """

    path: str
    same: tuple[str, ...]
    differ: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def damaged(self) -> bool:
        return bool(self.differ or self.missing)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"damaged": self.damaged}


def verify_folder(path: Path, progress: Progress | None = None) -> Verification:
    """Hash every file that edgelm.json names.

    Args:
        progress: called with (file, bytes done, bytes in all).

    Raises:
        UsageError: the model is no folder that ``quantize`` wrote.
        ModelFileError: edgelm.json is damaged, or a file cannot be read.
    """
    if not (path / MANIFEST).is_file():
        raise UsageError(
            f"{path} has no {MANIFEST}, so no hashes are known for it. --verify is for folders "
            "written by edgelm quantize."
        )
    expected = Manifest.read(path / MANIFEST).files
    for name, digest in expected.items():
        _check_entry(path, name, digest)
    here = {name: path / name for name in expected if (path / name).is_file()}
    sizes = {name: file.stat().st_size for name, file in here.items()}
    found: dict[str, str] = {}
    done = 0
    for name, file in here.items():
        sha256 = hashlib.sha256()
        with opened(file) as source:
            while piece := source.read(_BLOCK_BYTES):
                sha256.update(piece)
                done += len(piece)
                if progress:
                    progress(name, done, sum(sizes.values()))
        found[name] = sha256.hexdigest()
    own = {MANIFEST, *expected}
    return Verification(
        path=str(path),
        same=tuple(name for name in found if found[name] == expected[name]),
        differ=tuple(name for name in found if found[name] != expected[name]),
        missing=tuple(name for name in expected if name not in here),
        extra=tuple(sorted(entry.name for entry in path.iterdir() if entry.name not in own)),
    )


def _check_entry(path: Path, name: str, digest: str) -> None:
    if (
        not name
        or name == ".."
        or name != Path(name).name
        or "\\" in name
        or not name.isprintable()
    ):
        raise ModelFileError(
            f"{path / MANIFEST} names the file {name!r:.80}, which is no plain name: the files of "
            "a folder lie in it. Quantize the model again."
        )
    if not _SHA256.fullmatch(digest):
        raise ModelFileError(
            f"{path / MANIFEST} has {digest!r:.80} as the sha256 of {name}; expected 64 "
            "hexadecimal digits. Quantize the model again."
        )
