"""Quantization recipes: a default scheme and overrides by matrix name, all of it data.

Names are the canonical module names: layers.<i>.attn.q|k|v|o, layers.<i>.mlp.gate|up|down,
embed, head; layers.<i>.attn.qkv where the file has the three in one matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from .errors import QuantError
from .names import SCHEME_TEXTS, meant_by
from .scheme import Scheme


def four_bits(four: list[str], five: list[str], six: list[str]) -> dict[str, Any]:
    """The recipe of 4 bits on average: which matrix takes which of three rules."""
    return {
        "default": four,
        "overrides": {
            **dict.fromkeys(("layers.*.attn.k", "layers.*.attn.o", "layers.*.attn.qkv"), five),
            **dict.fromkeys(("layers.*.attn.v", "embed", "head"), six),
        },
    }


_FIVE = ["int5-g32-coded", "int5-g16-coded", "int8"]
_SIX = ["int6-g32-coded", "int6-g16-coded", "int8"]
# Recipes that have a name. A rule is a list of schemes: a matrix takes the first one that its
# row length allows, in memory the first of them for which there is a fast kernel.
# benches/LOG.md has the divergences behind the default.
NAMED: dict[str, dict[str, Any]] = {
    "none": {"default": "none"},
    "int4": four_bits(["iq4-g32-coded", "iq4-g16-coded", "int4-g32", "int8"], _FIVE, _SIX),
    "int5": {
        "default": _FIVE,
        "overrides": {"embed": "int8", "head": "int8"},
    },
    "int6": {
        "default": _SIX,
        "overrides": {"embed": "int8", "head": "int8"},
    },
    "nf4": {
        "default": ["nf4", "nf4-g32", "int8"],
        "overrides": {"embed": "int8", "head": "int8"},
    },
}

_FOR_EVERY_FAMILY = {pattern for named in NAMED.values() for pattern in named.get("overrides", ())}
_KEYS = ("default", "overrides")


@dataclass(frozen=True)
class Rule:
    """Schemes in order of preference; None means "none", the model's float type.

    relaxed: weights that arrive packed in another layout of no more bits satisfy the rule.
    """

    schemes: tuple[Scheme | None, ...]
    relaxed: bool = False

    @classmethod
    def parse(cls, rule: Any, relaxed: bool = False) -> Rule:
        texts = [rule] if isinstance(rule, str) else rule
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise QuantError(
                f"a recipe's rule must be a scheme or a list of schemes, got {rule!r}; "
                f"allowed: none, {', '.join(n for n in NAMED if n != 'none')}, {SCHEME_TEXTS}"
            )
        if len(texts) == 1 and texts[0] in NAMED and texts[0] != "none":
            return cls.parse(NAMED[texts[0]]["default"], relaxed=True)
        return cls(tuple(None if t == "none" else Scheme.parse(t) for t in texts), relaxed)

    def to_data(self) -> list[str]:
        return ["none" if scheme is None else str(scheme) for scheme in self.schemes]


@dataclass(frozen=True)
class Recipe:
    """A rule for every matrix: ``default``, unless the last matching override says otherwise.

    overrides: (shell-style pattern, rule); later entries win over earlier ones.
    name: the text the recipe came from, shown in reports.
    """

    default: Rule
    overrides: tuple[tuple[str, Rule], ...] = ()
    name: str = "custom"

    @classmethod
    def parse(cls, given: str | dict[str, Any] | Path | Recipe) -> Recipe:
        """A recipe from a scheme text, a recipe's name, a JSON file's path, or the data itself.

        A scheme text applies to every matrix, embedding and head too. Data whose default is a
        named recipe starts from that recipe's overrides. Raises QuantError.
        """
        if isinstance(given, Recipe):
            return given
        if isinstance(given, dict):
            return cls._from_data(given, "custom")
        if isinstance(given, str) and given in NAMED:
            return cls._from_data({"default": given}, given)
        if isinstance(given, Path) or given.endswith(".json"):
            return cls._from_data(_read_json(Path(given)), str(given))
        try:
            return cls(Rule.parse(given), name=given)
        except QuantError:
            if meant := meant_by(given):
                raise QuantError(f"unknown scheme {given!r}; did you mean {meant}?") from None
            raise QuantError(
                f"unknown scheme {given!r}; allowed: {', '.join(NAMED)}, {SCHEME_TEXTS}, "
                "or the path of a recipe ending in .json"
            ) from None

    @classmethod
    def _from_data(cls, data: Any, name: str) -> Recipe:
        if not isinstance(data, dict) or "default" not in data or set(data) - set(_KEYS):
            raise QuantError(f"a recipe holds the keys {_KEYS} (default required), got {data!r}")
        base = NAMED.get(data["default"], {}) if isinstance(data["default"], str) else {}
        own = data.get("overrides", {})
        if not isinstance(own, dict):
            raise QuantError(f"a recipe's overrides map patterns to schemes, got {own!r}")
        inherited = [(p, Rule.parse(r, True)) for p, r in base.get("overrides", {}).items()]
        added = [(pattern, Rule.parse(rule)) for pattern, rule in own.items()]
        return cls(Rule.parse(data["default"]), (*inherited, *added), name)

    def __str__(self) -> str:
        return self.name

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-able data that ``parse`` reads back."""
        overrides = {pattern: rule.to_data() for pattern, rule in self.overrides}
        return {"default": self.default.to_data(), "overrides": overrides}

    def rule_for(self, name: str) -> Rule:
        """The rule that applies to the matrix ``name``."""
        matches = [rule for pattern, rule in self.overrides if fnmatchcase(name, pattern)]
        return matches[-1] if matches else self.default

    def schemes_for(
        self, name: str, shape: tuple[int, ...], float_dtype: torch.dtype
    ) -> list[Scheme]:
        """Schemes of its rule that fit the matrix ``name`` of ``shape`` [N, K], the preferred one
        first; "none" becomes ``float_dtype``.

        Raises QuantError, with the name, when none fits.
        """
        reason: QuantError | None = None
        fitting = []
        for wanted in self.rule_for(name).schemes:
            scheme = Scheme.floating(float_dtype) if wanted is None else wanted
            try:
                scheme.check(shape)
            except QuantError as error:
                reason = error
            else:
                fitting.append(scheme)
        if not fitting:
            raise QuantError(f"{name}: {reason}")
        return fitting

    def fallback_note(self, name: str, shape: tuple[int, ...], scheme: Scheme) -> str:
        """Why the matrix ``name`` of ``shape`` is in ``scheme``, if the one that its rule names
        first does not go with its rows; else empty."""
        first = self.rule_for(name).schemes[0]
        if first is None or scheme.is_float:
            return ""
        try:
            first.check(shape)
        except QuantError:
            return f"{scheme}, because rows of {shape[1]} weights cannot be {first}"
        return ""

    def accepts(self, name: str, scheme: Scheme) -> bool:
        """True if a matrix that arrives packed in ``scheme`` may stay as it is."""
        rule = self.rule_for(name)
        first = rule.schemes[0]
        if first is None or scheme.is_float:
            return first is None and scheme.is_float
        same = replace(scheme, scales=first.scales) == first  # scales of either type serve
        kinds = (None, "iq4") if first.codebook in (None, "iq4") else (first.codebook,)
        return same or (rule.relaxed and scheme.codebook in kinds and scheme.bits <= first.bits)

    def unused_patterns(self, names: Iterable[str]) -> list[str]:
        """The user's patterns that match none of a model's ``names``: most likely mistyped ones.

        Those of named recipes are for every family, so some match nothing.
        """
        known = list(names)
        own = (pattern for pattern, _ in self.overrides if pattern not in _FOR_EVERY_FAMILY)
        return [p for p in own if not any(fnmatchcase(name, p) for name in known)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise QuantError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise QuantError(f"the recipe {path} is not JSON: {error}") from error
