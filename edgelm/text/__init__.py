"""Text: tokenizers and chat templates.

Modules:
    tokenizer: ``Tokenizer`` and its streaming decoder.
    vocabulary: tokenizer files read with ``tokenizers`` and ``sentencepiece``.
    gguf_tokenizer: the tokenizer in a GGUF file.
    tokenizer_config: the JSON files that accompany a tokenizer.
    chat_template: messages rendered to text.
    sandbox, sandbox_limits: the sandbox of chat templates and its size limits.

Above ``machine`` and below ``checkpoint`` in the ladder of tests/test_house.py:
imports point down only.
"""
