"""Hugging Face Hub: model references resolved to local files.

Modules:
    references: references to folders, files, the demo model and Hub ids.
    headers: headers of a Hub model, read without its weights.
    weights: resumable downloads into the Hub's cache.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text and
checkpoint.
"""
