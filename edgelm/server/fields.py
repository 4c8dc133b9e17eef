"""Fields of a JSON body: each is taken once, with its check; what is left is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgelm.server.refusals import Refusal
from edgelm.values import shown

MOST_BODY_BYTES = 1 << 20
"""Of a request; with ``MOST_CONNECTIONS`` it bounds what is held beside the plan."""
MOST_CONNECTIONS = 128
_MISSING = object()


class Fields:
    """The fields of one JSON object.

    Args:
        where: the object's name in messages; the body has none.
    """

    def __init__(self, given: Any, where: str = "") -> None:
        self._where = f"{where}." if where else ""
        if not isinstance(given, dict):
            raise Refusal(400, f"{where or 'The body'} is {shown(given)}; give a JSON object.")
        self._left = dict(given)

    @classmethod
    def of(cls, body: bytes) -> Fields:
        """Those of a request's body."""
        try:
            return cls(json.loads(body, parse_constant=_no_constant))
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"The body is not JSON ({error}).") from error

    def peek(self, name: str) -> Any:
        """A field's value, which is still to be taken."""
        return self._left.get(name)

    def take(
        self, name: str, allowed: str = "", check: Callable[[Any], bool] | None = None,
        default: Any = None,
    ) -> Any:  # fmt: skip
        """A field's value; ``default`` where it is left out or null.

        Args:
            allowed: in words. check: True for an allowed value.
        """
        value = self._left.pop(name, None)
        if value is None:
            return default
        if check is not None and not check(value):
            raise self.wrong(name, value, allowed)
        return value

    def require(self, name: str, allowed: str, check: Callable[[Any], bool]) -> Any:
        """A field that must be there."""
        value = self.take(name, allowed, check, _MISSING)
        if value is _MISSING:
            raise Refusal(400, f"{self._where}{name} is missing; allowed: {allowed}.", None, name)
        return value

    def truth(self, name: str, default: bool = False) -> bool:
        """True or false."""
        found: bool = self.take(name, "true, false", lambda v: isinstance(v, bool), default)
        return found

    def whole(self, name: str, least: int, most: int, default: Any = None) -> Any:
        """A whole number within limits."""
        return self.take(
            name, f"{least} to {most}", lambda v: is_whole(v) and least <= v <= most, default
        )

    def within(self, name: str) -> Fields | None:
        """The fields of an object that a field holds."""
        value = self.take(name)
        return None if value is None else Fields(value, f"{self._where}{name}")

    def leave_out(self, *names: str) -> None:
        """Ignore fields: these say nothing about the answer, as the documentation tells."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuse what nobody took."""
        if self._left:
            names = ", ".join(f"{self._where}{name}"[:80] for name in list(self._left)[:8])
            first = next(iter(self._left))
            raise Refusal(400, f"Not supported: {names}. Leave them out.", "unknown_field", first)

    def wrong(self, name: str, value: Any, allowed: str) -> Refusal:
        return Refusal(
            400, f"{self._where}{name} is {shown(value)}; allowed: {allowed}.", None, name
        )


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def is_ids(value: Any) -> bool:
    """True for a list of token ids that is not empty."""
    return isinstance(value, list) and bool(value) and all(map(is_whole, value))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
