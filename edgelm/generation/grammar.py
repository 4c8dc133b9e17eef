"""Constrained generation: grammars that an answer must follow, enforced with llguidance.

A JSON schema becomes a grammar with fixed whitespace (``", "`` and ``": "``, as in Python's json),
because a model that is allowed unlimited whitespace sometimes never stops writing it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edgelm.errors import UsageError
from edgelm.generation.json_schema import MAX_CHARACTERS, schema_text
from edgelm.generation.processors import NEVER, SoFar
from edgelm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
MAX_RULES = 500  # llguidance follows them by recursion, which ends the process at some 2,000
_RULE = re.compile(r"^[ \t]*[?!]?[A-Za-z_]\w*[^:\n]*:", re.MULTILINE)
_TOKENIZERS: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()


class Constraint:
    """A compiled grammar for one tokenizer; every answer starts its own Match.

    Raises:
        UsageError: the grammar or schema is invalid; the message includes the library's error.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        from llguidance import LLMatcher

        self.end_ids = end_ids
        with _library_errors():
            self._start = LLMatcher(_library_tokenizer(tokenizer), grammar, log_level=0)
            if self._start.is_error():
                raise ValueError(self._start.get_error())
            mask, end = self._start.compute_bitmask(), tokenizer.vocab_size  # see _Tokens
        allowed = sum(map(int.bit_count, mask)) - (mask[end >> 3] >> (end & 7) & 1)
        if not allowed and not self._start.is_accepting():
            raise UsageError("The grammar or schema allows no answer: nothing can begin one.")

    @classmethod
    def parse(
        cls, schema: Any, grammar: str | None, tokenizer: Tokenizer, end_ids: frozenset[int]
    ) -> Constraint:
        """Compile a JSON schema (see ``schema_text``) or a Lark grammar, one of them."""
        from llguidance import LLMatcher

        if schema is not None and grammar is not None:
            raise UsageError("Both schema and grammar are given; give one of them.")
        if grammar is not None:
            _require_small(grammar)
            with _library_errors():
                compiled = LLMatcher.grammar_from_lark(grammar)
            return cls(compiled, tokenizer, end_ids)
        text = schema_text(schema)
        with _library_errors():
            compiled = LLMatcher.grammar_from_json_schema(text, overrides=_JSON_STYLE)
        return cls(compiled, tokenizer, end_ids)

    def start(self) -> Match:
        """Start a match at the beginning of an answer."""
        return Match(self._start.deep_copy(), self.end_ids)


@contextmanager
def _library_errors() -> Iterator[None]:
    """What the library raises as a UsageError, a panic of its Rust code included."""
    try:
        yield
    except BaseException as error:
        # A panic is no Exception, and its class cannot be imported.
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"The grammar or schema is invalid or not supported: {reason:.300}"
        ) from error


def _require_small(grammar: str) -> None:
    """Raise UsageError for a grammar with more rules than the library's recursion bears."""
    rules = len(_RULE.findall(grammar))
    if len(grammar) > MAX_CHARACTERS or rules > MAX_RULES:
        raise UsageError(
            f"The grammar has {len(grammar)} characters and {rules} rules; allowed: "
            f"{MAX_CHARACTERS} and {MAX_RULES}."
        )


class Match:
    """Logits processor that tracks one answer's state in its grammar."""

    def __init__(self, matcher: LLMatcher, end_ids: frozenset[int]) -> None:
        self._matcher, self._end_ids = matcher, end_ids

    def __call__(self, logits: Tensor, ids: SoFar) -> None:
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8)
        allowed = (bits[:, None] >> shifts & 1).bool().flatten()[: len(logits)]
        wide = allowed.new_zeros(len(logits))  # embeddings may be padded beyond the tokenizer
        wide[: len(allowed)] = allowed
        wide[[i for i in self._end_ids if i < len(wide)]] = self._matcher.is_accepting()
        logits.masked_fill_(~wide.to(logits.device), NEVER)

    def accept(self, token: int) -> bool:
        """Advance by a chosen token; True if only an end token can follow."""
        if token not in self._end_ids and not self._matcher.consume_token(token):
            raise UsageError(f"The grammar failed: {self._matcher.get_error().splitlines()[0]}")
        return self._matcher.is_stopped()


class _Tokens:
    """A vocabulary in llguidance's interface; the last id is an end token that no model has."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        self.special_token_ids = [i for i in range(size) if tokenizer.is_special(i)] + [size]
        special = set(self.special_token_ids)
        self.tokens = [
            b"\xff<|%d|>" % i if i in special else tokenizer.bytes_of(i) for i in range(size + 1)
        ]
        self.eos_token_id = size
        self._tokenizer = tokenizer
        self._ids = {own: i for i, own in enumerate(self.tokens) if i not in special and own}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str) -> list[int]:
        """Ids that spell exactly the text: the tokenizer's, unless it adds a space in front."""
        data = text.encode()
        ids = self._tokenizer.encode(text, add_special=False)
        return ids if b"".join(self.tokens[i] for i in ids) == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """Take the longest token at each position; stop at a byte without a token."""
        ids: list[int] = []
        at = 0
        while at < len(data):
            lengths = range(min(self._longest, len(data) - at), 0, -1)
            length = next((n for n in lengths if data[at : at + n] in self._ids), None)
            if length is None:
                break
            ids.append(self._ids[data[at : at + length]])
            at += length
        return ids


def _library_tokenizer(tokenizer: Tokenizer) -> LLTokenizer:
    """llguidance's tokenizer for a vocabulary, cached: a large one takes up to a second."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if tokenizer not in _TOKENIZERS:
        _TOKENIZERS[tokenizer] = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer)))
    return _TOKENIZERS[tokenizer]
