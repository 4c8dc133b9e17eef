"""Opens a model's files in whatever format they are."""

from __future__ import annotations

from pathlib import Path

from edgelm.checkpoint.folders import ORIGINAL_RELEASE, open_folder
from edgelm.checkpoint.gguf_files import GGUFCheckpoint
from edgelm.checkpoint.gguf_names import part_paths
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.plain_file import is_present


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a folder in Hugging Face layout or a .gguf file, any of its parts, and check headers.

    allow_pickle: whether pytorch_model*.bin may be opened if there is nothing else.
    Raises ModelFileError for missing or damaged files, UnsupportedModelError for valid files
    with content this package does not support.
    """
    if path.is_dir():
        return open_folder(path, allow_pickle)
    present = is_present(path)
    if present and path.suffix.lower() == ".gguf":
        return GGUFCheckpoint(path)
    if present and path.suffix.lower() == ".pt":
        raise UnsupportedModelError(f"{path} {ORIGINAL_RELEASE}")
    problem = "is neither a folder nor a .gguf file" if present else "does not exist"
    raise ModelFileError(
        f"{path} {problem}. Give a folder with config.json and *.safetensors, or a .gguf file."
    )


def own_files(path: Path) -> list[Path]:
    """The plain files at a model's path: of a folder all, of a .gguf file all its parts."""
    found = sorted(path.iterdir()) if path.is_dir() else part_paths(path)
    return [file for file in found if file.is_file()]
