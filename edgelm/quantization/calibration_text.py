"""Text to calibrate on, as sequences of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgelm.errors import UsageError
from edgelm.text.chat_prompt import encode_chat
from edgelm.text.lines import UTF8

if TYPE_CHECKING:
    from edgelm.text.tokenizer import Tokenizer

MOST_TOKENS = 128 * 1024
LEAST_SEQUENCES = 4
TOKENS_PER_INPUT = 4
"""With fewer for each input of a matrix, its Hessian is too uncertain to gain all there is."""
HELD_BACK = 8  # every eighth sequence
CHECKS = 16  # sequences of the built-in text that a file's are checked against
_SHORT, _LONG = 256, 1024  # tokens of a sequence; long ones where there are at least 64 of them
_MOST_CHARACTERS = 1 << 20  # only the beginning of a longer text is used
_BUILT_IN = "data/calibration"


@dataclass(frozen=True)
class CalibrationText:
    """Sequences of tokens, spread over a text; each begins with BOS if texts do.

    shape: number of sequences and tokens of each. identity: the same for the same ids.
    source: makes the ids, int64 of that shape. making_peak_bytes: of the process meanwhile.
    checks: so many at the end are of another text, and held back in place of its own.
    """

    name: str
    shape: tuple[int, int]
    identity: str
    source: Callable[[], Tensor]
    making_peak_bytes: int = 0
    checks: int = 0

    @classmethod
    def read(cls, path: str | Path | None, tokenizer: Tokenizer, context: int) -> CalibrationText:
        """Read a UTF-8 file, or the texts built into the package.

        What is fitted to a file is checked against those: a text that is unlike what the model
        reads otherwise, in another language say, must not spoil the rest.

        context: the model's context, which limits the length of sequences.

        Raises:
            UsageError: the file is missing, not UTF-8, or too short.
        """
        general = list(built_in(tokenizer))
        if path is None:
            return cls.of("the built-in text", general, tokenizer, context)
        ids = tokenizer.encode(_text(path), add_special=False)
        return cls.of(str(path), ids, tokenizer, context, general)

    @classmethod
    def of(
        cls, name: str, ids: list[int], tokenizer: Tokenizer, context: int,
        general: Sequence[int] = (),
    ) -> CalibrationText:  # fmt: skip
        """Sequences of the tokens ``ids``, and CHECKS of ``general`` if given.

        UsageError if they are too few.
        """
        start = [tokenizer.bos_id] if tokenizer.add_bos else []
        size = _LONG if len(ids) >= MOST_TOKENS // 2 else _SHORT
        length = max(1, min(size, context) - len(start))
        found = len(ids) // length
        if found < LEAST_SEQUENCES:
            raise UsageError(
                f"calibration: {name} has {len(ids)} tokens; {LEAST_SEQUENCES * length} are needed "
                f"at least, and up to {MOST_TOKENS} are used. Give a longer text."
            )
        count = min(found, MOST_TOKENS // (length + len(start)))
        checks = min(CHECKS, len(general) // length)
        rows = [*_spread(ids, count, length), *_spread(general, checks, length)]
        made = torch.tensor([start + row for row in rows])
        identity = hashlib.sha256(made.numpy().tobytes()).hexdigest()
        return cls(name, (len(made), made.shape[1]), identity, lambda: made, checks=checks)

    @cached_property
    def ids(self) -> Tensor:
        """Int64 [sequences, tokens]; made when first asked for."""
        return self.source()

    @property
    def held_back(self) -> list[bool]:
        """Of each sequence, whether it is kept for checks."""
        count = self.shape[0]
        if self.checks:
            return [number >= count - self.checks for number in range(count)]
        step = min(HELD_BACK, count)
        return [number % step == step - 1 for number in range(count)]

    def tokens_per_input(self, inputs: int) -> float:
        """Tokens to fit to for each of the inputs of a matrix."""
        return self.held_back.count(False) * self.shape[1] / inputs

    def to_dict(self) -> dict[str, Any]:
        """Summary of the calibration as JSON-able data."""
        sequences, tokens = self.shape
        return {
            "sequences": sequences - self.checks, "tokens_each": tokens, "text": self.name,
            "held_back": sum(self.held_back),
        }  # fmt: skip


def _spread(ids: Sequence[int], count: int, length: int) -> Iterator[list[int]]:
    """``count`` stretches of ``length`` tokens, evenly spread."""
    found = len(ids) // length
    for number in range(count):
        first = number * found // count * length
        yield list(ids[first : first + length])


def built_in(tokenizer: Tokenizer) -> Iterator[int]:
    """Ids of the package's texts, and of its conversations as the model writes them."""
    folder = package_files("edgelm").joinpath(_BUILT_IN)
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        text = file.read_text(encoding="utf-8")
        if file.name.endswith(".txt"):
            yield from tokenizer.encode(text, add_special=False)
        elif tokenizer.chat_template:
            for conversation in json.loads(text):
                yield from encode_chat(tokenizer, conversation, continue_final_message=True)
        else:
            plain = "\n\n".join(turn["content"] for turns in json.loads(text) for turn in turns)
            yield from tokenizer.encode(plain, add_special=False)


def _text(path: str | Path) -> str:
    try:
        with Path(path).open(encoding=UTF8) as file:
            return file.read(_MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"calibration: {path} cannot be read as UTF-8 text: {error}. Give a plain text file, "
            "or none for the built-in text."
        ) from error
