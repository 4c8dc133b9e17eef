"""The JSON files that accompany a tokenizer, read with type checks: they are untrusted input.

These are ``tokenizer_config.json``, ``special_tokens_map.json``, ``generation_config.json`` and
the token keys of ``config.json``. All errors are ModelFileError with the key and its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError

MAX_ID = 1 << 24  # no vocabulary is nearly as large; a larger id would only cost memory


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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


def added_tokens(config: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Text -> (id, special) of the tokens that tokenizer_config.json adds."""
    given = config.get("added_tokens_decoder") or {}
    if not isinstance(given, dict):
        raise _damaged("added_tokens_decoder", given, "an object of tokens by id")
    added = {}
    for number, token in given.items():
        if not number.isdecimal() or len(number) > 8 or int(number) >= MAX_ID:
            raise _damaged("added_tokens_decoder", number, "token ids as keys")
        if not isinstance(token, dict):
            raise _damaged("added_tokens_decoder", token, "an object for each token")
        name = token_name(token, "added_tokens_decoder")
        if name:
            added[name] = (int(number), bool(token.get("special", False)))
    return added


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
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
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
