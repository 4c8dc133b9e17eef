"""Hugging Face Hub: model references resolved to local files.

Modules:
    references: references to folders, files, the demo model and Hub ids.
    headers: headers of a Hub model, read without its weights.
    weights: resumable downloads into the Hub's cache.

Above ``checkpoint`` and below ``budget`` in the ladder of tests/test_house.py:
imports point down only.
"""
