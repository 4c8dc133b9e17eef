"""Sweep: many comparisons as cells that run one after another, or on the workers of a Ray cluster.

Modules:
    sweep: ``sweep``, the public function.
    grid: the file that says what is measured, and its cells.
    cell: one candidate of a model over one text or task, or the baseline of these: pure, with a
        hash of all that decides its result.
    job: a cell that is planned: its hash and the memory that it is promised.
    results: the folder of finished cells.
    ray_cluster: cells as tasks of Ray, the extra ``sweep``.
    merged: the table of ``compare`` from finished cells.
"""
