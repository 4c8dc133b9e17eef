"""Baseline: what the unquantized weights say of a passage and of tasks, kept in a file.

The model and its baseline are never in memory together: the file holds the baseline's last hidden
states and its head, from which logits are made again in blocks. Layout: the magic, hidden states
[tokens, N] and head [V, N] in float32, then a JSON footer and its length in 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edgelm.errors import ModelFileError, UsageError
from edgelm.files import ModelFiles
from edgelm.ops.reference import softcap_
from edgelm.tokenizer import Tokenizer

MAGIC = b"EDGELMB1"
HEAD_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Facts:
    """The footer: what the baseline is of, and what tasks and its noise gave.

    ``tasks``: name -> sha256 of the items, and the right or wrong of each by both scores.
    ``noise``: figures of the same weights with bfloat16 activations against this baseline.
    """

    model_sha256: str
    tokenizer_sha256: str
    text_sha256: str | None
    shape: tuple[int, int]  # windows, window
    hidden_size: int
    vocab_size: int
    softcap: float | None
    tasks: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, float] | None = None

    def require(self, wanted: Facts, path: Path, *, same_weights: bool) -> None:
        """Raises UsageError unless this baseline is of the wanted model, tokenizer and text."""
        pairs = [("tokenizer", self.tokenizer_sha256, wanted.tokenizer_sha256)]
        if same_weights:
            pairs.insert(0, ("weights", self.model_sha256, wanted.model_sha256))
        if wanted.text_sha256 is not None:
            pairs.append(("text", self.text_sha256 or "none", wanted.text_sha256))
            pairs.append(("windows", str(self.shape), str(wanted.shape)))
        for what, held, given in pairs:
            if held != given:
                raise UsageError(
                    f"{path} is a baseline of other {what}: it holds {held[:16]}, this run has "
                    f"{given[:16]}. Give the baseline's own {what}, or another --baseline."
                )
        for name, task in wanted.tasks.items():
            if self.tasks.get(name, {}).get("sha256") != task["sha256"]:
                raise UsageError(
                    f"{path} has no baseline of these items of {name}. Give the task file and "
                    "--limit it was made with, or another --baseline."
                )


class Baseline:
    """An open baseline file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
            self.facts = self._footer()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(
                f"{path} is not a whole baseline file ({error}). Delete it; the same command "
                "makes it again."
            ) from error

    def close(self) -> None:
        self._file.close()

    def replace_facts(self, facts: Facts) -> None:
        """Give the file another footer; the hidden states and the head stay."""
        old = self.facts
        rows = old.shape[0] * old.shape[1] + old.vocab_size
        with self.path.open("r+b") as file:
            file.seek(len(MAGIC) + 4 * rows * old.hidden_size)
            write_footer(file, facts)
            file.truncate()

    def _footer(self) -> Facts:
        size = self.path.stat().st_size
        if self._file.read(len(MAGIC)) != MAGIC:
            raise ValueError("it starts otherwise")
        self._file.seek(size - 8)
        length = int.from_bytes(self._file.read(8), "little")
        if length > size:
            raise ValueError("it is cut off")
        self._file.seek(size - 8 - length)
        facts = Facts(**json.loads(self._file.read(length)))
        facts = Facts(**vars(facts) | {"shape": tuple(facts.shape)})
        rows = facts.shape[0] * facts.shape[1] + facts.vocab_size
        if size != len(MAGIC) + 4 * rows * facts.hidden_size + length + 8:
            raise ValueError("its size is not what its footer says")
        return facts

    def logits(self, start: int, count: int) -> Tensor:
        """Logits [count, V] float32 of the passage's tokens from ``start`` on."""
        facts = self.facts
        hidden = self._rows(start, count)
        logits = torch.empty(count, facts.vocab_size)
        first = facts.shape[0] * facts.shape[1]
        block = max(1, HEAD_BLOCK_BYTES // (4 * facts.hidden_size))
        for row in range(0, facts.vocab_size, block):
            part = self._rows(first + row, min(block, facts.vocab_size - row))
            logits[:, row : row + len(part)] = hidden @ part.T
        return logits if facts.softcap is None else softcap_(logits, facts.softcap)

    def _rows(self, start: int, count: int) -> Tensor:
        """Rows of hidden states, then of the head: [count, N]."""
        width = 4 * self.facts.hidden_size
        data = bytearray(count * width)
        self._file.seek(len(MAGIC) + start * width)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ModelFileError(f"{self.path} was cut off while it was read.")
        return torch.frombuffer(data, dtype=torch.float32).view(count, -1)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file written beside ``path`` that gets its name once it is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(MAGIC)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_head(file: BinaryIO, files: ModelFiles) -> None:
    """The head's matrix [V, N] in float32, block by block."""
    decoder, names = files.assemble("causal-lm")
    name = "embed" if decoder.embed.tied_to_head else "head"
    vocab, size = files.config.vocab_size, files.config.hidden_size
    block = max(1, HEAD_BLOCK_BYTES // (4 * size))
    for start in range(0, vocab, block):
        rows = names.read(name, start, min(start + block, vocab))
        file.write(rows.float().contiguous().numpy().data)


def write_footer(file: BinaryIO, facts: Facts) -> None:
    text = json.dumps(asdict(facts)).encode()
    file.write(text + len(text).to_bytes(8, "little"))


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Of all tokens in their order, whichever files they came from."""
    tokens = [tokenizer.token_of(index) for index in range(tokenizer.vocab_size)]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
