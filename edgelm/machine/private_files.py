"""Files and folders that only their owner may read and write, whatever the umask is.

Systems other than POSIX ones keep the folders of users apart themselves.
"""

from __future__ import annotations

import errno
import os
from io import BufferedWriter
from pathlib import Path

FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_OTHERS_WRITE = 0o022


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents; those that exist stay as they are."""
    for folder in reversed((path, *path.parents)):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            folder.chmod(_FOLDER_MODE)
    path.mkdir(exist_ok=True)  # tells of a file in its place


def close_to_others(folder: Path) -> bool:
    """Take a folder from others, who may have written to it; False if they could not.

    OSError if another user owns it.
    """
    found = folder.stat()
    reason = refusal(found)
    if reason is None:
        return False
    if _is_foreign(found):
        raise PermissionError(errno.EPERM, f"{folder}: {reason}")
    folder.chmod(_FOLDER_MODE)
    return True


def create(path: Path) -> BufferedWriter:
    """A new file opened for writing, in place of one that exists; OSError if it is refused."""
    path.unlink(missing_ok=True)
    binary = getattr(os, "O_BINARY", 0)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | binary, FILE_MODE)
    if hasattr(os, "fchmod"):
        os.fchmod(file, FILE_MODE)
    return os.fdopen(file, "wb")


def refusal(found: os.stat_result) -> str | None:
    """Why the content of a file or folder may be another user's; None if it is this user's."""
    if _is_foreign(found):
        return "it belongs to another user"
    if os.name == "posix" and found.st_mode & _OTHERS_WRITE:
        return "other users may write to it"
    return None


def _is_foreign(found: os.stat_result) -> bool:
    return os.name == "posix" and found.st_uid != os.geteuid()
