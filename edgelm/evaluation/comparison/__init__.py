"""Comparison: schemes and files against the unquantized weights, in one table.

Modules:
    compare: ``compare``, the public function.
    candidates: what is compared: schemes of the model, and files of its weights.
    measure: a candidate loaded, timed and read.
    measured: what was found of one, as data.
    slices: divergence by position, confidence and category, and the worst tokens.
    kept: the folder with what an interrupted comparison had finished.
    comparison: the result: rows, JSON, CSV.
    outputs: files that results are written to, tried before the work.
    page, pictures: the report.
"""
