"""Vocabulary of a sentencepiece model, and of the tokens that are cut out of a text before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import ModelFileError
from edgelm.plain_file import VOCABULARY_BYTES, read_small
from edgelm.text.tokenizer_config import AddedToken
from edgelm.text.vocabulary import SPACE

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# normalizer_spec.add_dummy_prefix = false, as protobuf: what follows a message is merged into it.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceVocabulary:
    """A sentencepiece model, and the tokens that a folder's configs add after its pieces."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()

    def __init__(
        self,
        library: SentencePieceProcessor,
        added: Sequence[AddedToken] = (),
        scheme: str = "always",
    ) -> None:
        """added: tokens that are cut out of a text before the library reads it, and that the model
        file may lack.

        scheme: the segments between special tokens that get the space the model file specifies,
        "always", "first" (only the text's beginning) or "never".
        """
        spaceless = library if scheme == "always" else _without_space(library)
        self._library = library = spaceless if scheme == "never" else library
        self._later = spaceless
        self._pieces = library.get_piece_size()
        self._read_tokens(added)
        self.bos_id = _present(library.bos_id())
        self.eos_id = _present(library.eos_id())
        self.pad_id = _present(library.pad_id())
        self.prefix = (
            () if self.bos_id is None else (self.bos_id,)
        )  # such models are trained with BOS
        self.strips_first_space = self._adds_space()

    @classmethod
    def from_file(
        cls, path: Path, added: Sequence[AddedToken], scheme: str
    ) -> SentencePieceVocabulary:
        """Read a ``tokenizer.model``; a damaged one raises ModelFileError."""
        content = read_small(path, VOCABULARY_BYTES)
        return cls(load_sentencepiece(content, str(path)), added, scheme)

    def _read_tokens(self, added: Sequence[AddedToken]) -> None:
        library, next_id = self._library, self._pieces
        self.added = []
        for token in added:
            if token.id is None and self._piece(token.name) is None:
                token, next_id = replace(token, id=next_id), next_id + 1
            own = token if token.id is not None else replace(token, id=self._piece(token.name))
            assert own.id is not None
            next_id = max(next_id, own.id + 1)
            self.added.append(own)
        # Names that are not those of the pieces: ids beyond them, and renamed placeholders.
        self._names = {
            token.id: token.name
            for token in self.added
            if token.id is not None
            and token.name not in (piece := self._piece_name(token.id), piece.replace(SPACE, " "))
        }
        self._ids = {name: at for at, name in self._names.items()}
        self.size = next_id
        control = [i for i in range(self._pieces) if library.is_control(i)]
        self._special = {t.id for t in self.added if t.special and t.id is not None} | set(control)
        self._own = {t.id for t in self.added if t.id is not None and t.id < self._pieces}
        told = {token.id for token in self.added}
        own_tokens = [AddedToken(library.id_to_piece(i), i) for i in control if i not in told]
        self._always = _Cutter([token for token in self.added if token.id not in self._special])
        self._parsed = _Cutter([*self.added, *own_tokens])
        self.cut = {t.name: t.id in self._special for t in (*self.added, *own_tokens)}

    def _adds_space(self) -> bool:
        """True if decoding drops the space of the first piece, determined by a trial."""
        for token_id in range(self._pieces):
            piece = self._library.id_to_piece(token_id)
            if len(piece) > 1 and piece[0] == SPACE and piece[1] != SPACE:
                return not self._library.decode([token_id]).startswith(" ")
        return False

    def encode(self, text: str, parse_special: bool, mark: str = "") -> list[int]:
        """Encode each segment between special tokens as a separate text, as Meta's and llama.cpp's
        encoders do: each gets the space that the model adds before a text, unless the scheme
        says otherwise."""
        ids: list[int] = []
        for part in (self._parsed if parse_special else self._always).parts(text):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                library = self._later if ids else self._library
                ids += self._without(mark, part, library)
        return ids

    def _without(self, mark: str, text: str, library: SentencePieceProcessor) -> list[int]:
        """Encode a text without the mark, which may break up tokens in it.

        The library finds those that its file calls user-defined by itself. Then the text keeps
        the mark, and its ids are taken out.
        """
        ids: list[int] = library.encode(text.replace(mark, "") if mark else text)
        if not mark or mark not in text or self._own.isdisjoint(ids):
            return ids
        pieces = [library.piece_to_id(f"<0x{byte:02X}>") for byte in mark.encode()]
        unknown = [library.unk_id()]
        gap = unknown if unknown[0] in pieces else pieces
        return _left_out(library.encode(text), gap)

    def id_of(self, token: str) -> int | None:
        return self._ids[token] if token in self._ids else self._piece(token)

    def _piece(self, name: str) -> int | None:
        """The id of the model file's own token."""
        token_id = self._library.piece_to_id(name)  # the unknown piece's id means "absent"
        return token_id if self._library.id_to_piece(token_id) == name else None

    def _piece_name(self, token_id: int) -> str:
        return self._library.id_to_piece(token_id) if token_id < self._pieces else ""

    def name_of(self, token_id: int) -> str:
        return self._names.get(token_id) or self._piece_name(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        name = self.name_of(token_id)
        if token_id in self._names or token_id >= self._pieces:
            return name.encode()
        if self._library.is_control(token_id):
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


class _Cutter:
    """Cuts tokens out of a text, the longest first where several begin at one place."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        named = sorted((t for t in tokens if t.name), key=lambda t: len(t.name), reverse=True)
        self._ids = [token.id for token in named]
        self._pattern = re.compile("|".join(map(_pattern, named))) if named else None

    def parts(self, text: str) -> Iterator[str | int]:
        """The text's pieces in order: ids of tokens, and what stands between them."""
        at = 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            yield text[at : found.start()]
            token_id = self._ids[(found.lastindex or 1) - 1]
            assert token_id is not None
            yield token_id
            at = found.end()
        yield text[at:]


def _pattern(token: AddedToken) -> str:
    """One group for a token; what belongs to it stands outside."""
    name = re.escape(token.name)
    if token.single_word:
        name = rf"(?<!\w){name}(?!\w)"
    left, right = (r"\s*" if strip else "" for strip in (token.lstrip, token.rstrip))
    return f"{left}({name}){right}"


def _left_out(ids: list[int], gap: list[int]) -> list[int]:
    """The ids without each place where those of ``gap`` stand in a row."""
    left, at = [], 0
    while at < len(ids):
        if ids[at : at + len(gap)] == gap:
            at += len(gap)
        else:
            left.append(ids[at])
            at += 1
    return left


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None  # sentencepiece says -1 for a token it lacks
