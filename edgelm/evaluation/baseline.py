"""Baseline: results of the unquantized weights for a passage and tasks, kept in a file.

The model and its baseline are never in memory together: the file holds the baseline's last hidden
states and its head, from which logits are recomputed in blocks. Layout: the magic, hidden states
[tokens, N] and head [V, N] in float32, then a JSON footer and its length in 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from edgelm.budget.units import BLOCK_BYTES
from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.evaluation.rows import Rows
from edgelm.models.model_files import ModelFiles
from edgelm.ops.reference import softcap_
from edgelm.text.tokenizer import Tokenizer

MAGIC = b"EDGELMB3"


@dataclass(frozen=True)
class Facts:
    """The footer: inputs of the baseline, and the results of tasks and of the noise.

    ``tasks``: name -> sha256 of the items, and for each whether both scores are right.
    ``noise``: figures of the same weights with bfloat16 activations against this baseline, see
    ``make_baseline``.
    """

    model_sha256: str
    tokenizer_sha256: str
    text_sha256: str | None
    shape: tuple[int, int]  # windows, window
    hidden_size: int
    vocab_size: int
    softcap: float | None
    tasks: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    bos: bool = False  # files of older versions do not say: their windows began without

    def require(self, wanted: Facts, path: Path, *, weights: str | None) -> None:
        """Raise UsageError unless this baseline matches the tokenizer, text and items.

        Args:
            weights: sha256 of the model it must come from, None for any.
        """
        pairs = [("tokenizer", self.tokenizer_sha256, wanted.tokenizer_sha256)]
        if weights is not None:
            pairs.insert(0, ("weights", self.model_sha256, weights))
        if wanted.text_sha256 is not None:
            pairs.append(("text", self.text_sha256 or "none", wanted.text_sha256))
            pairs.append(("windows", str(self.shape), str(wanted.shape)))
            pairs.append(("windows' first id", _first_id(self.bos), _first_id(wanted.bos)))
        for what, held, given in pairs:
            if held != given:
                raise UsageError(
                    f"{path} does not match the {what} of this run: it has {held[:16]}, this run "
                    f"needs {given[:16]}. Give the {what} of the baseline, or another --baseline."
                )
        for name, task in wanted.tasks.items():
            if self.tasks.get(name, {}).get("sha256") != task["sha256"]:
                raise UsageError(
                    f"{path} has no baseline of these items of {name}. Give the task file and "
                    "--limit it was made with, or another --baseline."
                )


def _first_id(bos: bool) -> str:
    return "BOS" if bos else "the text's"


class Baseline:
    """An open baseline file: ``hidden`` [tokens, N], the head, and facts about both."""

    def __init__(self, file: BinaryIO, facts: Facts) -> None:
        self.facts, self._file = facts, file
        self.hidden = Rows(file, len(MAGIC), facts.hidden_size)
        head_offset = len(MAGIC) + 4 * facts.shape[0] * facts.shape[1] * facts.hidden_size
        self._head = Rows(file, head_offset, facts.hidden_size)

    @classmethod
    def open(cls, path: Path) -> Baseline:
        """Open a baseline file; raises ModelFileError unless it is complete."""
        try:
            file = path.open("rb")
            try:
                return cls(file, _footer(file, path.stat().st_size))
            except BaseException:
                file.close()
                raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(
                f"{path} is not a complete baseline file ({error}). Delete it; the same "
                "command recreates it."
            ) from error

    def close(self) -> None:
        self._file.close()

    def logits(self, start: int, count: int) -> Tensor:
        """Logits [count, V] float32 of the passage's tokens from ``start`` on."""
        return self.head(self.hidden.read(start, count))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [M, V] float32 of hidden states [M, N], multiplied in their dtype."""
        facts = self.facts
        logits = torch.empty(len(hidden), facts.vocab_size)
        for start, stop in _blocks(facts.vocab_size, facts.hidden_size):
            part = self._head.read(start, stop - start).to(hidden.dtype)
            logits[:, start:stop] = hidden @ part.T
        return logits if facts.softcap is None else softcap_(logits, facts.softcap)

    def write_head(self, files: ModelFiles) -> None:
        """Write the head's matrix [V, N] from the model's files, block by block."""
        model = files.assemble("causal-lm")
        name = "embed" if model.decoder.embed.tied_to_head else "head"
        for start, stop in _blocks(self.facts.vocab_size, self.facts.hidden_size):
            self._head.write(start, model.names.read(name, start, stop))


def _blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """The head's rows in blocks of BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _footer(file: BinaryIO, size: int) -> Facts:
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not start with the magic")
    file.seek(size - 8)
    length = int.from_bytes(file.read(8), "little")
    if length > size:
        raise ValueError("it is cut off")
    file.seek(size - 8 - length)
    facts = Facts(**json.loads(file.read(length)))
    facts = replace(facts, shape=(facts.shape[0], facts.shape[1]))
    rows = facts.shape[0] * facts.shape[1] + facts.vocab_size
    if size != len(MAGIC) + 4 * rows * facts.hidden_size + length + 8:
        raise ValueError("its size is not what its footer says")
    return facts


@contextmanager
def baseline_errors() -> Iterator[None]:
    """Turn an OSError of the disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise EdgeLMError(
            f"The baseline could not be written ({where}{error.strerror or error}). Give it "
            "another place: a file by --baseline, and TMPDIR for what is kept aside."
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Context for writing a temporary file that is renamed to ``path`` once complete."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w+b") as file:
            file.write(MAGIC)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_footer(file: BinaryIO, facts: Facts) -> None:
    file.seek(0, os.SEEK_END)
    text = json.dumps(asdict(facts)).encode()
    file.write(text + len(text).to_bytes(8, "little"))


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Hash of all tokens in order, whichever files they came from."""
    tokens = [tokenizer.token_of(index) for index in range(tokenizer.vocab_size)]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
