"""Writer of safetensors: all sizes first, then headers, then rows at their offsets in any order.

Files are created at their full length, so a disk that is too small is reported before the work.
The content depends only on the layout, never on the order of writes or on interruptions.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from edgelm.checkpoint.packed_layout import Spec, stored_bytes
from edgelm.checkpoint.safetensors_files import INDEX, SINGLE
from edgelm.errors import EdgeLMError, ModelFileError

SHARD_BYTES = 5 * 10**9
READ_BYTES = 1 << 22
FULL = (errno.ENOSPC, errno.EDQUOT)
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8", torch.int8: "I8",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Location of a tensor: bytes [offset, offset + nbytes) of ``file``."""

    file: str
    offset: int
    nbytes: int
    row_bytes: int


@dataclass(frozen=True)
class Layout:
    """Files of a model before anything is written: headers as bytes, and every tensor's place."""

    headers: dict[str, bytes]
    sizes: dict[str, int]
    places: dict[str, Place]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def index(self) -> bytes | None:
        """The content of the index file, None for a single file."""
        if len(self.headers) == 1:
            return None
        total = sum(place.nbytes for place in self.places.values())
        weight_map = {name: place.file for name, place in sorted(self.places.items())}
        data = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return (json.dumps(data, indent=2) + "\n").encode()


def plan_layout(
    groups: list[dict[str, Spec]], shard_bytes: int = SHARD_BYTES, *, form: str = "pt"
) -> Layout:
    """Plan places for tensors given by name -> dtype and shape; a group shares a file.

    A file holds up to ``shard_bytes``, or one group that is larger. form: "pt" for what PyTorch
    programs may load; transformers 4 refuses others.
    """
    shards: list[dict[str, Spec]] = [{}]
    filled = 0
    for group in groups:
        nbytes = sum(map(stored_bytes, group.values()))
        if filled and filled + nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1].update(group)
        filled += nbytes
    layout = Layout({}, {}, {})
    for number, shard in enumerate(shards, 1):
        many = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _place(layout, SINGLE if len(shards) == 1 else many, shard, form)
    return layout


def _place(layout: Layout, file: str, tensors: Mapping[str, Spec], form: str) -> None:
    """One file's header, widest numbers first so that each tensor is aligned without holes."""
    entries: dict[str, object] = {"__metadata__": {"format": form}}
    offset = 0
    order = sorted(tensors.items(), key=lambda item: -item[1][0].itemsize)
    for name, spec in order:
        dtype, shape = spec
        end = offset + stored_bytes(spec)
        entries[name] = {
            "dtype": NAMES[dtype], "shape": [*shape], "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = 8 + len(text)
    layout.headers[file] = len(text).to_bytes(8, "little") + text
    layout.sizes[file] = data + offset
    at = data
    for name, spec in order:
        nbytes, rows = stored_bytes(spec), spec[1][0] if spec[1] else 1
        layout.places[name] = Place(file, at, nbytes, nbytes // max(rows, 1))
        at += nbytes


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Turn an OSError of the disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise EdgeLMError(
                f"The disk is full: {what} could not be written. What is finished is kept in "
                f"{what.name}.partial; free some space and give the same command again to resume, "
                "or delete that folder."
            ) from error
        raise EdgeLMError(
            f"{what} could not be written: {error.strerror or error}. Give another place."
        ) from error


class TensorFiles:
    """The files of a layout in a folder, open for writing rows at any place.

    Keeps a running sha256 of each tensor being written; its rows must be written in order.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._files = {name: (folder / name).open("r+b", buffering=0) for name in layout.headers}
        self._digests: dict[str, hashlib._Hash] = {}

    @staticmethod
    def create(folder: Path, layout: Layout) -> None:
        """Create the files at full length and write their headers."""
        for name, header in layout.headers.items():
            with (folder / name).open("wb") as file:
                file.write(header)
                file.flush()
                reserve(file.fileno(), layout.sizes[name])
                file.truncate(layout.sizes[name])

    def write(self, name: str, row: int, rows: torch.Tensor) -> None:
        """Write rows of tensor ``name`` from row ``row`` on."""
        place = self.layout.places[name]
        data = rows.contiguous().reshape(-1).view(torch.uint8).numpy().data
        file = self._files[place.file]
        file.seek(place.offset + row * place.row_bytes)
        written = 0
        while written < len(data):
            written += file.write(data[written:]) or 0
        digest = self._digests.setdefault(name, hashlib.sha256())
        digest.update(data)

    def finish(self, names: list[str]) -> dict[str, str]:
        """The sha256 of each of these tensors, whose rows are all written."""
        return {name: self._digests.pop(name).hexdigest() for name in names}

    def sync(self) -> None:
        """Flush everything written to the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def reserve(handle: int, nbytes: int) -> None:
    """Allocate the disk space now, where the system can; OSError if there is too little."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, nbytes)
        except OSError as error:
            if error.errno in FULL:
                raise


def verify_files(folder: Path, layout: Layout, tensors: Mapping[str, str]) -> dict[str, str]:
    """Read all files back and check each tensor's sha256; returns the sha256 of each file.

    Raises ModelFileError naming the first tensor that does not read back as written.
    """
    found = {}
    for name, header in layout.headers.items():
        own = sorted((p.offset, t) for t, p in layout.places.items() if p.file == name)
        whole = hashlib.sha256()
        with (folder / name).open("rb", buffering=0) as file:
            sound = file.read(len(header)) == header
            whole.update(header)
            for _, tensor in own:
                sound = sound and _digest(file, layout.places[tensor], whole) == tensors[tensor]
                if not sound:
                    raise ModelFileError(
                        f"{folder / name}: {tensor} does not read back as it was written. The "
                        f"disk may be failing. Delete {folder} and quantize again, elsewhere if "
                        "this repeats."
                    )
        found[name] = whole.hexdigest()
    return found


def _digest(file: object, place: Place, whole: hashlib._Hash) -> str:
    own = hashlib.sha256()
    left = place.nbytes
    while left:
        piece = file.read(min(left, READ_BYTES))  # type: ignore[attr-defined]
        if not piece:
            break
        own.update(piece)
        whole.update(piece)
        left -= len(piece)
    return own.hexdigest()


def index_file(folder: Path, layout: Layout) -> None:
    """Write the index, where several files need one."""
    content = layout.index()
    if content is not None:
        (folder / INDEX).write_bytes(content)
