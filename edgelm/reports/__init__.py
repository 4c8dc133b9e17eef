"""Reports: data behind the commands that describe a model or the machine.

Modules:
    inspection: the content of a model's files, for ``edgelm inspect``.
    verification: a quantized folder's files against their hashes, for ``edgelm inspect --verify``.
    benchmark: speed and memory, for ``edgelm bench``.
    diagnosis: the machine and its kernels, for ``edgelm doctor``.
    masks: attention masks, for ``edgelm mask``.

Above ``loading`` and below ``evaluation`` in the ladder of tests/test_house.py:
imports point down only.
"""
