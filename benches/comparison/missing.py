"""Why something was not measured; it goes into the result file in place of a number."""

from __future__ import annotations


class Missing(Exception):
    """An engine, a file or a feature that is not there, or that did not answer, in words."""
