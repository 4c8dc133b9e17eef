"""Rows about the generation loop."""

from __future__ import annotations

from mutations.row import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "generate: prompts run in chunks of the plan",
        "edgelm/generation/batch.py",
        "ids = answer.pending[:room]",
        "ids = answer.pending[: room - 1] or answer.pending[:room]",
        ("tests/test_generate.py::test_a_chunk_is_filled",),
    ),
    Mutation(
        "generate: end tokens of the config",
        "edgelm/generation/text_calls.py",
        "self.tokenizer.eos_ids | frozenset(self.config.eos_ids)",
        "self.tokenizer.eos_ids",
        ("tests/test_generate.py::test_end_tokens_are_a_union",),
    ),
    Mutation(
        "generate: stop strings with special tokens",
        "edgelm/generation/writer.py",
        "if self._signs and self._tokenizer.is_special(token):",
        "if False:",
        ("tests/test_special_tokens.py::test_stop_strings_with_special_tokens",),
    ),
    Mutation(
        "generate: ids that stop",
        "edgelm/generation/request.py",
        "return token in end_ids or token in self.stop_token_ids",
        "return token in end_ids",
        ("tests/test_special_tokens.py::test_ids_that_stop_have_no_text",),
    ),
    Mutation(
        "generate: special tokens of a prompt are read",
        "edgelm/generation/text_calls.py",
        "parse_special=parse_special is not False",
        "parse_special=bool(parse_special)",
        ("tests/test_special_tokens.py::test_special_tokens_of_a_prompt",),
    ),
    Mutation(
        "generate: stop strings across pieces",
        "edgelm/generation/writer.py",
        "self.held[: len(self.held) - keep]",
        "self.held",
        ("tests/test_generate.py::test_stop_strings_across_pieces",),
    ),
    Mutation(
        "generate: an event cancels",
        "edgelm/generation/batch.py",
        "while self._fill_rows() and not self.cancelled():",
        "while self._fill_rows():",
        ("tests/test_generate.py::test_cancelled_within_one_token_and_the_next_call_works",),
    ),
    Mutation(
        "generate: a kept prefix is not run again",
        "edgelm/generation/batch.py",
        "if request.keep_prefix or request.shares_prompt:\n            prompt",
        "if request.shares_prompt:\n            prompt",
        ("tests/test_generate.py::test_a_kept_prefix_is_not_run_again",),
    ),
    Mutation(
        "generate: rows of finished answers are given on",
        "edgelm/generation/batch.py",
        "if row not in busy]",
        "]",
        ("tests/test_generate.py::test_rows_of_a_batch_get_what_each_gets_alone",),
    ),
    Mutation(
        "sampling: numbers by counter",
        "edgelm/generation/sampling.py",
        "counter=[0, index, 0, 0]",
        "counter=[0, 0, 0, 0]",
        ("tests/test_sampling.py::test_random_numbers_depend_on_their_counter_alone",),
    ),
    Mutation(
        "sampling: top-p keeps the token that crosses",
        "edgelm/generation/processors.py",
        "order, before >= self.mass)",
        "order, before + ordered.double().softmax(0) >= self.mass)",
        ("tests/test_sampling.py::test_drawn_tokens_follow_the_definition",),
    ),
    Mutation(
        "sampling: what the library does not filter is drawn by the definition",
        "edgelm/generation/sampling.py",
        "drawn = own.temperature != 0 and own.typical_p == 1",
        "drawn = own.temperature != 0",
        ("tests/test_processors.py::test_draws_follow_the_known_distribution",),
    ),
    Mutation(
        "sampling: min-p reaches the library",
        "edgelm/generation/sampling.py",
        "min_p=own.min_p,",
        "min_p=0.0,",
        ("tests/test_sampling.py::test_native_draws_are_the_definitions",),
    ),
    Mutation(
        "forward: padding is taken out",
        "edgelm/tasks/forward.py",
        "spans.append((int(columns[0]), len(columns)))",
        "spans.append((0, width))",
        ("tests/test_llama_parity.py::test_padded_rows",),
    ),
    Mutation(
        "sampling: min-p is a share of the likeliest",
        "edgelm/generation/processors.py",
        "self.share * likely.max()",
        "self.share",
        ("tests/test_sampling.py::test_native_draws_are_the_definitions",),
    ),
    Mutation(
        "sampling: typical is near the expected surprise",
        "edgelm/generation/processors.py",
        "(surprise - (surprise * likely).nansum()).abs()",
        "surprise",
        ("tests/test_processors.py::test_draws_follow_the_known_distribution",),
    ),
    Mutation(
        "sampling: repetition counts the prompt",
        "edgelm/generation/processors.py",
        "{*ids.prompt, *ids.new}",
        "{*ids.new}",
        ("tests/test_processors.py::test_processors_are_transformers_own",),
    ),
    Mutation(
        "sampling: frequency counts, presence does not",
        "edgelm/generation/processors.py",
        "self.frequency * counts",
        "self.frequency",
        ("tests/test_processors.py::test_presence_and_frequency_count_the_answer_alone",),
    ),
    Mutation(
        "sampling: n answers run their prompt once",
        "edgelm/generation/batch.py",
        "                    self.cache.copy_row(other.row, row)\n"
        "                    self.held[row][:] = self.held[other.row]\n",
        "                    self.held[row].clear()\n",
        ("tests/test_answers.py::test_n_answers_share_one_prompt",),
    ),
    Mutation(
        "sampling: log-probabilities before processors",
        "edgelm/generation/answer.py",
        "own = None if count is None else logits.double().log_softmax(0)\n"
        "        token = self.sample(logits, best, self.ids)",
        "token = self.sample(logits, best, self.ids)\n"
        "        own = None if count is None else logits.double().log_softmax(0)",
        ("tests/test_answers.py::test_logprobs_are_of_the_models_own_distribution",),
    ),
    Mutation(
        "sampling: beams are copied to rows of their own",
        "edgelm/generation/beams.py",
        "self.cache.copy_row(beam.row, row)",
        "self.cache.copy_row(row, row)",
        ("tests/test_answers.py::test_beams_are_transformers_own",),
    ),
    Mutation(
        "sampling: a schema's tokens spell it exactly",
        "edgelm/generation/grammar.py",
        'return ids if b"".join(self.tokens[i] for i in ids) == data else self._greedy(data)',
        "return ids",
        ("tests/test_constraint.py::test_every_kind_of_tokenizer",),
    ),
    Mutation(
        "sampling: an end token only where the grammar may end",
        "edgelm/generation/grammar.py",
        "= self._matcher.is_accepting()",
        "= True",
        ("tests/test_constraint.py::test_answers_to_random_schemas_validate",),
    ),
)
