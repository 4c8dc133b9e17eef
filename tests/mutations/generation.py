"""Rows about the generation loop."""

from __future__ import annotations

from mutations.row import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "generate: prompts run in chunks of the plan",
        "edgelm/generate.py",
        "ids = answer.pending[:room]",
        "ids = answer.pending[: room - 1] or answer.pending[:room]",
        ("tests/test_generate.py::test_a_chunk_is_filled",),
    ),
    Mutation(
        "generate: end tokens of the config",
        "edgelm/model.py",
        "self.tokenizer.eos_ids | frozenset(self.config.eos_ids)",
        "self.tokenizer.eos_ids",
        ("tests/test_generate.py::test_end_tokens_are_a_union",),
    ),
    Mutation(
        "generate: stop strings across pieces",
        "edgelm/generate.py",
        "self._held[: len(self._held) - keep]",
        "self._held",
        ("tests/test_generate.py::test_stop_strings_across_pieces",),
    ),
    Mutation(
        "generate: an event cancels",
        "edgelm/generate.py",
        "while self._fill_rows() and not self.cancelled():",
        "while self._fill_rows():",
        ("tests/test_generate.py::test_cancelled_within_one_token_and_the_next_call_works",),
    ),
    Mutation(
        "generate: a kept prefix is not run again",
        "edgelm/generate.py",
        "if request.keep_prefix or request.shares_prompt:\n            prompt",
        "if request.shares_prompt:\n            prompt",
        ("tests/test_generate.py::test_a_kept_prefix_is_not_run_again",),
    ),
    Mutation(
        "generate: rows of finished answers are given on",
        "edgelm/generate.py",
        "if row not in busy]",
        "]",
        ("tests/test_generate.py::test_rows_of_a_batch_get_what_each_gets_alone",),
    ),
    Mutation(
        "sampling: numbers by counter",
        "edgelm/sampling.py",
        "counter=[0, index, 0, 0]",
        "counter=[0, 0, 0, 0]",
        ("tests/test_sampling.py::test_random_numbers_depend_on_their_counter_alone",),
    ),
    Mutation(
        "sampling: top-p keeps the token that crosses",
        "edgelm/processors.py",
        "order[before >= self.mass]",
        "order[before + ordered.softmax(0) >= self.mass]",
        ("tests/test_sampling.py::test_drawn_tokens_follow_the_definition",),
    ),
    Mutation(
        "forward: padding is taken out",
        "edgelm/forward.py",
        "spans.append((int(columns[0]), len(columns)))",
        "spans.append((0, width))",
        ("tests/test_llama_parity.py::test_padded_rows",),
    ),
)
