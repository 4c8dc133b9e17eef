"""Tasks: uses of a loaded model other than generation.

Modules:
    forward, forward_options: ``forward`` on padded batches, with transformers' output shapes.
    predict: classification, question answering and token labels of texts.
    losses: losses of all heads.
    scoring: log-likelihood of a text.

Above ``generation`` and below ``planning`` in the ladder of tests/test_house.py:
imports point down only.
"""
