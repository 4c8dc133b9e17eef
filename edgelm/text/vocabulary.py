"""Vocabulary: the tokens of a tokenizer file behind one interface, whichever library splits texts.

``tokenizers`` reads ``tokenizer.json``, ``sentencepiece`` reads ``tokenizer.model``. Both turn text
into ids here and give the bytes of an id; ``DecodeStream`` joins those bytes back into text, so
that the text is the same whole and token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgelm.text.tokenizer_config import AddedToken

SPACE = "\u2581"  # represents a space inside sentencepiece's pieces


class Vocabulary(Protocol):
    """Token ids of one tokenizer: 0 <= id < size."""

    size: int
    strips_first_space: bool  # the encoder adds a space before a text; decoding removes it
    prefix: tuple[int, ...]  # ids that the file itself adds before a text
    suffix: tuple[int, ...]  # ... and after it
    bos_id: int | None  # None if the file has none
    eos_id: int | None
    pad_id: int | None

    def encode(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """Ids of the text alone; special tokens written in it count only with parse_special.

        mark: a character that may stand within a token's text, which is none then; it is taken out.
        """

    @property
    def cut(self) -> Mapping[str, bool]:
        """Texts of the tokens that are cut out before anything else, and whether each is special.

        Special ones are cut only with parse_special.
        """

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, None if there is no such token."""

    def name_of(self, token_id: int) -> str:
        """Spelling of the token in the vocabulary, '' for an id without a token."""

    def bytes_of(self, token_id: int) -> bytes:
        """UTF-8 bytes of the token (possibly only part of a character)."""

    def save(self, folder: Path) -> None:
        """Write it as the file that its library reads: tokenizer.json or tokenizer.model."""

    @property
    def added(self) -> Sequence[AddedToken]:
        """The tokens that the file written by ``save`` does not hold."""

    def is_special(self, token_id: int) -> bool:
        """True if the token is a control token rather than text."""
