"""The names that users write for the number types of activations and of caches, without torch."""

from __future__ import annotations

DTYPE_NAMES = ("float32", "bfloat16", "float16")
KV_NAMES = (*DTYPE_NAMES, "int8")
