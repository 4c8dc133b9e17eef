"""Shards: weights in several files, with an index that says which tensor is in which of them.

What the shards store counts, whatever the index says: transformers opens every shard that the
index names and takes all that is in it. Where they differ one warning says so. A shard may be
missing as long as nobody needs its tensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgelm.checkpoint.stored import Stored
from edgelm.errors import ModelFileError
from edgelm.plain_file import absence

logger = logging.getLogger("edgelm")
SHOWN = 3  # names of each kind in a warning
LONGEST_NAME = 255  # bytes on most file systems


def open_shards(
    index: Path, content: Mapping[str, Any], open_file: Callable[[Path], dict[str, Stored]]
) -> tuple[dict[str, Stored], dict[str, Path]]:
    """The tensors of all shards that an index names, and the missing file of each one not here.

    A tensor that is in several shards is taken from the one that the index names, else from the
    last. content: the index's. Raises ModelFileError if there is no shard at all, or for an index
    without file names or with one that leads out of its folder.
    """
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(
            f"{index} has no weight_map from tensor names to files. Fetch it again, or convert the "
            "model again."
        )
    for shard in weight_map.values():
        _check_name(index, shard)
    paths = {shard: index.parent / shard for shard in sorted(set(weight_map.values()))}
    here = {shard: open_file(path) for shard, path in paths.items() if os.path.exists(path)}
    if not here:
        raise ModelFileError(
            f"{absence(min(paths.values()))} The model is not complete: fetch the missing file."
        )
    tensors = {name: tensor for stored in here.values() for name, tensor in stored.items()}
    for name, shard in weight_map.items():
        if name in here.get(shard, ()):
            tensors[name] = here[shard][name]
    lacking = {name: shard for name, shard in weight_map.items() if name not in tensors}
    missing = {name: paths[shard] for name, shard in lacking.items() if shard not in here}
    _tell(index, "names what is in none of its files", lacking.keys() - missing.keys())
    _tell(index, "does not name what its files hold", tensors.keys() - weight_map.keys())
    moved = [n for n in weight_map.keys() & tensors.keys() if n not in here.get(weight_map[n], ())]
    _tell(index, "names another file than the one that holds", moved)
    told = " ".join(absence(path) for path in sorted(set(missing.values()))[:SHOWN])
    _tell(index, f"names files that are not here. {told} They would hold", missing)
    return tensors, missing


def _tell(index: Path, problem: str, names: Collection[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        logger.warning(
            "%s %s: %d tensors (%s). What the files hold is used.",
            index, problem, len(names), shown,
        )  # fmt: skip


def _check_name(index: Path, shard: Any) -> None:
    """A shard's name must not leave the index's folder by itself; a link in the folder may."""
    if not isinstance(shard, str) or not shard.isprintable() or not _fits(shard):
        raise ModelFileError(f"{index} has {shard!r:.80} in place of a file name.")
    foreign = PurePosixPath(shard).is_absolute() or PureWindowsPath(shard).anchor
    if foreign or ".." in PureWindowsPath(shard).parts:
        raise ModelFileError(
            f"{index} names {shard!r}, which is outside the model's folder. Only files "
            "in the folder are read: put the shard there, or fetch the model from a source you "
            "trust."
        )


def _fits(shard: str) -> bool:
    return 0 < len(shard.encode()) <= LONGEST_NAME
