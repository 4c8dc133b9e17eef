"""Operations: the interface between layers and hardware.

Every operation writes to buffers given by ``out`` and allocates nothing that lasts. ``reference``
defines the correct result; ``native`` (CPUs) and ``triton`` (CUDA devices) have the same
operations and match it within named bounds.

Modules:
    reference: all operations in plain torch.
    native: operations in the native library.
    triton: operations as Triton kernels, which are in ``kernels``.
    step: ``Step``, one forward pass and its buffers.
    cache, cache_sizes: the KV cache and its memory.
    position: rotary embeddings and ALiBi.

Above ``budget`` and below ``models`` in the ladder of tests/test_house.py: imports point down only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from types import ModuleType

    from edgelm.ops.native import NativeOps
    from edgelm.ops.triton import TritonOps

    Ops: TypeAlias = ModuleType | NativeOps | TritonOps
