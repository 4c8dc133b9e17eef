"""Tasks: uses of a loaded model other than generation.

Modules:
    forward: ``forward`` on padded batches, with transformers' output shapes.
    predict: classification, question answering and token labels of texts.
    losses: losses of all heads.
    scoring: log-likelihood of a text.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text,
checkpoint, hub, budget, ops, models, layerstore, engine and generation.
"""
