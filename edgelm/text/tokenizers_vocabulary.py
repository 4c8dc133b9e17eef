"""Vocabulary of a ``tokenizer.json``, read with ``tokenizers``."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.text.tokenizer_config import AddedToken
from edgelm.text.vocabulary import SPACE

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

logger = logging.getLogger("edgelm")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DECODERS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that represent bytes in byte-level BPE (OpenAI's GPT-2 encoder.py).

    Printable Latin-1 represents itself; the other bytes take U+0100 and up, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


class TokenizersVocabulary:
    """A ``tokenizers.Tokenizer``: byte-level BPE, or sentencepiece's pieces with byte fallback."""

    eos_id: int | None = None  # tokenizer.json has neither; the accompanying configs do
    pad_id: int | None = None
    added: Sequence[AddedToken] = ()

    def __init__(self, library: LibraryTokenizer) -> None:
        self._library = library
        self._lock = (
            threading.Lock()
        )  # encode_special_tokens is a setting of the object, not of a call
        self._read_decoder()
        self._read_tokens()
        self._read_affixes()

    @classmethod
    def from_file(cls, path: Path) -> TokenizersVocabulary:
        """Read a ``tokenizer.json``; a damaged one raises ModelFileError."""
        from tokenizers import Tokenizer as LibraryTokenizer

        try:
            library = LibraryTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            raise ModelFileError(
                f"{path} is not a readable tokenizer ({error}). Fetch the file again."
            ) from error
        library.no_truncation()
        library.no_padding()
        return cls(library)

    def _read_decoder(self) -> None:
        decoder = self._library.decoder
        spec: dict[str, Any] = {"type": "none"}
        if decoder is not None:
            spec = json.loads(decoder.__getstate__())
        steps = spec["decoders"] if spec["type"] == "Sequence" else [spec]
        for step in steps:
            if step["type"] not in _DECODERS:
                raise UnsupportedModelError(
                    f"The tokenizer's decoder is {step['type']!r}; supported are "
                    f"{', '.join(sorted(_DECODERS))}. Use a checkpoint of a supported family."
                )
        kinds: dict[str, dict[str, Any]] = {step["type"]: step for step in steps}
        self._alphabet = byte_alphabet() if "ByteLevel" in kinds else None
        self._byte_fallback = "ByteFallback" in kinds
        strip = kinds.get("Strip", {"start": 0})["start"] > 0
        metaspace = kinds.get("Metaspace", {"prepend_scheme": "never"})["prepend_scheme"] != "never"
        self.strips_first_space = strip or metaspace

    def _read_tokens(self) -> None:
        added = self._library.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self.cut = {token.content: token.special for token in added.values()}
        self._cuts_normalized = any(token.normalized for token in added.values())
        self.size = max(self._library.get_vocab_size(True), max(added, default=-1) + 1)

    def _read_affixes(self) -> None:
        """Ids that the post-processor adds around a text, found by probing it; BOS comes first."""
        bare = self._library.encode("a", add_special_tokens=False).ids
        full = self._library.encode("a", add_special_tokens=True).ids
        starts = range(len(full) - len(bare) + 1)
        start = next((s for s in starts if full[s : s + len(bare)] == bare), 0)
        self.prefix = tuple(full[:start])
        self.bos_id: int | None = next(iter(self.prefix), None)
        self.suffix = tuple(full[start + len(bare) :])

    def add(self, tokens: Sequence[AddedToken]) -> None:
        """Add tokens that the file lacks, each with the next free id, as transformers does."""
        from tokenizers import AddedToken as LibraryToken

        known = {token.content for token in self._library.get_added_tokens_decoder().values()}
        new = [token for token in tokens if token.name not in known]
        self._library.add_tokens(
            [
                LibraryToken(
                    token.name,
                    special=token.special,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    single_word=token.single_word,
                    normalized=token.normalized,
                )
                for token in new
            ]
        )
        self._read_tokens()
        moved = [t.name for t in new if t.id is not None and self.id_of(t.name) != t.id]
        if moved:
            logger.warning(
                "The tokenizer's files give ids to tokens (%s) that do not follow those of "
                "tokenizer.json: they get the next free ones, as in transformers.",
                ", ".join(moved[:5]),
            )

    def mark_special(self, names: Sequence[str]) -> None:
        """Mark these tokens, if they exist, as special: configs name some that files do not."""
        known = [n for n in names if (i := self.id_of(n)) is not None and i not in self._special]
        if known:
            self._library.add_special_tokens(known)
            self._read_tokens()

    def encode(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        with self._lock, self._removing(mark if mark and mark in text else ""):
            self._library.encode_special_tokens = not parse_special
            return list(self._library.encode(text, add_special_tokens=False).ids)

    @contextmanager
    def _removing(self, mark: str) -> Iterator[None]:
        """Take a character out behind the place where tokens are cut.

        That is the raw text, if no token is looked for in the normalized text. Else the mark also
        parts the text where it stood.
        """
        from tokenizers import normalizers, pre_tokenizers

        library = self._library
        normalizer, splitter = library.normalizer, library.pre_tokenizer
        try:
            if mark and self._cuts_normalized:
                split = pre_tokenizers.Split(mark, "removed")
                library.pre_tokenizer = pre_tokenizers.Sequence([split, *_some(splitter)])
            elif mark:
                remove = normalizers.Replace(mark, "")
                library.normalizer = normalizers.Sequence([remove, *_some(normalizer)])
            yield
        finally:
            if mark:
                library.normalizer, library.pre_tokenizer = normalizer, splitter

    def id_of(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def name_of(self, token_id: int) -> str:
        return self._library.id_to_token(token_id) or ""

    def bytes_of(self, token_id: int) -> bytes:
        name = self.name_of(token_id)
        if self._alphabet is not None:
            if all(char in self._alphabet for char in name):
                return bytes(self._alphabet[char] for char in name)
            return name.encode()  # added tokens are written as they are
        if self._byte_fallback and (byte := _BYTE_PIECE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return name.replace(SPACE, " ").encode()

    def save(self, folder: Path) -> None:
        self._library.save(str(folder / "tokenizer.json"))

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


def _some(step: Any) -> list[Any]:
    return [] if step is None else [step]
