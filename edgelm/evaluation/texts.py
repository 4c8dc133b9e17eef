"""Texts: a file, or a folder whose files are categories, as one passage of windows."""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import UsageError
from edgelm.evaluation.passage import Passage
from edgelm.text.tokenizer import Tokenizer


def read_texts(path: str | Path, tokenizer: Tokenizer, window: int, limit: int | None) -> Passage:
    """Read a file, or every file of a folder but hidden ones, in the order of their names.

    A file's name without its ending is its category: code.txt, chat.jsonl (conversations, see
    ``Passage.read``), french.txt. ``limit``: most windows of each file.

    Raises:
        UsageError: the folder holds no file, or a text is shorter than a window.
        ModelFileError: a file is not UTF-8 text.
    """
    if not Path(path).is_dir():
        return Passage.read(path, tokenizer, window, limit)
    files = sorted(own for own in Path(path).iterdir() if not own.name.startswith("."))
    if folders := [own for own in files if own.is_dir()]:
        raise UsageError(f"{folders[0]} is a folder in the folder of texts; give files alone.")
    if not files:
        raise UsageError(f"{path} holds no texts. Put UTF-8 files there, one for a category.")
    return Passage.joined([Passage.read(own, tokenizer, window, limit) for own in files])
