"""Exceptions for users; messages state what was given, what is allowed and what to do.

Every class has the exit code of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class EdgeLMError(Exception):
    """Base class of all errors that this package raises.

    ``results``: what a command had found until then, as JSON-able data.
    """

    exit_code = 1
    results: Mapping[str, Any] = MappingProxyType({})


class UsageError(EdgeLMError):
    """The call or the command line asks for something that is not allowed."""

    exit_code = 2


class ModelFileError(EdgeLMError):
    """A file is missing, damaged, or contradicts itself."""

    exit_code = 4


class UnsupportedModelError(EdgeLMError):
    """The files are valid but describe something this package does not support."""

    exit_code = 4


class DoesNotFitError(EdgeLMError):
    """No plan fits the memory budget; ``plan`` is the one that was tried."""

    exit_code = 3

    def __init__(self, message: str, plan: Any = None) -> None:
        super().__init__(message)
        self.plan = plan


class BudgetExceededError(EdgeLMError):
    """An allocation exceeds the memory in the plan."""

    exit_code = 3


class ContextLengthError(UsageError):
    """A prompt (plus the tokens to generate) is longer than the context."""

    def __init__(self, message: str, given: int, allowed: int) -> None:
        super().__init__(message)
        self.given = given
        self.allowed = allowed


class HubError(EdgeLMError):
    """A model could not be fetched."""


class KernelUnavailableError(EdgeLMError):
    """The chosen backend has no kernel for a tensor on this device."""


class NonFiniteError(EdgeLMError):
    """A layer produced NaN or infinity; the message names it."""


class CancelledError(EdgeLMError):
    """The call was stopped from outside."""

    exit_code = 130
