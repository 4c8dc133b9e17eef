"""Typed access to the metadata of a GGUF file, which is untrusted input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError, UnsupportedModelError

MAX_COUNT = 1_000_000


class Metadata:
    """Typed access to a file's keys; architecture keys are named without their prefix."""

    def __init__(self, values: Mapping[str, Any], architecture: str, path: Path) -> None:
        self.values = values
        self.architecture = architecture
        self.path = path

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """The value of "<architecture>.<key>" (or of a key of "tokenizer.") of type ``kind``.

        Raises ModelFileError if it is of another type, or missing without a default.
        """
        full = key if key.startswith("tokenizer.") else f"{self.architecture}.{key}"
        value = _one(self.values.get(full, default))
        if value is ...:
            raise ModelFileError(
                f"{self.path} lacks the metadata key {full}, which describes the model: it was "
                "not converted completely. Convert it again."
            )
        fits = isinstance(value, (int, float) if kind is float else kind)
        if value is not default and (not fits or isinstance(value, bool)):
            raise ModelFileError(
                f"{self.path}: the metadata key {full} must be one {kind.__name__}, "
                f"got {value!r:.80}."
            )
        return value

    def refuse_unless(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Raise UnsupportedModelError if the key is present with a value that changes the model."""
        full = f"{self.architecture}.{key}"
        if full in self.values and _one(self.values[full]) not in allowed:
            raise UnsupportedModelError(
                f"{self.path}: the metadata key {full} is {self.values[full]!r:.80}; supported: "
                f"{', '.join(map(repr, allowed))}. This model cannot be run."
            )

    def count(self, key: str) -> int:
        """An int from 1 to a million, so that lists can safely be made from it."""
        value: int = self.get(key, int)
        if not 1 <= value <= MAX_COUNT:
            raise ModelFileError(
                f"{self.path}: the metadata key {self.architecture}.{key} is {value}; expected a "
                f"count from 1 to {MAX_COUNT}. The file is damaged: fetch it again."
            )
        return value


def _one(value: Any) -> Any:
    """The number that a list holds for every layer, as some converters write it."""
    same = isinstance(value, list) and value and all(entry == value[0] for entry in value)
    return value[0] if same and isinstance(value[0], int | float) else value
