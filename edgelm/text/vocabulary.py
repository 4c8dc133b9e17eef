"""Vocabularies of tokenizer files behind one interface; two libraries do the splitting.

``tokenizers`` reads ``tokenizer.json``, ``sentencepiece`` reads ``tokenizer.model``. Both turn text
into ids here and give the bytes of an id; ``tokenizer.DecodeStream`` joins those bytes back into
text, so that the text is the same whole and token by token.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgelm.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as LibraryTokenizer

SPACE = "\u2581"  # represents a space inside sentencepiece's pieces
# normalizer_spec.add_dummy_prefix = false, as protobuf: what follows a message is merged into it.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DECODERS = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class Vocabulary(Protocol):
    """Token ids of one tokenizer: 0 <= id < size."""

    size: int
    strips_first_space: bool  # the encoder adds a space before a text; decoding removes it
    prefix: tuple[int, ...]  # ids that the file itself adds before a text
    suffix: tuple[int, ...]  # ... and after it
    bos_id: int | None  # None if the file has none
    eos_id: int | None
    pad_id: int | None

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of the text alone; special tokens written in it count only with parse_special."""

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, None if there is no such token."""

    def name_of(self, token_id: int) -> str:
        """Spelling of the token in the vocabulary, '' for an id without a token."""

    def bytes_of(self, token_id: int) -> bytes:
        """UTF-8 bytes of the token (possibly only part of a character)."""

    def save(self, folder: Path) -> None:
        """Write it as the file that its library reads: tokenizer.json or tokenizer.model."""

    def is_special(self, token_id: int) -> bool:
        """True if the token is a control token rather than text."""


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

    def mark_special(self, names: list[str]) -> None:
        """Mark these tokens, if they exist, as special: configs name some that files do not."""
        known = [n for n in names if (i := self.id_of(n)) is not None and i not in self._special]
        if known:
            self._library.add_special_tokens(known)
            self._read_tokens()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:
            self._library.encode_special_tokens = not parse_special
            return list(self._library.encode(text, add_special_tokens=False).ids)

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


class SentencePieceVocabulary:
    """A sentencepiece model, and the tokens that a folder's configs add after its pieces."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()

    def __init__(
        self,
        library: SentencePieceProcessor,
        added: Mapping[str, tuple[int, bool]] | None = None,
        scheme: str = "always",
    ) -> None:
        """added: name -> (id, special) of tokens that the model file does not have.

        scheme: the segments between special tokens that get the space the model file specifies,
        "always", "first" (only the text's beginning) or "never".
        """
        spaceless = library if scheme == "always" else _without_space(library)
        self._library = library = spaceless if scheme == "never" else library
        self._later = spaceless
        self._pieces = library.get_piece_size()
        self._added = {name: at for name, (at, _) in (added or {}).items() if at >= self._pieces}
        self._added_names = {at: name for name, at in self._added.items()}
        self.size = max(self._added_names, default=self._pieces - 1) + 1
        control = [i for i in range(self._pieces) if library.is_control(i)]
        self._special = {i for i, special in (added or {}).values() if special} | set(control)
        every = self._added | {library.id_to_piece(i): i for i in control}
        self._always = _alternatives({n for n, i in every.items() if i not in self._special})
        self._parsed = _alternatives(set(every))
        self.bos_id = _present(library.bos_id())
        self.eos_id = _present(library.eos_id())
        self.pad_id = _present(library.pad_id())
        self.prefix = (
            () if self.bos_id is None else (self.bos_id,)
        )  # such models are trained with BOS
        self.strips_first_space = self._adds_space()

    @classmethod
    def from_file(
        cls, path: Path, added: Mapping[str, tuple[int, bool]], scheme: str
    ) -> SentencePieceVocabulary:
        """Read a ``tokenizer.model``; a damaged one raises ModelFileError."""
        return cls(load_sentencepiece(path.read_bytes(), str(path)), added, scheme)

    def _adds_space(self) -> bool:
        """True if decoding drops the space of the first piece, determined by a trial."""
        for token_id in range(self._pieces):
            piece = self._library.id_to_piece(token_id)
            if len(piece) > 1 and piece[0] == SPACE and piece[1] != SPACE:
                return not self._library.decode([token_id]).startswith(" ")
        return False

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Encode each segment between special tokens as a separate text, as Meta's and llama.cpp's
        encoders do: each gets the space that the model adds before a text, unless the scheme
        says otherwise."""
        pattern = self._parsed if parse_special else self._always
        if pattern is None:
            return self._library.encode(text)
        ids: list[int] = []
        for part in pattern.split(text):  # plain text and matched tokens alternate
            if (token_id := self.id_of(part)) is not None and pattern.fullmatch(part):
                ids.append(token_id)
            elif part:
                ids += (self._later if ids else self._library).encode(part)
        return ids

    def id_of(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        token_id = self._library.piece_to_id(token)  # the unknown piece's id means "absent"
        return token_id if self._library.id_to_piece(token_id) == token else None

    def name_of(self, token_id: int) -> str:
        if token_id < self._pieces:
            return self._library.id_to_piece(token_id)
        return self._added_names.get(token_id, "")

    def bytes_of(self, token_id: int) -> bytes:
        name = self.name_of(token_id)
        if token_id >= self._pieces or self._library.is_control(token_id):
            return name.encode()
        if self._library.is_byte(token_id):
            return bytes([int(name[3:5], 16)])
        if self._library.is_unknown(token_id):
            return self._library.decode([token_id]).encode()
        return name.replace(SPACE, " ").encode()

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(self._library.serialized_model_proto())

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


def load_sentencepiece(model: bytes, origin: str) -> SentencePieceProcessor:
    """Load a processor from a serialized ModelProto; ``origin`` names the file in the error."""
    from sentencepiece import SentencePieceProcessor

    try:
        if not model:
            raise ValueError("it is empty")  # the library would take it as a model not yet loaded
        return SentencePieceProcessor(model_proto=model)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelFileError(
            f"{origin} has no readable sentencepiece model ({error}). Fetch the file again."
        ) from error


def _without_space(library: SentencePieceProcessor) -> SentencePieceProcessor:
    model = library.serialized_model_proto() + _NO_DUMMY_PREFIX
    return load_sentencepiece(model, "The tokenizer")


def _alternatives(names: set[str]) -> re.Pattern[str] | None:
    """Compile a pattern that splits a text at any of the names, the longest first."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None  # sentencepiece says -1 for a token it lacks
