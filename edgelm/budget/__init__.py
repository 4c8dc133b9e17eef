"""Memory budget: the plan of a load, and the checks that hold allocations to it.

Modules:
    plan: ``Plan``, what a load does and the bytes of its every part; ``Execution``, how it runs.
    parts, weight_name, dtypes, dtype_names, units: the names of parts, weights, number types and
        amounts.
    ledger: ``Ledger``, which holds allocations to the plan at run time.
    plan_view, shortage: a plan as people read it, and what it lacks of its budget.
    placement: the layers kept in memory and those streamed from disk.
    admission: the check, just before allocating, that the memory is still available.
    past_runs: planned and measured peaks of earlier runs, from which later plans learn.
    running: the models that processes of this user hold now.

Above ``hub`` and below ``ops`` in the ladder of tests/test_house.py: imports point down only.
"""
