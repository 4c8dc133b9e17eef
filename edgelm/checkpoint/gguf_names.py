"""Names of GGUF files: the parts of a model in several files, and the one model in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgelm.errors import ModelFileError

SUFFIX = ".gguf"
MAX_PARTS = 1024
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>(?i:\.gguf))")


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
