"""Rows about tokenizers and templates."""

from __future__ import annotations

from mutations.row import Mutation

TOKENIZER = "tests/test_tokenizer.py"
CHAT = "tests/test_chat.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "tokenizer: never a second BOS",
        "edgelm/tokenizer.py",
        "if ids[: len(prefix)] == prefix:",
        "if False:",
        (f"{TOKENIZER}::test_never_a_second_bos",),
    ),
    Mutation(
        "tokenizer: the template's end of turn ends a text",
        "edgelm/tokenizer.py",
        "special.eos_ids | _end_of_turn_ids(vocabulary, special.chat_template)",
        "special.eos_ids",
        (f"{TOKENIZER}::test_end_tokens_are_a_union",),
    ),
    Mutation(
        "tokenizer: only whole characters are streamed",
        "edgelm/tokenizer.py",
        "return self._utf8.decode(data)",
        'return data.decode(errors="replace")',
        (f"{TOKENIZER}::test_stream_gives_whole_characters",),
    ),
    Mutation(
        "tokenizer: a user cannot write special tokens",
        "edgelm/tokenizer.py",
        "self._vocabulary.encode(text, parse_special)",
        "self._vocabulary.encode(text, True)",
        (f"{TOKENIZER}::test_special_tokens_in_a_text_are_text_unless_parsed",),
    ),
    Mutation(
        "chat: a template's time is bounded",
        "edgelm/sandbox.py",
        "if time.monotonic() > end:",
        "if time.monotonic() > end + 20:",
        (f"{CHAT}::test_bombs_are_stopped[loops]",),
    ),
    Mutation(
        "chat: a template changes no message",
        "edgelm/sandbox.py",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "from jinja2.sandbox import SandboxedEnvironment as ImmutableSandboxedEnvironment",
        (f"{CHAT}::test_messages_stay_as_they_were",),
    ),
)
