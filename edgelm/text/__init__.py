"""Text: tokenizers and chat templates.

Modules:
    tokenizer: ``Tokenizer``, and how it is loaded from a model's files.
    continuation: a context and its continuation as ids, of which the continuation's are scored.
    decode_stream: ``DecodeStream``, ids to text token by token.
    vocabulary: the tokens of a tokenizer file, of which there are two kinds:
    tokenizers_vocabulary, sentencepiece_vocabulary: read with the libraries of those names.
    gguf_tokenizer: the tokenizer in a GGUF file.
    tokenizer_config: the JSON files that accompany a tokenizer.
    messages: messages of a chat, checked.
    chat_template: messages rendered to text.
    chat_prompt: messages as ids, with the template's own special tokens and no others.
    hidden_tokens: texts of tokens in what people write, which are no tokens.
    sandbox, sandbox_limits: the sandbox of chat templates and its size limits.

Above ``machine`` and below ``checkpoint`` in the ladder of tests/test_house.py:
imports point down only.
"""
