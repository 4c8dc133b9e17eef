"""GGUF models in parts: ``name-00001-of-00003.gguf`` and so on, as llama.cpp's gguf-split writes.

The first part has the model's metadata; each has its own tensors, and says which part of how many
it is (split.no, from 0; split.count) and how many tensors all parts have (split.tensors.count).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelm.checkpoint.gguf_header import Header, StoredTensor, read_header
from edgelm.errors import ModelFileError
from edgelm.plain_file import absence

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>(?i:\.gguf))")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_OWN = (_NUMBER, "general.alignment")  # keys that need not be those of the first part
MAX_PARTS = 1024
SHOWN = 5  # missing parts in an error


def part_names(name: str) -> list[str]:
    """The names of all parts of a model, of which ``name`` is one; [name] for a whole model's."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 < count <= MAX_PARTS:
        return [name]
    stem, suffix = match["stem"], match["suffix"]
    names = [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]
    return names if name in names else [name]


def part_paths(path: Path) -> list[Path]:
    """The paths of all parts of a model, by the file's name, else by the one that it links to."""
    for own in (path, Path(os.path.realpath(path))):
        names = part_names(own.name)
        if len(names) > 1:
            return [own.with_name(name) for name in names]
    return [path]


def model_in(folder: Path) -> Path | None:
    """The GGUF file, or first part, in a folder; None if there is none.

    Raises ModelFileError if the folder holds several models.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() == SUFFIX)
    files = [path for path in files if path.is_file()] or files  # rather no link to nowhere
    models = {part_paths(path)[0]: path for path in reversed(files)}  # the first one stays
    if len(models) > 1:
        names = ", ".join(sorted(path.name for path in models))
        raise ModelFileError(
            f"{folder} holds several models ({names}): give the path of one of these files."
        )
    return next(iter(models.values()), None)


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
