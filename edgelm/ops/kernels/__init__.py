"""Triton kernels of a step's operations; ``edgelm.ops.triton`` launches them.

``rows``: norms and elementwise maps. ``places``: rotation and writes to the cache. ``decode`` and
``prefill``: attention. Each module is imported at first use, because it needs Triton. The kernels
import nothing of this package except each other.
"""
