"""From canonical names to a file's names: one table per family, applied by one function."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgelm.checkpoint import Checkpoint, TensorInfo
from edgelm.errors import ModelFileError

_BASE_PREFIX = "model."  # checkpoints of a bare decoder lack it
_INDEX = re.compile(r"\.(\d+)\.")


class WeightNames:
    """Finds a model's tensors in a checkpoint and checks their shapes, from headers alone.

    Args:
        table: canonical name -> the file's name, without ``.weight`` / ``.bias`` and with ``{}``
            for the layer.
    """

    def __init__(self, table: Mapping[str, str], checkpoint: Checkpoint) -> None:
        self.table = table
        self.checkpoint = checkpoint
        self._present = set(checkpoint.names())

    def file_name(self, canonical: str, kind: str = "weight") -> str:
        """``layers.3.attn.q`` -> ``model.layers.3.self_attn.q_proj.weight``, as the file has it."""
        index = _INDEX.search(canonical)
        pattern = _INDEX.sub(".{}.", canonical, count=1) if index else canonical
        name = f"{self.table[pattern].format(index[1] if index else '')}.{kind}"
        bare = name.removeprefix(_BASE_PREFIX)
        return bare if name not in self._present and bare in self._present else name

    def has(self, canonical: str, kind: str = "weight") -> bool:
        return self.file_name(canonical, kind) in self._present

    def info(self, canonical: str, shape: tuple[int, ...], kind: str = "weight") -> TensorInfo:
        """What the header says of a tensor that must have ``shape``.

        Raises:
            ModelFileError: it is missing or has another shape.
        """
        name = self.file_name(canonical, kind)
        if name not in self._present:
            raise ModelFileError(
                f"{self.checkpoint.path} has no tensor {name}, which config.json implies. The "
                "file is damaged, incomplete or of another model: fetch it again."
            )
        info = self.checkpoint.info(name)
        if info.shape != shape:
            raise ModelFileError(
                f"{self.checkpoint.path}: tensor {name} has shape {list(info.shape)}; config.json "
                f"implies {list(shape)}. The two do not belong together: fetch both again."
            )
        return info
