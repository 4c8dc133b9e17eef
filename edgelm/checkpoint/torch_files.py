"""``pytorch_model*.bin``: pickled weights, opened only when the user allows it.

torch's restricted unpickler (weights_only) builds the tensors without their data and reports where
each storage begins; the numbers are then read like those of any other file, see ``stored.py``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from edgelm.checkpoint.protocol import TensorInfo
from edgelm.checkpoint.safetensors_files import AGAIN, read_json
from edgelm.checkpoint.shards import open_shards
from edgelm.checkpoint.stored import Stored, StoredTensors
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.plain_file import is_present, open_plain

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
SAFE_TORCH = (2, 10)  # before, weights_only could be made to run code: CVE-2025-32434, -2026-24747


class TorchCheckpoint(StoredTensors):
    """A folder with config.json and pytorch_model.bin, or the shards an index names."""

    format = "pickle"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.config = read_json(path / "config.json")
        super().__init__(*_open_weights(path))


def _open_weights(folder: Path) -> tuple[dict[str, Stored], dict[str, Path]]:
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise UnsupportedModelError(
            f"{folder} has pickled weights; torch {torch.__version__} can be made to run code by "
            "them. Install torch 2.10 or newer, or use the model's safetensors files."
        )
    if is_present(folder / SINGLE):
        return _open_file(folder / SINGLE), {}
    return open_shards(folder / INDEX, read_json(folder / INDEX), _open_file)


def _open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one file, which must be what transformers writes: a dict of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
        with FakeTensorMode():  # no storage is filled: the file may be larger than the memory
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle can raise
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(
            f"{path} cannot be opened as weights alone ({first_line}). It is damaged, written by "
            "torch before 1.6, or holds more than weights: convert it to safetensors where you "
            "trust it."
        ) from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds a {type(content).__name__}, not weights by name.")
    return {str(name): _stored(path, size, name, value) for name, value in content.items()}


def _stored(path: Path, size: int, name: Any, tensor: Any) -> Stored:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ModelFileError(
            f"{path} holds {name!r}: {type(tensor).__name__}, where only weights by name may be."
        )
    if not tensor.numel():
        raise ModelFileError(f"{path}: tensor {name} holds no numbers, {[*tensor.shape]}. {AGAIN}")
    begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if begin is None or not tensor.is_contiguous():
        raise UnsupportedModelError(
            f"{path}: tensor {name} does not lie row after row in the file. Convert the model to "
            "safetensors (save_pretrained in transformers)."
        )
    offset = begin + tensor.storage_offset() * tensor.element_size()
    if offset < 0 or offset + tensor.numel() * tensor.element_size() > size:
        raise ModelFileError(f"{path}: tensor {name} ends beyond the file. {AGAIN}")
    nbytes = tensor.numel() * tensor.element_size()
    info = TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), None, nbytes)
    return Stored(path, offset, tensor.dtype, info)
