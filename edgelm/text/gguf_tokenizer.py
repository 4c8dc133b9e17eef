"""Tokenizer of a GGUF file: converts its metadata keys to a Vocabulary.

``tokenizer.ggml.model`` is ``llama`` (sentencepiece's BPE with scores), ``t5`` (its unigram) or
``gpt2`` (byte-level BPE with merges). The first two are written as sentencepiece's ModelProto
(sentencepiece_model.proto), the last is built with ``tokenizers``; these libraries then do the
work.
"""

from __future__ import annotations

import logging
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.text.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from edgelm.text.tokenizer_config import AddedToken, token_ids
from edgelm.text.tokenizers_vocabulary import TokenizersVocabulary, library_errors
from edgelm.text.vocabulary import SPACE, Vocabulary

logger = logging.getLogger("edgelm")

SENTENCEPIECE = {"llama": 2, "t5": 1}  # tokenizer.ggml.model -> sentencepiece's ModelType
# Token types have the same numbers in GGUF and in sentencepiece.
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"  # GPT-2's encoder.py
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"  # of BLOOM's tokenizer.json


@dataclass(frozen=True)
class PreTokenizer:
    """Splitting of a text before merges apply: each pattern splits the previous one's result."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole needs no merges
    add_bos: bool = False  # if the metadata does not say


_LLAMA_BPE = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)

# tokenizer.ggml.pre -> the split, as llama.cpp's llama-vocab.cpp assigns them.
PRE_TOKENIZERS = {
    "bloom": PreTokenizer((_BLOOM,)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "llama-bpe": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
}


def read_vocabulary(metadata: Mapping[str, Any]) -> tuple[Vocabulary, bool]:
    """Build the vocabulary that the metadata describes.

    Returns it and whether a text starts with BOS if ``add_bos_token`` is absent.
    Raises ModelFileError for missing or contradictory keys, UnsupportedModelError for a kind of
    tokenizer or a pre-tokenizer that is not in the tables.
    """
    kind = _required(metadata, "tokenizer.ggml.model")
    if kind in SENTENCEPIECE:
        return _sentencepiece(metadata, SENTENCEPIECE[kind]), True
    if kind == "gpt2":
        cut = _pre_tokenizer(metadata)
        return _byte_level_bpe(metadata, cut), cut.add_bos
    raise UnsupportedModelError(
        f"tokenizer.ggml.model is {kind!r}; supported are 'llama', 't5' and 'gpt2'. "
        "Use the model's folder in Hugging Face layout instead."
    )


def _sentencepiece(metadata: Mapping[str, Any], model_type: int) -> Vocabulary:
    if metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise UnsupportedModelError(
            "tokenizer.ggml.precompiled_charsmap normalizes texts, which is not supported. "
            "Use the model's folder in Hugging Face layout instead."
        )
    tokens = _tokens(metadata)
    types = _token_types(metadata, tokens)
    # llama.cpp cuts these out of the raw text, whose spaces stand in some files as they are.
    added = [
        AddedToken(token.replace(SPACE, " "), index, special=False)
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == USER_DEFINED
    ]
    tokens, types = _with_all_bytes(tokens, types)
    model = encode_model_proto(
        tokens,
        _scores(metadata, len(tokens)),
        types,
        model_type=model_type,
        add_space_prefix=flag(metadata, "add_space_prefix", True),
        remove_extra_whitespaces=flag(metadata, "remove_extra_whitespaces", False),
    )
    library = load_sentencepiece(model, "The GGUF file's metadata")
    return SentencePieceVocabulary(library, added)


def _with_all_bytes(tokens: Sequence[str], types: Sequence[int]) -> tuple[list[str], list[int]]:
    """Tokens of one character in place of a byte that the file has no token for, as that byte.

    sentencepiece takes all 256 or none; llama.cpp falls back to the character's own token.
    """
    found = {token for token, kind in zip(tokens, types, strict=True) if kind == BYTE}
    lacking = {chr(byte): f"<0x{byte:02X}>" for byte in range(128)} if found else {}
    lacking = {char: name for char, name in lacking.items() if name not in found}
    names = [lacking.get(token, token) for token in tokens]
    kinds = [BYTE if token in lacking else kind for token, kind in zip(tokens, types, strict=True)]
    return names, kinds


def encode_model_proto(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    model_type: int,
    add_space_prefix: bool,
    remove_extra_whitespaces: bool,
) -> bytes:
    """A serialized sentencepiece ModelProto; field numbers as in the library's .proto.

    tokens, scores, types: one entry per id. model_type: 1 unigram, 2 BPE.
    """
    out = bytearray()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        piece = _field_bytes(1, token.encode()) + b"\x15" + struct.pack("<f", score)
        out += _field_bytes(1, piece + _field_int(3, kind))
    trainer = _field_int(3, model_type) + _field_int(35, BYTE in types)  # byte_fallback
    normalizer = (
        _field_bytes(1, b"identity")
        + _field_int(3, add_space_prefix)
        + _field_int(4, remove_extra_whitespaces)
    )
    return bytes(out + _field_bytes(2, trainer) + _field_bytes(3, normalizer))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _field_int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _field_bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        logger.warning(
            "The GGUF file names no pre-tokenizer (tokenizer.ggml.pre): 'default' is used, "
            "and token ids may differ from those the model was trained on."
        )
        name = "default"
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre is {name!r}; supported are {', '.join(sorted(PRE_TOKENIZERS))}. "
            "Use the model's folder in Hugging Face layout instead."
        )
    return PRE_TOKENIZERS[name]


def _byte_level_bpe(metadata: Mapping[str, Any], cut: PreTokenizer) -> Vocabulary:
    from tokenizers import AddedToken as LibraryToken
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as LibraryTokenizer

    tokens = _tokens(metadata)
    types = _token_types(metadata, tokens)
    given = _strings(metadata, "tokenizer.ggml.merges")
    pairs = (merge.partition(" ") for merge in given if merge)  # llama.cpp too passes empty ones
    merges = [(left, right) for left, _, right in pairs]
    with library_errors("tokenizer.ggml.merges does not fit tokenizer.ggml.tokens"):
        model = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=cut.ignore_merges,
        )
    library = LibraryTokenizer(model)
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_tokens(
        [
            LibraryToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return TokenizersVocabulary(library)


def flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """The truth value of a key after "tokenizer.ggml."; some writers store it as a number."""
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, int) or value not in (0, 1):
        raise ModelFileError(
            f"tokenizer.ggml.{name} is {value!r:.80}; expected true or false. Fetch the GGUF file "
            "again."
        )
    return bool(value)


def _required(metadata: Mapping[str, Any], key: str) -> Any:
    if key not in metadata:
        raise ModelFileError(
            f"The GGUF file has no {key}, so its text cannot be split into tokens. "
            "Use a file with a tokenizer inside."
        )
    return metadata[key]


def _is_array(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = _required(metadata, key)
    if not _is_array(values) or not all(isinstance(value, str) for value in values):
        raise ModelFileError(f"{key} must be an array of strings. Fetch the GGUF file again.")
    return list(values)


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """The names; those that are empty get one, as in llama.cpp."""
    named = _strings(metadata, "tokenizer.ggml.tokens")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(named)]
    if len(set(tokens)) != len(tokens):
        [(repeated, _)] = Counter(tokens).most_common(1)
        raise ModelFileError(
            f"tokenizer.ggml.tokens holds {repeated!r} twice; each token may occur once. "
            "Fetch the GGUF file again."
        )
    return tokens


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    key = "tokenizer.ggml.scores"
    if key in metadata:
        return _per_token(metadata, key, count)
    logger.warning("The GGUF file has no %s: all tokens count alike, as in llama.cpp.", key)
    return [0.0] * count


def _token_types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return _guessed_types(metadata, tokens)
    types = [int(kind) for kind in _per_token(metadata, key, len(tokens))]
    if not all(NORMAL <= kind <= BYTE for kind in types):
        raise ModelFileError(
            f"{key} must hold numbers from {NORMAL} to {BYTE}, not {min(types)} to {max(types)}. "
            "Fetch the GGUF file again."
        )
    return [
        UNUSED if token.startswith("[EMPTY_") and kind == USER_DEFINED else kind
        for token, kind in zip(tokens, types, strict=True)
    ]


def _guessed_types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """Of a file that does not tell them: bytes by their names, special tokens by the ids."""
    logger.warning(
        "The GGUF file has no tokenizer.ggml.token_type: special tokens are known by their ids."
    )

    def ids(*names: str) -> set[int]:
        keys = [f"tokenizer.ggml.{name}_token_id" for name in names]
        return {token for key in keys for token in token_ids(metadata.get(key), key)}

    control, unknown = ids("bos", "eos", "eot", "eom", "padding"), ids("unknown")
    if not unknown:
        unknown = {tokens.index("<unk>") if "<unk>" in tokens else 0}
    types = [BYTE if _BYTE_NAME.fullmatch(token) else NORMAL for token in tokens]
    return [
        CONTROL if index in control else UNKNOWN if index in unknown else kind
        for index, kind in enumerate(types)
    ]


def _per_token(metadata: Mapping[str, Any], key: str, count: int) -> list[float]:
    values = _required(metadata, key)
    if not _is_array(values) or len(values) != count:
        raise ModelFileError(
            f"{key} must hold one number for each of the {count} tokens. Fetch the GGUF file again."
        )
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{key} must hold numbers. Fetch the GGUF file again.") from error
