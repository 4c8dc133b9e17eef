"""The seam to the hardware: the short list of operations that layers call.

Every operation writes into buffers given by ``out`` and allocates nothing that lasts. ``reference``
defines what is right; ``native`` has the same operations and matches it within a named bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from types import ModuleType

    from edgelm.ops.native import NativeOps

    Ops: TypeAlias = ModuleType | NativeOps
