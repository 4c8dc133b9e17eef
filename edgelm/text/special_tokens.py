"""SpecialTokens: what a model's files say of the tokens around its texts, and its vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError
from edgelm.plain_file import is_present
from edgelm.text.gguf_tokenizer import flag, read_vocabulary
from edgelm.text.sentencepiece_vocabulary import SentencePieceVocabulary
from edgelm.text.tokenizer_config import (
    added_tokens,
    chat_template,
    checked_template,
    folder_config,
    named_tokens,
    read_object,
    space_scheme,
    token_ids,
)
from edgelm.text.tokenizer_json import read_tokenizer_json
from edgelm.text.tokenizers_vocabulary import TokenizersVocabulary
from edgelm.text.vocabulary import Vocabulary

logger = logging.getLogger("edgelm")


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens that begin and end a model's texts, according to its files."""

    bos_id: int | None = None
    eos_id: int | None = None  # the tokenizer's EOS, which templates write
    eos_ids: frozenset[int] = frozenset()  # all ids that end a text
    pad_id: int | None = None
    prefix: tuple[int, ...] = ()  # ids put before a text ...
    suffix: tuple[int, ...] = ()  # ... and after it
    chat_template: str | None = None


def from_metadata(metadata: Mapping[str, Any]) -> tuple[Vocabulary, SpecialTokens]:
    """Of a GGUF file; errors as ``load_tokenizer`` has them."""
    vocabulary, bos_by_default = read_vocabulary(metadata)

    def token_id(key: str) -> int | None:
        found = token_ids(metadata.get(f"tokenizer.ggml.{key}_token_id"), f"tokenizer.ggml.{key}")
        if found and not 0 <= found[0] < vocabulary.size:
            logger.warning(
                "tokenizer.ggml.%s_token_id is %d, but the file holds %d tokens: it is not used.",
                key, found[0], vocabulary.size,
            )  # fmt: skip
            return None
        return found[0] if found else None

    bos, eos = token_id("bos"), token_id("eos")
    add_bos = flag(metadata, "add_bos_token", bos_by_default)
    add_eos = flag(metadata, "add_eos_token", False)
    ends = (eos, token_id("eot"), token_id("eom"))
    special = SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        eos_ids=frozenset(i for i in ends if i is not None),
        pad_id=token_id("padding"),
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=(eos,) if add_eos and eos is not None else (),
        chat_template=checked_template(
            metadata.get("tokenizer.chat_template"), "tokenizer.chat_template"
        ),
    )
    return vocabulary, special


def from_folder(folder: Path) -> tuple[Vocabulary, SpecialTokens]:
    """Of a folder in Hugging Face layout; errors as ``load_tokenizer`` has them."""
    config = folder_config(folder)
    named = named_tokens(config)
    vocabulary = _folder_vocabulary(folder, config, [*named.values()])
    _warn_of_missing(vocabulary, named)
    model = read_object(folder / "config.json")
    generation = read_object(folder / "generation_config.json")

    def token_id(key: str) -> int | None:
        by_name = vocabulary.id_of(named[key]) if key in named else None
        own: int | None = getattr(vocabulary, f"{key}_id")
        told = token_ids(model.get(f"{key}_token_id"), f"config.json's {key}_token_id")
        return next((i for i in (by_name, own, *told) if i is not None), None)

    bos, eos = token_id("bos"), token_id("eos")
    ends = [i for i in (eos,) if i is not None]
    for source, origin in ((model, "config.json"), (generation, "generation_config.json")):
        ends += token_ids(source.get("eos_token_id"), f"{origin}'s eos_token_id")
    prefix, suffix = vocabulary.prefix, vocabulary.suffix
    # The post-processor of a tokenizer.json stands above these flags, as in transformers.
    flags = {} if isinstance(vocabulary, TokenizersVocabulary) else config
    if bos is not None and "add_bos_token" in flags:
        prefix = (bos,) if flags["add_bos_token"] else tuple(i for i in prefix if i != bos)
    if eos is not None and "add_eos_token" in flags:
        suffix = (eos,) if flags["add_eos_token"] else tuple(i for i in suffix if i != eos)
    special = SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        eos_ids=frozenset(ends),
        pad_id=token_id("pad"),
        prefix=prefix,
        suffix=suffix,
        chat_template=chat_template(folder, config),
    )
    return vocabulary, special


def _folder_vocabulary(folder: Path, config: dict[str, Any], named: list[str]) -> Vocabulary:
    if is_present(folder / "tokenizer.json"):
        vocabulary = read_tokenizer_json(folder / "tokenizer.json")
        vocabulary.add(added_tokens(folder, config))
        vocabulary.mark_special(named)
        return vocabulary
    if is_present(folder / "tokenizer.model"):
        return SentencePieceVocabulary.from_file(
            folder / "tokenizer.model", added_tokens(folder, config), space_scheme(config)
        )
    raise ModelFileError(
        f"{folder} holds no tokenizer: tokenizer.json or tokenizer.model is needed. "
        "Copy it from the model's page into the folder."
    )


def _warn_of_missing(vocabulary: Vocabulary, named: Mapping[str, str]) -> None:
    missing = [f"{key} {name!r}" for key, name in named.items() if vocabulary.id_of(name) is None]
    if missing:
        logger.warning(
            "The tokenizer's files name special tokens that the vocabulary lacks (%s): they are "
            "not used. Fetch the tokenizer's files again if they belong to the model.",
            ", ".join(missing),
        )
