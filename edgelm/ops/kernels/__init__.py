"""The operations of a step as Triton kernels; ``edgelm.ops.triton`` launches them.

``rows`` are norms and maps, ``places`` rotation and the writing of the cache, ``decode`` and
``prefill`` attention. Only what is named at the first use is imported: they need Triton.
"""
