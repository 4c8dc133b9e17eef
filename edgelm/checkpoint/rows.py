"""Bytes of a file into memory that is ours, by plain reads.

Nothing is mapped: a mapped page counts as resident beside the copy made of it, and a file that
shrinks under a mapping kills the process, where a short read is an error that can be explained.
"""

from __future__ import annotations

from io import RawIOBase
from pathlib import Path

import torch

from edgelm.errors import ModelFileError


def span(rows: int, start: int, stop: int | None, name: str) -> tuple[int, int]:
    """[start, stop) as non-negative numbers inside a tensor of `rows` rows, else IndexError."""
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise IndexError(f"rows [{start}, {stop}) asked of {name}, which has {rows}")
    return start, stop


def fill(file: RawIOBase, offset: int, out: torch.Tensor, path: Path) -> None:
    """Read `out.nbytes` bytes at `offset` into the contiguous CPU tensor `out` of any dtype."""
    if not out.numel():
        return
    view = out.view(-1).view(torch.uint8).numpy().data
    file.seek(offset)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ModelFileError(
                f"{path} ended {len(view) - done} bytes early while it was read: it changed after "
                "it was opened. Fetch the file again."
            )
        done += count
