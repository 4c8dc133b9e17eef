"""Folders in Hugging Face layout: config.json and safetensors, in one file or in shards.

The safetensors library checks each header (sizes, offsets without holes, the file's length); the
rows themselves are then read straight into private memory, see ``stored.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.stored import FLOATS, INTEGERS, Stored, StoredTensors
from edgelm.errors import ModelFileError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "Fetch it again, or convert the model again."
T = TypeVar("T")


class SafetensorsCheckpoint(StoredTensors):
    """A folder with config.json and model.safetensors, or the shards an index names."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.config = read_json(path / "config.json")
        super().__init__(_open_weights(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or ModelFileError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(
            f"{path.parent} has no {path.name}. A model folder needs config.json, safetensors "
            "weights and a tokenizer, as downloaded from the Hub."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON ({error}). {AGAIN}") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def _open_weights(folder: Path) -> dict[str, Stored]:
    if (folder / SINGLE).is_file():
        return _open_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        return open_shards(folder / INDEX, _open_file)
    raise ModelFileError(f"{folder} has neither {SINGLE} nor {INDEX}: the weights are missing.")


def open_shards(index: Path, open_file: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """All tensors listed in an index, each found in its shard."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index} has no weight_map from tensor names to files. {AGAIN}")
    shards: dict[str, dict[str, T]] = {}
    tensors = {}
    for name, shard in weight_map.items():
        path = inside(index, shard)
        if shard not in shards:
            shards[shard] = open_file(path)
        if name not in shards[shard]:
            raise ModelFileError(
                f"{index} says that {name} is in {shard}, but that file lacks it: index and "
                "shards are of different versions. Fetch all of them again."
            )
        tensors[name] = shards[shard][name]
    return tensors


def inside(index: Path, shard: Any) -> Path:
    """Path of a shard listed in an index; it must be inside the index's folder.

    A link may lead to ``blobs`` of the Hub cache (models--x/snapshots/<revision>/file links to
    models--x/blobs/<hash>), and nowhere else.
    """
    if not isinstance(shard, str) or not shard or not shard.isprintable():
        raise ModelFileError(f"{index} has {shard!r:.80} in place of a file name.")
    foreign = PurePosixPath(shard).is_absolute() or PureWindowsPath(shard).anchor
    path = index.parent / shard
    home = index.parent.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if (
        foreign
        or ".." in PureWindowsPath(shard).parts
        or not any(path.resolve().is_relative_to(place) for place in allowed)
    ):
        raise ModelFileError(
            f"{index} names {shard!r}, which is outside the model's folder. Only files "
            "in the folder are read: put the shard there, or fetch the model from a source you "
            "trust."
        )
    return path


def _open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name, after the library has checked its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start.startswith(b"version https://git-lfs"):
                raise ModelFileError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there."
                )
            with safe_open(path, framework="pt"):  # checks sizes, offsets and the file's length
                pass
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise ModelFileError(
            f"{path} is missing: the model is not complete. Fetch the missing file."
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged or was cut off ({error}). {AGAIN}") from None
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {name: _stored(path, 8 + length, entry) for name, entry in entries}


def _stored(path: Path, data: int, entry: dict[str, Any]) -> Stored:
    """One header entry, ``data`` being where the file's tensors begin."""
    begin, end = entry["data_offsets"]
    dtype = (FLOATS | INTEGERS).get(entry["dtype"])
    floating = entry["dtype"] in FLOATS
    named = str(dtype).removeprefix("torch.") if floating else entry["dtype"]
    info = TensorInfo(tuple(entry["shape"]), named, None, end - begin)
    return Stored(path, data + begin, dtype, info)
