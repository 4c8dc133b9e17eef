"""Model files: one reader per format, for weight names, headers and rows on demand.

Whatever the format, a ``Checkpoint`` uses Hugging Face's weight names and config keys, so that the
rest of the package does not depend on the file a tensor comes from.

Modules:
    folders: detection of a folder's format.
    stored, rows: tensors at offsets in files, and plain reads into private memory.
    safetensors_files, torch_files, flax_files: folders of float weights.
    quantized_folders: folders quantized by other tools, read by ``awq``, ``gptq``,
        ``compressed_tensors`` and ``bitsandbytes_files`` with the common parts in
        ``packed_matrix``.
    packed, manifest: folders written by ``edgelm quantize``, and their edgelm.json.
    packed_layout, bitsandbytes_layout: the stored forms of a packed matrix.
    gguf_files: GGUF files, with ``gguf_header``, ``gguf_metadata``, ``gguf_families`` (names) and
        ``gguf_blocks`` (types).
    safetensors_writer, gguf_writer, journal: writing files, verified and resumable.
    random_weights, shapes, fresh_head: weights without a file, published configs, and new heads.

May import ``quant`` and, in this package, errors, version, progress, config, machine and text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgelm.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    import torch

    from quant.packing import PackedWeight
    from quant.scheme import Scheme


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of one tensor.

    ``dtype`` is torch's name ("bfloat16") or the file's ("Q4_0", "F8_E4M3"); ``scheme`` is set
    when the file holds packed integers; ``nbytes`` counts the tensor's bytes in the file.
    ``stays_float`` marks a matrix that a quantized file left in floats on purpose.
    ``nearest`` is the scheme for a matrix in blocks that no scheme stores exactly (GGUF's Q6_K):
    "auto" requantizes it to that.
    """

    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme | None
    nbytes: int
    stays_float: bool = False
    nearest: Scheme | None = None


class Checkpoint(Protocol):
    """An opened model whose headers are read and checked; no weight is resident.

    ``config`` is the content of a Hugging Face config.json, ``metadata`` are a GGUF file's keys
    (empty for other formats).
    """

    path: Path
    format: str

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    def names(self) -> list[str]:
        """Hugging Face's names of the stored weights, in the order of the file."""

    def info(self, name: str) -> TensorInfo:
        """Shape, type and bytes of a weight, from the header; KeyError for an unknown name."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) as a private copy: the stored float dtype, float32 if packed."""

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a weight stored as integers, in the canonical layout."""


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a folder in Hugging Face layout or a .gguf file and check its headers.

    allow_pickle: whether pytorch_model*.bin may be opened if there is nothing else.
    Raises ModelFileError for missing or damaged files, UnsupportedModelError for valid files
    with content this package does not support.
    """
    from edgelm.checkpoint.folders import ORIGINAL_RELEASE, open_folder
    from edgelm.checkpoint.gguf_files import GGUFCheckpoint

    if path.is_dir():
        return open_folder(path, allow_pickle)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return GGUFCheckpoint(path)
    if path.is_file() and path.suffix.lower() == ".pt":
        raise UnsupportedModelError(f"{path} {ORIGINAL_RELEASE}")
    problem = "is neither a folder nor a .gguf file" if path.exists() else "does not exist"
    raise ModelFileError(
        f"{path} {problem}. Give a folder with config.json and *.safetensors, or a .gguf file."
    )


def file_stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each of a model's files, which differ once it was changed.

    Empty for weights that come from no file.
    """
    own = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stats = [(file.name, file.stat()) for file in own]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
