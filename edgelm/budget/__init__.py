"""Memory budget: the plan of a load, and the checks that hold allocations to it.

Modules:
    plan: ``Plan``, the bytes of every part of a load, and ``Ledger``, which enforces it at run
        time.
    placement: the layers kept in memory and those streamed from disk.
    admission: the check, just before allocating, that the memory is still available.
    past_runs: planned and measured peaks of earlier runs, from which later plans learn.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text,
checkpoint and hub.
"""
