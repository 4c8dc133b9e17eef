"""The JSON files that accompany a tokenizer, read with type checks: they are untrusted input.

These are ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json``,
``generation_config.json`` and the token keys of ``config.json``. Which of them counts where they
differ is as in transformers' ``PreTrainedTokenizerBase._from_pretrained``. All errors are
ModelFileError with the key and its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError
from edgelm.plain_file import is_present, read_text

NAMED = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
MAX_ID = 1 << 24  # no vocabulary is nearly as large; a larger id would only cost memory


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if the file does not exist."""
    if not is_present(path):
        return {}
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON ({error}). Fetch the file again.") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} must hold a JSON object. Fetch the file again.")
    return content


def token_name(token: Any, key: str) -> str | None:
    """A token's text; configs write it as a string or as an object with ``content``."""
    name = token.get("content") if isinstance(token, dict) else token
    if name is not None and not (isinstance(name, str) and is_text(name)):
        raise ModelFileError(
            f"{key} is {token!r:.80}; expected a token's text. Fetch the tokenizer's files again."
        )
    return name


@dataclass(frozen=True)
class AddedToken:
    """A token beside those of the vocabulary file, which is cut out of a text before all others.

    ``id`` None is the next free one. ``lstrip``, ``rstrip``: white space to its left, right belongs
    to it. ``single_word``: it does not count within a word. ``normalized``: it is looked for in the
    normalized text.
    """

    name: str
    id: int | None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def flags(self) -> dict[str, bool]:
        return {name: getattr(self, name) for name in _FLAGS}


def folder_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json above it where it lists no tokens."""
    config = read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    told = read_object(folder / "special_tokens_map.json")
    extra = [*_extra_tokens(config), *_extra_tokens(told)]
    return config | told | ({"extra_special_tokens": extra} if extra else {})


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the tokens that have a role, by role: bos, eos, pad, unk, sep, cls, mask."""
    found = {key: token_name(config.get(f"{key}_token"), f"{key}_token") for key in NAMED}
    return {key: name for key, name in found.items() if name}


def added_tokens(folder: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens that a folder's configs add, those with an id first, by id.

    config: of ``folder_config``.
    """
    extra = [token_name(t, "extra_special_tokens") for t in _extra_tokens(config)]
    if "added_tokens_decoder" in config:
        added = _listed(config["added_tokens_decoder"] or {})
    else:
        added = _numbered(read_object(folder / "added_tokens.json"), {
            *named_tokens(config).values(), *extra,
        })  # fmt: skip
    known = {token.name for token in added}
    more = [AddedToken(name, None) for name in dict.fromkeys(extra) if name and name not in known]
    return sorted(added, key=lambda token: token.id or 0) + more


def _listed(given: Any) -> list[AddedToken]:
    """Of tokenizer_config.json's added_tokens_decoder: id -> token."""
    key = "added_tokens_decoder"
    if not isinstance(given, dict):
        raise _damaged(key, given, "an object of tokens by id")
    added = []
    for number, token in given.items():
        if not number.isdecimal() or len(number) > 8 or int(number) >= MAX_ID:
            raise _damaged(key, number, "token ids as keys")
        if not isinstance(token, dict):
            raise _damaged(key, token, "an object for each token")
        flags = {name: token.get(name, False) for name in _FLAGS}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise _damaged(key, token, f"true or false for {', '.join(_FLAGS)}")
        if name := token_name(token, key):
            added.append(AddedToken(name, int(number), **flags))
    return added


def _numbered(given: Mapping[str, Any], special: set[str | None]) -> list[AddedToken]:
    """Of added_tokens.json: text -> id."""
    added = []
    for name, number in given.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_ID:
            raise _damaged("added_tokens.json", number, "a token id for each text")
        if token_name(name, "added_tokens.json"):
            own = name in special
            added.append(AddedToken(name, number, special=own, normalized=not own))
    return added


def _extra_tokens(config: Mapping[str, Any]) -> list[Any]:
    """Of extra_special_tokens, which was called additional_special_tokens: tokens, or by role."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        given = config.get(key)
        if given:
            if not isinstance(given, list | dict):
                raise _damaged(key, given, "a list of tokens")
            return list(given.values()) if isinstance(given, dict) else given
    return []


def space_scheme(config: Mapping[str, Any]) -> str:
    """Prefix-space scheme of a text's segments, in the terms of tokenizers' Metaspace.

    ``add_prefix_space: false`` means no segment, ``legacy: false`` only the text's beginning, and
    not the segments after special tokens. Without either key it is every segment.
    """
    for key in ("add_prefix_space", "legacy"):
        if not isinstance(config.get(key), bool | None):
            raise _damaged(key, config[key], "true or false")
    if config.get("add_prefix_space") is False:
        return "never"
    return "first" if config.get("legacy") is False else "always"


def chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """``chat_template.jinja``, else the config's template (the one called default of several)."""
    file = folder / "chat_template.jinja"
    if is_present(file):
        try:
            return read_text(file)
        except (ValueError, OSError) as error:
            raise ModelFileError(f"{file} is not readable text ({error}).") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        named = [e.get("template") for e in entries if e.get("name") == "default"]
        template = named[-1] if named else None
    return checked_template(template, "tokenizer_config.json's chat_template")


def checked_template(template: Any, origin: str) -> str | None:
    """The template, which must be a text if it is present."""
    if template is not None and not isinstance(template, str):
        raise _damaged(origin, template, "a template's text")
    return template


def token_ids(value: Any, origin: str) -> list[int]:
    """Token ids under a key that may be absent, null, a number or a list of numbers."""
    ids = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise ModelFileError(f"{origin} must be a token id or a list of them, not {value!r:.80}.")
    return ids


def is_text(text: str) -> bool:
    """True if the text can be written as UTF-8: JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _damaged(key: str, value: Any, expected: str) -> ModelFileError:
    return ModelFileError(
        f"{key} is {value!r:.80}; expected {expected}. Fetch the tokenizer's files again."
    )
