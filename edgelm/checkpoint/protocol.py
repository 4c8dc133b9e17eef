"""The protocol of a checkpoint: what every reader of a format gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from quant.packing import PackedWeight
    from quant.scheme import Scheme


@dataclass(frozen=True)
class TensorInfo:
    """Header entry of one tensor.

    ``dtype`` is torch's name ("bfloat16") or the file's own ("Q4_0", "F8_E4M3"); ``scheme`` is set
    when the file holds packed integers; ``nbytes`` counts the tensor's bytes in the file.
    ``stays_float`` marks a matrix that a quantized file left in floats on purpose.
    ``nearest`` is the scheme for a matrix in blocks that no scheme stores exactly (GGUF's IQ3_S):
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

    ``config`` is the content of a Hugging Face config.json, ``metadata`` a GGUF file's own keys
    (empty for other formats).
    """

    path: Path
    format: str

    @property
    def files(self) -> list[Path]:
        """Files that weights are read from, and what says how they are stored beside ``config``.

        Empty for weights that come from no file.
        """

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    def names(self) -> list[str]:
        """Hugging Face's names of the stored weights, in the order of the file."""

    def info(self, name: str) -> TensorInfo:
        """Shape, type and bytes of a weight, from the header.

        KeyError for an unknown name, ModelFileError for one in a file that is not here.
        """

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) as a private copy: the stored float dtype, float32 if packed."""

    def read_packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedWeight:
        """Rows [start, stop) of a weight stored as integers, in the canonical layout."""
