"""Vocabulary of a ``tokenizer.json``, read with ``tokenizers``."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.errors import EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.text.limited_process import LimitedProcess, Limits
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


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises, bare Exceptions and panics, into a ModelFileError."""
    try:
        yield
    except EdgeLMError:
        raise
    except BaseException as error:
        # pyo3's PanicException is no Exception, and no module has it.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFileError(
            f"{what} ({error}). Fetch the tokenizer's files again; do not trust them if that does "
            "not help."
        ) from error


class TokenizersVocabulary:
    """A ``tokenizers.Tokenizer``: byte-level BPE, or sentencepiece's pieces with byte fallback."""

    eos_id: int | None = None  # tokenizer.json has neither; the accompanying configs do
    pad_id: int | None = None
    added: Sequence[AddedToken] = ()

    def __init__(
        self, library: LibraryTokenizer, withheld: Mapping[str, Any] | None = None
    ) -> None:
        """withheld: parts of the tokenizer.json that this process must not run and the library
        therefore lacks; with them, texts are encoded in a process with limits."""
        self._library = library
        self._withheld = withheld or {}
        self._process = LimitedProcess("tokenizer_worker.py", ["tokenizers"], self._loading)
        self._lock = (
            threading.Lock()
        )  # encode_special_tokens is a setting of the object, not of a call
        self._read_decoder()
        self._read_tokens()
        self._read_affixes()

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
        self._process.close()  # the next one learns of what was added
        added = self._library.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self.cut = {token.content: token.special for token in added.values()}
        self._cuts_normalized = any(token.normalized for token in added.values())
        self.size = max(self._library.get_vocab_size(True), max(added, default=-1) + 1)

    def _read_affixes(self) -> None:
        """Ids that the post-processor adds around a text, found by probing it; BOS comes first."""
        bare = self._ids("a", affixes=False, parse_special=True)
        full = self._ids("a", affixes=True, parse_special=True)
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
        return self._ids(text, affixes=False, parse_special=parse_special, mark=mark)

    def _ids(self, text: str, affixes: bool, parse_special: bool, mark: str = "") -> list[int]:
        """Ids of the text; affixes: with those that the post-processor adds."""
        from edgelm.text.tokenizer_worker import encode

        asked: dict[str, Any] = {
            "text": text,
            "affixes": affixes,
            "parse_special": parse_special,
            "mark": mark if mark and mark in text else "",
            "cuts_normalized": self._cuts_normalized,
        }
        with library_errors(f"The tokenizer cannot encode a text of {len(text)} characters"):
            if self._withheld:
                limits = Limits(3 + len(text) / 50_000, 256 * 2**20 + 1024 * len(text))
                return list(self._process.ask(asked, limits))
            with self._lock:
                return encode(self._library, **asked)

    def _loading(self) -> tuple[Any, Limits]:
        """The question that makes the other process load the whole tokenizer."""
        text = self._whole()
        limits = Limits(5 + len(text) / 2e6, 256 * 2**20 + 48 * len(text))
        return {"tokenizer": text}, limits

    def _whole(self) -> str:
        """The tokenizer.json, with what was added to it and what is withheld from the library."""
        text = self._library.to_str(pretty=True)
        return json.dumps(json.loads(text) | self._withheld) if self._withheld else text

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
        (folder / "tokenizer.json").write_text(self._whole(), encoding="utf-8")

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special
