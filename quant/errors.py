"""Exceptions of the package; messages state what was given, what is allowed and what to do."""

from __future__ import annotations


class QuantError(ValueError):
    """A scheme, recipe or weight that cannot be quantized as asked."""


class KernelUnavailableError(QuantError):
    """The named backend has no kernel for this scheme, shape and device."""
