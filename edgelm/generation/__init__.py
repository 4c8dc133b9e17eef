"""Generation: from requests to token ids and text.

Modules:
    option_table, options: every generation option; options checked and turned into a ``Request``.
    generation_keys, model_defaults: what a model's generation_config.json says of answers.
    text_calls: ``generate``, ``stream`` and ``chat`` of a loaded model, with their types.
    session: what answers run on: an engine, its cache and what each row holds.
    prompts: what callers give to be answered.
    request, answer: requests, results and statistics, and the state of a request in progress.
    scheduler, row_choice: the generation loop, for the answers of all calls, and their rows.
    batch: the requests of one call, as ids and as text.
    writer: an answer's ids to text, up to a stop string.
    sampling, processors: the sampler and its logits processors.
    grammar, json_schema: constrained generation with grammars and JSON schemas, and their limits.
    beams: beam search.
    speculation, draft_model, prompt_lookup: speculative decoding and its two sources of guesses.
    dialogue, conversation: a conversation as it goes on; conversations saved to a file.

Above ``engine`` and below ``tasks`` in the ladder of tests/test_house.py: imports point down only.
"""
