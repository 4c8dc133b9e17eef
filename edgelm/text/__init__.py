"""Text: tokenizers and chat templates.

Modules:
    tokenizer: ``Tokenizer``, and how it is loaded from a model's files.
    lines: lines of files and of stdin, which end at line feeds alone.
    continuation: a context and its continuation as ids, of which the continuation's are scored.
    decode_stream: ``DecodeStream``, ids to text token by token.
    vocabulary: the tokens of a tokenizer file, of which there are two kinds:
    tokenizers_vocabulary, sentencepiece_vocabulary: read with the libraries of those names.
    gguf_tokenizer: the tokenizer in a GGUF file.
    tokenizer_json: a ``tokenizer.json``, and what of it may run in this process.
    special_tokens: what the files say of tokens around a text, beside the vocabulary.
    tokenizer_config: the JSON files that accompany a tokenizer.
    messages: messages of a chat, checked.
    chat_template: messages rendered to text.
    chat_prompt: messages as ids, with the template's own special tokens and no others.
    hidden_tokens: texts of tokens in what people write, which are no tokens.
    template_process: runs chat templates, in a process that holds their ``sandbox``.
    limited_process: ``LimitedProcess``, which computes what a model's files say, under limits.
    limited_worker: what such a process runs, with one of the scripts here:
    sandbox, tokenizer_worker: chat templates in Jinja's sandbox; texts to ids.

Above ``machine`` and below ``checkpoint`` in the ladder of tests/test_house.py:
imports point down only.
"""
