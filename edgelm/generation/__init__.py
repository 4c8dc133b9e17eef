"""Generation: from requests to token ids and text.

Modules:
    options: a caller's options checked and turned into a ``Request``.
    request, answer: requests, results and statistics, and the state of a request in progress.
    batch: the generation loop, for one or many requests.
    sampling, processors: the sampler and its logits processors.
    grammar: constrained generation with JSON schemas and grammars.
    beams: beam search.
    speculation, draft_model, prompt_lookup: speculative decoding and its two sources of guesses.
    conversation: conversations saved to a file.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text,
checkpoint, hub, budget, ops, models, layerstore and engine.
"""
