"""Reading bytes of a file into private memory, by plain reads.

Nothing is mapped: a mapped page counts as resident in addition to its copy, and a file that
shrinks under a mapping kills the process, where a short read is an error that can be explained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

import torch

from edgelm.errors import ModelFileError
from edgelm.plain_file import open_plain


def span(rows: int, start: int, stop: int | None, name: str) -> tuple[int, int]:
    """Check [start, stop) against a tensor of ``rows`` rows and return it, or raise IndexError."""
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise IndexError(f"rows [{start}, {stop}) are out of range: {name} has {rows}")
    return start, stop


@contextmanager
def opened(path: Path) -> Iterator[RawIOBase]:
    """Open a plain file for ``fill``, unbuffered; OSError becomes ModelFileError."""
    try:
        with open_plain(path) as file:
            yield file
    except OSError as error:
        raise ModelFileError(
            f"{path} cannot be read: {error.strerror or error}. Check that the file is still there "
            "and may be read."
        ) from error


def fill(file: RawIOBase, offset: int, out: torch.Tensor, path: Path) -> None:
    """Read ``out.nbytes`` bytes at ``offset`` into ``out``, contiguous on the CPU, any dtype."""
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


def fill_columns(
    file: RawIOBase, offset: int, width_bytes: int, begin_bytes: int, out: torch.Tensor, path: Path
) -> None:
    """Read columns of a stored matrix into ``out`` [rows, n], contiguous and of any dtype.

    offset: where the matrix begins; width_bytes: of a stored row; begin_bytes: of the columns
    before the requested ones.
    """
    if out.nbytes == len(out) * width_bytes:
        fill(file, offset, out, path)
        return
    for index, view in enumerate(out.view(torch.uint8).numpy()):
        file.seek(offset + index * width_bytes + begin_bytes)
        if file.readinto(view.data) != len(view):  # rare: the end of the file, or an interruption
            fill(file, offset + index * width_bytes + begin_bytes, out[index], path)
