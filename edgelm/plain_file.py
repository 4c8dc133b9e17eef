"""Plain files: what a model's files must be to be opened, with a limit of size for small ones.

A FIFO keeps whoever opens it waiting, a device may have no end, and a link may lead nowhere. A link
to a plain file is as good as the file, wherever it lies: the Hub's cache and other tools build
folders of them.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader, BytesIO, FileIO, TextIOWrapper
from pathlib import Path

from edgelm.errors import ModelFileError

SMALL_BYTES = 16 << 20  # of a config, a template or an index: those of real models have 1 MiB
VOCABULARY_BYTES = 256 << 20  # of a tokenizer.json or tokenizer.model: Gemma 3's has 33 MiB
_OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_present(path: Path) -> bool:
    """True if a plain file has this name, False if nothing has.

    Raises ModelFileError for anything else that has it, a link to nowhere for example.
    """
    try:
        _refuse_others(path, path.stat().st_mode)
    except OSError as error:
        if os.path.islink(path):
            raise ModelFileError(f"{absence(path)} Remove the link, or fetch its file.") from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return False
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from None
    return True


def absence(path: Path) -> str:
    """A sentence that says that there is no such file; of a link, where it leads."""
    if not os.path.islink(path):
        return f"{path} is missing."
    return f"{path} is a link to {os.path.realpath(path)}, and no file is there."


def open_plain(path: Path) -> FileIO:
    """Open a file to be read, unbuffered.

    Raises ModelFileError for what is no plain file, and OSError as ``open`` does.
    """
    if not is_present(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    file = FileIO(path, opener=_at_once)
    try:  # again: another may have taken the name since
        _refuse_others(path, os.fstat(file.fileno()).st_mode)
    except ModelFileError:
        file.close()
        raise
    return file


def read_small(path: Path, limit: int = SMALL_BYTES) -> bytes:
    """The content of a file that has at most ``limit`` bytes.

    Raises ModelFileError for a larger one or what is no plain file, OSError as ``open`` does.
    """
    with BufferedReader(open_plain(path)) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ModelFileError(
            f"{path} has more than {limit >> 20} MiB, which no file of this kind has. Fetch the "
            "file again."
        )
    return content


def read_text(path: Path) -> str:
    """The text of a small file, its lines ended by a line feed each.

    Raises UnicodeDecodeError if it is not UTF-8, and what ``read_small`` raises.
    """
    with TextIOWrapper(BytesIO(read_small(path)), encoding="utf-8") as text:
        return text.read()


def _at_once(name: str, flags: int) -> int:
    """Open without waiting for whoever writes to a FIFO."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_others(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _OTHERS.get(stat.S_IFMT(mode), "no file")
        link = f" (by its link to {os.path.realpath(path)})" if os.path.islink(path) else ""
        raise ModelFileError(
            f"{path} is {kind}{link}, where a plain file is needed: put one there."
        )
