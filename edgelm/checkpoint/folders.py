"""Which format a folder in Hugging Face layout is in."""

from __future__ import annotations

from pathlib import Path

from edgelm.checkpoint import Checkpoint
from edgelm.checkpoint.manifest import MANIFEST
from edgelm.checkpoint.packed import PackedCheckpoint
from edgelm.checkpoint.quantized_folders import QuantizedFolder
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint, read_json


def open_folder(path: Path) -> Checkpoint:
    """The folder's checkpoint; packed weights where it says that it holds them.

    Folders of our own say so in edgelm.json, which knows more than config.json.
    """
    if (path / MANIFEST).is_file():
        return PackedCheckpoint(path)
    if read_json(path / "config.json").get("quantization_config") is not None:
        return QuantizedFolder(path)
    return SafetensorsCheckpoint(path)
