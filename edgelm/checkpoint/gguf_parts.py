"""GGUF models in parts: ``name-00001-of-00003.gguf`` and so on, as llama.cpp's gguf-split writes.

The first part has the model's metadata; each has its own tensors, and says which part of how many
it is (split.no, from 0; split.count) and how many tensors all parts have (split.tensors.count).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelm.checkpoint.gguf_header import Header, StoredTensor, read_header
from edgelm.checkpoint.gguf_names import SUFFIX, part_paths
from edgelm.errors import ModelFileError
from edgelm.plain_file import absence

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_OWN = (_NUMBER, "general.alignment")  # keys that need not be those of the first part
SHOWN = 5  # missing parts in an error


def read_model(path: Path) -> tuple[Path, Header]:
    """The path and header of a model in one file, or in parts of which ``path`` is any.

    Of parts it is the first one's path, and a header with the tensors of all.
    Raises ModelFileError for parts that are missing or that do not belong together.
    """
    header = read_header(path)
    if _count(header) < 2:
        return path, header
    paths = part_paths(path)
    if len(paths) != _count(header):
        raise ModelFileError(
            f"{path} is one of {_count(header)} parts of a model, which its name does not say. "
            f"Give the parts their names: NAME-00001-of-{_count(header):05d}{SUFFIX} and so on."
        )
    missing = [absence(part) for part in paths if not part.exists()]
    if missing:
        raise ModelFileError(
            f"{path} is one of {len(paths)} parts of a model, of which {len(missing)} are not "
            f"here. {' '.join(missing[:SHOWN])} Fetch all parts into one folder."
        )
    return paths[0], _joined(paths)


def _count(header: Header) -> int:
    count = header.metadata.get(_COUNT, 1)
    return count if isinstance(count, int) else 1


def _joined(parts: Sequence[Path]) -> Header:
    """One header of all parts, which must be those of one model; one of them is held at a time."""
    metadata: dict[str, Any] = {}
    tensors: dict[str, StoredTensor] = {}
    for number, path in enumerate(parts):
        header = read_header(path)
        own = header.metadata
        metadata = metadata or own
        if (own.get(_NUMBER), own.get(_COUNT)) != (number, len(parts)):
            told = f"part {own.get(_NUMBER)} (from 0) of {own.get(_COUNT)}"
            raise _foreign(path, f"it says that it is {told}")
        differing = [key for key in own if key not in _OWN and own[key] != metadata.get(key)]
        if differing:
            raise _foreign(path, f"its {differing[0]} is not that of the first part")
        twice = sorted(tensors.keys() & header.tensors.keys())
        if twice:
            raise _foreign(path, f"another part also holds {twice[0]}")
        tensors |= header.tensors
    told = metadata.get(_TENSORS, len(tensors))
    if told != len(tensors):
        raise ModelFileError(
            f"{parts[0]}: its {_TENSORS} is {told!r:.80}, but the {len(parts)} parts hold "
            f"{len(tensors)} tensors. Fetch all parts again."
        )
    return Header({k: v for k, v in metadata.items() if not k.startswith("split.")}, tensors)


def _foreign(path: Path, problem: str) -> ModelFileError:
    return ModelFileError(
        f"{path} does not belong to the other parts of the model: {problem}. Fetch it again."
    )
