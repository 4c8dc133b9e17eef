"""Check of all kept layer files, whichever models they belong to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from edgelm.layerstore.layer_file import LayerFile
from edgelm.layerstore.layer_folder import FOLDER, folder_name
from edgelm.layerstore.layer_table import DamagedLayerError
from edgelm.progress import Progress


@dataclass(frozen=True)
class BrokenLayer:
    """A file that is not as it was written, and why; ``deleted`` unless that was refused."""

    path: str
    problem: str
    deleted: bool


@dataclass(frozen=True)
class KeptLayers:
    """Number and bytes of all files that were read, and those of them that are broken."""

    files: int
    bytes: int
    broken: tuple[BrokenLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_layers(cache: Path, progress: Progress | None = None) -> KeptLayers:
    """Read all kept files whole; broken ones are deleted, so that the next start writes them again.

    Args:
        progress: called with (file, bytes done, bytes in all).
    """
    paths = sorted((cache / FOLDER).glob("*/*.layer"))
    sizes = [path.lstat().st_size for path in paths]
    broken, done = [], 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for path, size, problem in zip(paths, sizes, pool.map(_problem, paths), strict=True):
            if problem is not None:
                broken.append(BrokenLayer(str(path), problem, _deleted(path)))
            done += size
            if progress:
                progress(path.name, done, sum(sizes))
    return KeptLayers(len(paths), sum(sizes), tuple(broken))


def _problem(path: Path) -> str | None:
    """What is wrong with a file; None if all of it is as it was written."""
    try:
        file = LayerFile(path)
        try:
            if folder_name(file.table.job) != path.parent.name:
                return "it belongs to another model"
            file.check()
        finally:
            file.close()
    except FileNotFoundError:  # another process has deleted it
        return None
    except (DamagedLayerError, OSError) as error:
        return str(error)
    return None


def _deleted(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
