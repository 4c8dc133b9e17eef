"""Folders in Hugging Face layout: config.json and safetensors, in one file or in shards.

The safetensors library checks each header (sizes, offsets without holes, the file's length); the
rows themselves are then read straight into private memory, see ``stored.py``.
"""

from __future__ import annotations

import json
from io import BufferedReader
from pathlib import Path
from typing import Any

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.shards import open_shards
from edgelm.checkpoint.stored import FLOATS, INTEGERS, Stored, StoredTensors
from edgelm.errors import ModelFileError
from edgelm.plain_file import is_present, open_plain, read_text

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "Fetch it again, or convert the model again."


class SafetensorsCheckpoint(StoredTensors):
    """A folder with config.json and model.safetensors, or the shards an index names."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.config = read_json(path / "config.json")
        super().__init__(*_open_weights(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or ModelFileError."""
    try:
        content = json.loads(read_text(path))
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


def _open_weights(folder: Path) -> tuple[dict[str, Stored], dict[str, Path]]:
    if is_present(folder / SINGLE):
        return _open_file(folder / SINGLE), {}
    if is_present(folder / INDEX):
        return open_shards(folder / INDEX, read_json(folder / INDEX), _open_file)
    raise ModelFileError(f"{folder} has neither {SINGLE} nor {INDEX}: the weights are missing.")


def _open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name, after the library has checked its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with BufferedReader(open_plain(path)) as file:
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
