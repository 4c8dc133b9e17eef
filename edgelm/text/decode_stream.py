"""DecodeStream: ids to text, token by token, in whole characters."""

from __future__ import annotations

import codecs

from edgelm.errors import UsageError
from edgelm.text.vocabulary import SPACE, Vocabulary


class DecodeStream:
    """Streaming decoder: emits whole UTF-8 characters; the total output equals ``decode``."""

    def __init__(self, vocabulary: Vocabulary, skip_special: bool, continues: bool) -> None:
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._strip = vocabulary.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add an id and return the text it completes, '' while a character is incomplete.

        An id beyond the vocabulary has no text (models pad their embeddings); a negative id
        raises UsageError.
        """
        if token_id < 0:
            raise UsageError(f"Token id {token_id} is negative; ids start at 0.")
        if token_id >= self._vocabulary.size:
            return ""
        if self._skip_special and self._vocabulary.is_special(token_id):
            return ""
        data = self._vocabulary.bytes_of(token_id)
        if self._strip and self._vocabulary.name_of(token_id).startswith(SPACE):
            data = data.removeprefix(b" ")
        self._strip = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """The remaining text: U+FFFD if the ids ended inside a character, else ''."""
        return self._utf8.decode(b"", final=True)
