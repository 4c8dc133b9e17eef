"""Statistics of an evaluation: pure functions of numbers, which know no models and no files.

Modules:
    student: quantiles of Student's t.
    clusters: means whose error is that of clusters, such as blocks of windows or passages.
    perplexities: perplexity and its paired difference, with their errors.
    proportions: intervals of a share.
    pairs: two answers to each item compared: McNemar, Holm, differences, verdicts.

tests/test_statistics.py compares them with scipy and statsmodels.
"""
