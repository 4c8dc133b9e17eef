"""Tokenizer: text to token ids, and ids to text, whole or token by token.

``load_tokenizer`` also reads from a model's files what generation needs: the ids that begin and
end a text, the chat template, and whether BOS is added.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from edgelm import values
from edgelm.errors import UsageError
from edgelm.text.decode_stream import DecodeStream
from edgelm.text.special_tokens import SpecialTokens, from_folder, from_metadata
from edgelm.text.vocabulary import Vocabulary

logger = logging.getLogger("edgelm")

# Texts that a following text hardly joins; see ``Tokenizer.encode_later``.
_BEFORE = ("\n", ".", "0")

# Tokens that end a turn; they stop generation if the model's chat template writes them.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|eot|>",
)


class Tokenizer:
    """Encodes text to ids and decodes ids to text, with whichever library the files need."""

    def __init__(self, vocabulary: Vocabulary, special: SpecialTokens) -> None:
        self._vocabulary = vocabulary
        self._special = special
        self.vocab_size = vocabulary.size
        self.bos_id = special.bos_id
        self.eos_id = special.eos_id
        self.eos_ids = special.eos_ids | _end_of_turn_ids(vocabulary, special.chat_template)
        self.pad_id = special.pad_id
        self.chat_template = special.chat_template
        self.add_bos = special.bos_id is not None and special.bos_id in special.prefix
        self.add_eos = special.eos_id is not None and special.eos_id in special.suffix

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        mark: str = "",
    ) -> list[int]:
        """Token ids of a text that may go on: nothing is put after it.

        add_special adds BOS (and whatever else the model's files put before a text), but never a
        second BOS. parse_special recognises special tokens written in the text, as rendered chat
        templates require; without it they are plain text, so that a user cannot forge a turn. A
        special token with mark, a character, inside it is plain text too; the mark is taken out.
        """
        if not isinstance(text, str):
            raise UsageError(f"A text must be a str, not {type(text).__name__}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text holds half a surrogate pair at position {error.start}, which no "
                "tokenizer can read. Decode the input as UTF-8 first."
            ) from error
        ids = self._vocabulary.encode(text, parse_special, mark)
        prefix = list(self._special.prefix)
        if not add_special or ids[: len(prefix)] == prefix:
            return ids
        return prefix + ids

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text that ends here: also with EOS, if the model's files put it there."""
        return [*self.encode(text), *self._special.suffix]

    def encode_later(self, text: str) -> list[int]:
        """Token ids of a text that goes on where another ended: without BOS or a first space."""
        for before in _BEFORE:
            first = self.encode(before, add_special=False)
            both = self.encode(before + text, add_special=False)
            if both[: len(first)] == first:
                return both[len(first) :]
        return self.encode(text, add_special=False)

    @overload
    def decode(
        self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False
    ) -> str: ...

    @overload
    def decode(
        self, ids: Sequence[Sequence[int]], *, skip_special: bool = True, continues: bool = False
    ) -> list[str]: ...

    def decode(
        self, ids: Iterable[Any], *, skip_special: bool = True, continues: bool = False
    ) -> str | list[str]:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD. A list of rows gives a list.

        If the encoder adds a space before a text, it is removed, unless the ids continue an
        earlier text. Spaces before punctuation stay: ``clean_up_tokenization_spaces`` applies to
        WordPiece, and transformers ignores it too.
        """
        try:
            ids = list(ids if isinstance(ids, Iterator) else values.items(ids))
            rows = bool(ids) and isinstance(ids[0], Sequence)
            ids = list(map(values.token_ids if rows else values.whole, ids))
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(
                f"decode() got {values.shown(ids)}; allowed: token ids (a list, a tuple or a "
                "tensor of whole numbers), or a list of those."
            ) from None
        if rows:
            return [self.decode(row, skip_special=skip_special, continues=continues) for row in ids]
        stream = self.stream(skip_special=skip_special, continues=continues)
        return "".join(map(stream.push, ids)) + stream.finish()

    def stream(self, *, skip_special: bool = True, continues: bool = False) -> DecodeStream:
        """Return a decoder that takes ids one by one; see ``decode`` for the arguments."""
        return DecodeStream(self._vocabulary, skip_special, continues)

    def spans(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]] | None:
        """Character range [start, stop) in the text of each of its ids (without BOS).

        A character of several ids belongs to all of them. Whitespace may have been added,
        collapsed or replaced. None if the ids differ from the text in any other way: the tokenizer
        normalized it, or has no token for a part.
        """
        owners = [index for index, char in enumerate(text) for _ in char.encode()] + [len(text)]
        data, at, found = text.encode(), 0, []
        for token_id in ids:
            piece = self._vocabulary.bytes_of(token_id)
            if not data.startswith(piece, at):
                piece = piece.lstrip()
                while data[at : at + 1].isspace():
                    at += 1
            if not data.startswith(piece, at):
                return None
            stop = owners[at + len(piece) - 1] + 1 if piece else owners[at]
            found.append((owners[at], stop))
            at += len(piece)
        return None if data[at:].strip() else found

    def save(self, folder: Path) -> None:
        """Write it as files that ``load_tokenizer`` and transformers read."""
        self._vocabulary.save(folder)
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        told: dict[str, Any] = {
            f"{key}_token": self.token_of(i) for key, i in ids.items() if i is not None
        }
        told |= {"add_bos_token": self.add_bos, "add_eos_token": self.add_eos}
        if self._vocabulary.added:
            told["added_tokens_decoder"] = {
                str(token.id): {"content": token.name, **token.flags}
                for token in self._vocabulary.added
            }
        if self.chat_template is not None:
            told["chat_template"] = self.chat_template
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def token_of(self, token_id: int | None) -> str | None:
        """Spelling of the token in the vocabulary (chat templates need BOS and EOS like this)."""
        return None if token_id is None else self._vocabulary.name_of(token_id)

    @property
    def cut_tokens(self) -> Mapping[str, bool]:
        """Texts of the tokens that are cut out before anything else; True for special ones."""
        return self._vocabulary.cut

    def is_special(self, token_id: int) -> bool:
        """True if the token is a control token rather than text."""
        return self._vocabulary.is_special(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        """UTF-8 bytes of the token (possibly only part of a character)."""
        return self._vocabulary.bytes_of(token_id)


def load_tokenizer(
    path: Path, metadata: Mapping[str, Any] | None = None, default_template: str | None = None
) -> Tokenizer:
    """Load a model's tokenizer from a folder in Hugging Face layout or a GGUF file's metadata.

    In a folder ``tokenizer.json`` takes precedence over ``tokenizer.model``. default_template: the
    chat template if the files have none. Raises ModelFileError if there is no tokenizer or a file
    is damaged, UnsupportedModelError for a tokenizer of an unknown kind.
    """
    read = from_folder(Path(path)) if metadata is None else from_metadata(metadata)
    vocabulary, special = read
    template = special.chat_template or default_template
    return Tokenizer(vocabulary, replace(special, chat_template=template))


def _end_of_turn_ids(vocabulary: Vocabulary, template: str | None) -> frozenset[int]:
    named = (vocabulary.id_of(token) for token in END_OF_TURN if template and token in template)
    return frozenset(i for i in named if i is not None and vocabulary.is_special(i))
