"""Rows about tokenizers and templates."""

from __future__ import annotations

from mutations.row import Mutation

TOKENIZER = "tests/test_tokenizer.py"
CHAT = "tests/test_chat.py"
OPTIONS = "tests/test_tokenizer_options.py"
ADDED = "tests/test_added_tokens.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "tokenizer: never a second BOS",
        "edgelm/text/tokenizer.py",
        "if not add_special or ids[: len(prefix)] == prefix:",
        "if not add_special:",
        (f"{TOKENIZER}::test_never_a_second_bos",),
    ),
    Mutation(
        "tokenizer: the template's end of turn ends a text",
        "edgelm/text/tokenizer.py",
        "special.eos_ids | _end_of_turn_ids(vocabulary, special.chat_template)",
        "special.eos_ids",
        (f"{TOKENIZER}::test_end_tokens_are_a_union",),
    ),
    Mutation(
        "tokenizer: only whole characters are streamed",
        "edgelm/text/decode_stream.py",
        "return self._utf8.decode(data)",
        'return data.decode(errors="replace")',
        (f"{TOKENIZER}::test_stream_gives_whole_characters",),
    ),
    Mutation(
        "tokenizer: a user cannot write special tokens",
        "edgelm/text/tokenizer.py",
        "self._vocabulary.encode(text, parse_special)",
        "self._vocabulary.encode(text, True)",
        (f"{TOKENIZER}::test_special_tokens_in_a_text_are_text_unless_parsed",),
    ),
    Mutation(
        "tokenizer: tokens beside tokenizer.json",
        "edgelm/text/tokenizer.py",
        "        vocabulary.add(added_tokens(folder, config))\n",
        "",
        (f"{ADDED}::test_tokens_of_every_place_are_read",),
    ),
    Mutation(
        "tokenizer: added_tokens.json",
        "edgelm/text/tokenizer_config.py",
        'read_object(folder / "added_tokens.json")',
        "{}",
        (f"{ADDED}::test_tokens_of_every_place_are_read",),
    ),
    Mutation(
        "tokenizer: white space that belongs to a token",
        "edgelm/text/sentencepiece_vocabulary.py",
        "(token.lstrip, token.rstrip)",
        "(token.lstrip, False)",
        (f"{ADDED}::test_white_space_belongs_to_a_token_that_says_so",),
    ),
    Mutation(
        "tokenizer: placeholders are renamed",
        "edgelm/text/sentencepiece_vocabulary.py",
        "return self._names.get(token_id) or self._piece_name(token_id)",
        "return self._piece_name(token_id) or self._names.get(token_id, '')",
        (f"{ADDED}::test_a_placeholder_is_renamed",),
    ),
    Mutation(
        "tokenizer: special_tokens_map.json stands above",
        "edgelm/text/tokenizer_config.py",
        "return config | told |",
        "return told | config |",
        (f"{ADDED}::test_which_file_names_the_end",),
    ),
    Mutation(
        "tokenizer: a missing special token is said",
        "edgelm/text/tokenizer.py",
        "    _warn_of_missing(vocabulary, named)\n",
        "",
        (f"{ADDED}::test_a_named_token_that_is_missing_is_said",),
    ),
    Mutation(
        "tokenizer: a post-processor stands above flags",
        "edgelm/text/tokenizer.py",
        "flags = {} if isinstance(vocabulary, TokenizersVocabulary) else config",
        "flags = config",
        (f"{ADDED}::test_a_post_processor_stands_above_flags",),
    ),
    Mutation(
        "tokenizer: user-defined tokens of a GGUF are cut out of the raw text",
        "edgelm/text/gguf_tokenizer.py",
        "SentencePieceVocabulary(library, added)",
        "SentencePieceVocabulary(library)",
        (f"{ADDED}::test_user_defined_tokens_of_a_gguf_are_cut_out_of_the_text",),
    ),
    Mutation(
        "tokenizer: a byte under its character",
        "edgelm/text/gguf_tokenizer.py",
        "    tokens, types = _with_all_bytes(tokens, types)\n",
        "",
        (f"{ADDED}::test_odd_vocabularies_that_llama_cpp_reads",),
    ),
    Mutation(
        "limits: time is watched",
        "edgelm/text/limited_process.py",
        "if used - before > limits.seconds or waited > _PATIENCE * limits.seconds:",
        "if waited > 20 * limits.seconds:",
        ("tests/test_template_limits.py::test_the_real_limits_hold_and_are_said",),
    ),
    Mutation(
        "limits: memory is the system's to refuse",
        "edgelm/text/limited_worker.py",
        "resource.getpagesize() + nbytes",
        "resource.getpagesize() + 2**34",
        ("tests/test_limited_process.py::test_it_inherits_nothing_but_pipes",),
    ),
    Mutation(
        "limits: no file is opened",
        "edgelm/text/limited_worker.py",
        "    _confine()\n",
        "",
        ("tests/test_limited_process.py::test_it_can_open_no_file_and_start_no_process",),
    ),
    Mutation(
        "limits: an interrupted question has no later answer",
        "edgelm/text/limited_process.py",
        "            self.close()\n            raise\n        if reply",
        "            raise\n        if reply",
        ("tests/test_limited_process.py::test_an_interrupt_ends_the_question",),
    ),
    Mutation(
        "limits: a fork leaves the process alone",
        "edgelm/text/limited_process.py",
        "    os.register_at_fork(after_in_child=_forget_all)",
        "    pass",
        ("tests/test_limited_process.py::test_a_fork_has_its_own",),
    ),
    Mutation(
        "tokenizer: known parts run here",
        "edgelm/text/tokenizer_json.py",
        "return not _ESCAPED_LETTER.search(text) and all(map(_is_tame, parts))",
        "return False",
        ("tests/test_tokenizer_bombs.py::test_real_ones_run_in_this_process",),
    ),
    Mutation(
        "tokenizer: a panic is an error",
        "edgelm/text/tokenizers_vocabulary.py",
        'if not isinstance(error, Exception) and type(error).__name__ != "PanicException":',
        "if not isinstance(error, Exception):",
        ("tests/test_tokenizer_bombs.py::test_panics_are_errors",),
    ),
    Mutation(
        "chat: a template changes no message",
        "edgelm/text/sandbox.py",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "from jinja2.sandbox import SandboxedEnvironment as ImmutableSandboxedEnvironment",
        (f"{CHAT}::test_messages_stay_as_they_were",),
    ),
    Mutation(
        "chat: a refused system message is folded into the first user turn",
        "edgelm/text/chat_template.py",
        "if (folded := _folded(messages)) is None:",
        "if (folded := None) is None:",
        (
            f"{CHAT}::test_equals_transformers",
            f"{CHAT}::test_system_message_is_folded_only_where_it_can_be",
        ),
    ),
    Mutation(
        "chat: Persimmon's documented prompt",
        "edgelm/models/model_files.py",
        'getattr(self._family, "CHAT_TEMPLATE", None)',
        "None",
        (f"{CHAT}::test_families_template_where_the_files_hold_none",),
    ),
    Mutation(
        "chat: template injections reach nothing",
        "edgelm/text/sandbox.py",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "from jinja2 import Environment as ImmutableSandboxedEnvironment",
        ("tests/test_chat_injections.py::test_injections_are_refused",),
    ),
    Mutation(
        "tokenizer: legacy false keeps spaces from stretches behind special tokens",
        "edgelm/text/sentencepiece_vocabulary.py",
        "(self._later if ids else self._library).encode(part)",
        "self._library.encode(part)",
        (f"{OPTIONS}::test_spaces_before_stretches",),
    ),
    Mutation(
        "tokenizer: add_prefix_space false",
        "edgelm/text/tokenizer_config.py",
        'if config.get("add_prefix_space") is False:',
        "if False:",
        (f"{OPTIONS}::test_spaces_before_stretches",),
    ),
    Mutation(
        "tokenizer: rows decode to a list of texts",
        "edgelm/text/tokenizer.py",
        "if ids and isinstance(ids[0], Sequence):",
        "if False:",
        (f"{OPTIONS}::test_batches_decode_as_lists",),
    ),
    Mutation(
        "tokenizer: BLOOM's pre-tokenizer inside a GGUF",
        "edgelm/text/gguf_tokenizer.py",
        '"bloom": PreTokenizer((_BLOOM,)),',
        '"bloom": PreTokenizer((_GPT2,)),',
        ("tests/test_tokenizer_bloom.py::test_gguf",),
    ),
)
