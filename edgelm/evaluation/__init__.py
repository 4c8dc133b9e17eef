"""Evaluation: accuracy of a model on a text and tasks, against its unquantized weights.

Modules:
    evaluate: ``evaluate``, the public function.
    comparison: ``compare``, several schemes and files in one table, and its report.
    sweep: many comparisons as cells, here or on a Ray cluster.
    statistics: errors, intervals and tests, as functions of numbers.
    inputs, passage, texts: the texts and tasks, encoded before any model is loaded.
    tasks, choices: multiple-choice tasks and their scoring, as in lm-eval.
    written_tasks, answering, answer_scores: tasks whose answers the model writes, and their scores.
    few_shot, item_lines: examples before a question; what was made of each item, as JSON lines.
    divergence, figures: perplexity and KL divergence over a passage, and of each token.
    baseline, make_baseline: the file with the results of the unquantized weights, and its
        creation.
    layerwise: running a model with one layer in memory at a time.
    rows: float32 rows in a file. duration, promise: how long the work will take, and how much
        memory.
    harness: a model class for lm-evaluation-harness.
    certify, verify: the measurement that ``quantize`` makes of its result, and a second one.

Above ``reports`` and below ``quantization`` in the ladder of tests/test_house.py:
imports point down only.
"""
