"""Hugging Face Hub: model references resolved to local files.

Modules:
    references: references to folders, files, the demo model and Hub ids.
    demo: the demo model, fetched from Python's package index.
    headers: headers of a Hub model, read without its weights.
    weights: resumable downloads into the Hub's cache.
    inventory: the models that were fetched.

Above ``checkpoint`` and below ``budget`` in the ladder of tests/test_house.py:
imports point down only.
"""
