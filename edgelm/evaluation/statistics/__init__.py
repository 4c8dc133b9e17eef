"""Statistics of an evaluation: pure functions of numbers, which know no models and no files.

Modules:
    clusters: means whose error is that of clusters, such as blocks of windows or passages.
    perplexities: perplexity and its paired difference, with their errors.
    proportions: intervals of a share.
    pairs: two answers to each item compared: McNemar, Holm, differences, verdicts.

Distributions are scipy's; tests/test_statistics.py compares with statsmodels.
"""
