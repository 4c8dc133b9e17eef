"""A conversation in a file: what its row of the cache holds, its ids and its messages.

The file is safetensors. Its metadata has one entry, ``conversation``: JSON with the keys of
``Facts``. Tensors are named ``<store>.<number>``: keys, values and (int8) their scales of the
layers that share a window, [layers, G, slots in use, D or 1], slots as the cache has them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edgelm.budget.plan import Plan
from edgelm.errors import EdgeLMError, ModelFileError, UnsupportedModelError, UsageError
from edgelm.generation.session import Session
from edgelm.ops.cache import KVCache
from edgelm.text.messages import Messages, checked_messages

FORMAT_VERSION = 1
_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Metadata of a file.

    ``model``: sha256 of the weights' files; ``scheme``: of each matrix, since keys depend on it.
    ``ids``: those that the row holds. ``written``: see ``KVCache``.
    """

    format_version: int
    model: str
    scheme: str
    kv: str
    written: int
    ids: list[int]
    messages: list[dict[str, Any]]


def facts_of(plan: Plan, sha256: str) -> Facts:
    """Metadata that a loaded model would write for an empty conversation.

    Args:
        sha256: of the weights' files.
    """
    schemes = [[*product.names, product.scheme] for product in plan.products]
    digest = hashlib.sha256(json.dumps(schemes).encode()).hexdigest()
    return Facts(FORMAT_VERSION, sha256, f"{plan.scheme} {digest}", plan.kv, 0, [], [])


def save_conversation(
    path: Path, session: Session, facts: Callable[[], Facts], messages: Messages
) -> None:
    """Keep what the row of the last answer holds in a file, with its messages.

    Args:
        facts: makes those of ``facts_of``, which reads all weights.

    Raises:
        UsageError: nothing is held, what should be messages is not, or the file exists and is no
            conversation.
        EdgeLMError: the file cannot be written.
    """
    row = session.last_row
    if not session.held[row]:
        raise UsageError("The conversation is empty; send a message before you save it.")
    if os.path.lexists(path) and not _is_conversation(path):
        raise UsageError(
            f"{path} exists and is not a saved conversation, so it is not overwritten. Give "
            "another name, or delete it first."
        )
    kept = _messages(messages)
    try:
        json.dumps(kept)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The messages hold what JSON cannot ({error}); give texts, numbers, lists, mappings."
        ) from error
    told = replace(
        facts(),
        ids=session.held[row],
        written=session.cache.written(row),
        messages=kept,
    )
    save_row(path, session.cache, row, told)


def restore_conversation(path: Path, session: Session, facts: Facts) -> list[dict[str, Any]]:
    """Put a saved conversation back into the row of the last answer; its messages.

    Raises:
        ModelFileError, UnsupportedModelError, UsageError: see ``restore_row``; what the cache held
            is still there then.
    """
    cache, row = session.cache, session.last_row
    held = session.held[row]
    try:
        found = restore_row(path, cache, row, facts, session.engine.config.vocab_size)
    except BaseException:
        del held[cache.lengths[row] :]
        raise
    held[:] = found.ids
    return found.messages


def save_row(path: Path, cache: KVCache, row: int, facts: Facts) -> None:
    """Write a row beside ``path``, then rename it: what was there stays until all is written.

    Raises:
        EdgeLMError: the file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f"{path.name}.", delete=False
        ) as file:
            try:
                _write(file, facts, cache.row_tensors(row))
                file.close()
                os.replace(file.name, path)
            except BaseException:
                file.close()
                os.unlink(file.name)
                raise
    except OSError as error:
        raise EdgeLMError(
            f"The conversation could not be written to {path}: {error.strerror or error}. What "
            "the file held before is untouched; name another place, or free some space."
        ) from error


def restore_row(path: Path, cache: KVCache, row: int, wanted: Facts, vocab: int) -> Facts:
    """Fill a row from a file, after everything that the file says was checked.

    Args:
        wanted: what a file of the loaded model says, without ids and messages.
        vocab: how many ids the model has.

    Raises:
        ModelFileError: the file is missing or damaged.
        UnsupportedModelError: a newer version wrote it.
        UsageError: it is another model's, or does not fit this cache.
    """
    with _opened(path) as file:
        facts = _facts(path, file.metadata())
        _check_model(path, facts, wanted)
        _check_ids(path, facts, vocab)
        tensors = cache.row_tensors(row, facts.written)
        expected = {name: (_NAMES[t.dtype], [*t.shape]) for name, t in tensors.items()}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        stored = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
        if stored != expected or not cache.reaches(len(facts.ids), facts.written):
            raise UsageError(
                f"{path} does not fit this cache: it was saved with another context or chunk. Load "
                "the model with the settings it had then."
            )
        cache.truncate(row, 0)
        for name, tensor in tensors.items():
            for layer, target in enumerate(tensor):
                target.copy_(slices[name][layer])
        cache.rewind(row, len(facts.ids), facts.written)
    return facts


def _write(file: Any, facts: Facts, tensors: dict[str, Tensor]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"conversation": json.dumps(asdict(facts))}}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.itemsize
        shape = [*tensor.shape]
        entries[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [at, end],
        }  # fmt: skip
        at = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    for tensor in tensors.values():
        for group in tensor.flatten(0, 1):
            _write_group(file, group)
    file.flush()
    os.fsync(file.fileno())


def _write_group(file: BinaryIO, group: Tensor) -> None:
    """The slots of one layer's group, which lie together in the cache."""
    file.write(group.reshape(-1).view(torch.uint8).cpu().numpy().data)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file with its header checked by the safetensors library: sizes, offsets, length."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelFileError(f"{path} is not a file. Give one that a conversation was saved to.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is damaged, or no saved conversation ({error}). Nothing was restored."
        ) from None


def _is_conversation(path: Path) -> bool:
    """True if a file is one, of any version."""
    try:
        with _opened(path) as file:
            return "conversation" in (file.metadata() or {})
    except ModelFileError:
        return False


def _facts(path: Path, metadata: dict[str, str] | None) -> Facts:
    try:
        told = json.loads((metadata or {})["conversation"])
        version = told["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UnsupportedModelError(
                f"{path} is of format version {version}; this edgelm reads up to "
                f"{FORMAT_VERSION}. Install a newer edgelm."
            )
        facts = Facts(**(told | {"messages": _messages(told["messages"])}))
        whole = [facts.format_version, facts.written, *facts.ids]
        if version != FORMAT_VERSION or any(type(number) is not int for number in whole):
            raise ValueError(f"format_version is {version!r}, or an id is not a number")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageError) as error:
        raise ModelFileError(
            f"{path} is damaged, or no saved conversation ({type(error).__name__}: {error}). "
            "Nothing was restored."
        ) from None
    return facts


def _messages(messages: Messages) -> list[dict[str, Any]]:
    """Copies as they are, with parts of contents; none are allowed too."""
    none = isinstance(messages, list | tuple) and not messages
    return [] if none else checked_messages(messages, lambda: True)


def _check_model(path: Path, facts: Facts, wanted: Facts) -> None:
    for what, theirs, ours in (
        ("weights", facts.model, wanted.model),
        ("scheme", facts.scheme, wanted.scheme),
        ("kv", facts.kv, wanted.kv),
    ):
        if theirs != ours:
            raise UsageError(
                f"{path} is a conversation with other {what}: {str(theirs)[:16]}, the loaded model "
                f"has {ours[:16]}. Load the model, quant and kv that it was saved with."
            )


def _check_ids(path: Path, facts: Facts, vocab: int) -> None:
    if not facts.ids or not all(0 <= token < vocab for token in facts.ids):
        raise ModelFileError(
            f"{path} is damaged: its ids are not all in 0-{vocab - 1}, or none. Nothing was "
            "restored."
        )
