"""The seam to the hardware: the short list of operations that layers call.

Every operation writes into buffers given by ``out`` and allocates nothing that lasts. ``reference``
defines what is right; ``native`` (CPUs) and ``triton`` (CUDA devices) have the same operations and
match it within named bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from types import ModuleType

    from edgelm.ops.native import NativeOps
    from edgelm.ops.triton import TritonOps

    Ops: TypeAlias = ModuleType | NativeOps | TritonOps
