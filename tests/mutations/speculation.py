"""Rows about guesses, turns and conversations in files."""

from __future__ import annotations

from mutations.row import Mutation

SPECULATION = "tests/test_speculation.py"
TURNS = "tests/test_turns.py"
CONVERSATION = "tests/test_conversation.py"
DRAFT = "tests/test_draft_model.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "speculation: wrong guesses are undone",
        "edgelm/generation/scheduler.py",
        "undone = cache.truncate(row, length + 1)",
        "undone = True",
        (f"{SPECULATION}::test_every_family_says_what_plain_steps_say[tiny-random-5-gemma2]",),
    ),
    Mutation(
        "speculation: right guesses stay in the row",
        "edgelm/generation/scheduler.py",
        "            cache.advance(row, 1)\n",
        "",
        (f"{SPECULATION}::test_every_family_says_what_plain_steps_say[tiny-random-5-llama]",),
    ),
    Mutation(
        "speculation: a guess is taken only where the model says it",
        "edgelm/generation/scheduler.py",
        "if token != guess or not answer.runs:",
        "if guess is None or not answer.runs:",
        (f"{SPECULATION}::test_every_family_says_what_plain_steps_say[tiny-random-5-llama]",),
    ),
    Mutation(
        "speculation: an end among right guesses ends",
        "edgelm/generation/scheduler.py",
        "if token != guess or not answer.runs:",
        "if token != guess:",
        (f"{SPECULATION}::test_an_end_token_among_right_guesses_ends",),
    ),
    Mutation(
        "speculation: one answer alone is guessed",
        "edgelm/generation/scheduler.py",
        "if guide is None or len(carried) > 1 or len(answer.pending) != 1:",
        "if guide is None or len(answer.pending) != 1:",
        (f"{SPECULATION}::test_drawn_answers_and_batches_are_not_guessed",),
    ),
    Mutation(
        "speculation: an account of what may be lost",
        "edgelm/generation/speculation.py",
        "if hoped - cost > most and cost <= self.balance:",
        "if hoped - cost > most:",
        (f"{SPECULATION}::test_guesses_that_only_seem_certain_cost_little",),
    ),
    Mutation(
        "speculation: another look now and then",
        "edgelm/generation/speculation.py",
        "return best if most > 0 or self._cost(best) <= _EARNED * self._idle else 0",
        "return best if most > 0 else 0",
        (f"{SPECULATION}::test_right_guesses_pay_and_fashions_change",),
    ),
    Mutation(
        "speculation: what one answer won is its own",
        "edgelm/generation/speculation.py",
        "self.balance = min(self.balance, _START)",
        "pass",
        (f"{SPECULATION}::test_an_answer_cannot_spend_what_another_won",),
    ),
    Mutation(
        "speculation: a step judges as many as the plan says",
        "edgelm/planning/execution.py",
        "return min(asked, tokens - 1)",
        "return asked",
        (f"{SPECULATION}::test_the_plan_has_what_guesses_take",),
    ),
    Mutation(
        "lookup: the longest match",
        "edgelm/generation/prompt_lookup.py",
        "places = places[text[places - length] == text[-1 - length]]",
        "places = places[text[places - length] == text[-1 - length]][:1]",
        (f"{SPECULATION}::test_lookup_is_the_search_by_hand",),
    ),
    Mutation(
        "lookup: a text that repeats goes on so",
        "edgelm/generation/prompt_lookup.py",
        "[known[i % len(known)] for i in range(count)]",
        "[known[min(i, len(known) - 1)] for i in range(count)]",
        (f"{SPECULATION}::test_lookup_is_the_search_by_hand",),
    ),
    Mutation(
        "turns: rings go back to the last prompt",
        "edgelm/engine/restore_points.py",
        "                _copy_row(copy, ring, row)\n",
        "                pass\n",
        (f"{TURNS}::test_an_answer_told_otherwise_goes_back_to_its_prompt",),
    ),
    Mutation(
        "turns: a point is of its own text",
        "edgelm/engine/restore_points.py",
        "while known < min(len(marked), length) and marked[known] == held[known]:",
        "while known < min(len(marked), length):",
        (f"{TURNS}::test_a_point_of_another_text_is_not_used",),
    ),
    Mutation(
        "turns: a point knows what was undone before it",
        "edgelm/engine/restore_points.py",
        "rewind(row, len(marked), self._written[row])",
        "rewind(row, len(marked), len(marked))",
        (f"{TURNS}::test_a_point_knows_what_was_undone_before_it",),
    ),
    Mutation(
        "turns: chats are marked",
        "edgelm/generation/scheduler.py",
        "if answer.in_prompt and answer.request.keep_prefix:",
        "if False:",
        (f"{TURNS}::test_an_answer_asked_for_again",),
    ),
    Mutation(
        "conversation: another model is refused",
        "edgelm/generation/conversation.py",
        "        if theirs != ours:\n",
        "        if False:\n",
        (f"{CONVERSATION}::test_another_model_is_refused",),
    ),
    Mutation(
        "conversation: sizes are claims",
        "edgelm/generation/conversation.py",
        "if stored != expected or not cache.reaches(len(facts.ids), facts.written):",
        "if stored.keys() != expected.keys():",
        (f"{CONVERSATION}::test_lying_files",),
    ),
    Mutation(
        "conversation: written beside, then renamed",
        "edgelm/generation/conversation.py",
        "                os.unlink(file.name)\n",
        "                pass\n",
        (f"{CONVERSATION}::test_a_write_that_fails_leaves_the_old_file",),
    ),
    Mutation(
        "draft: the same tokens are asked for",
        "edgelm/loading.py",
        "    check_tokens(draft.name, draft.tokenizer, target.name, target.tokenizer)\n",
        "    pass\n",
        (f"{DRAFT}::test_other_tokens_are_refused",),
    ),
    Mutation(
        "draft: wrong guesses leave its cache",
        "edgelm/generation/draft_model.py",
        "        if not self._cache.truncate(0, shared):\n",
        "        if shared < len(text) - 1:\n",
        (f"{DRAFT}::test_a_draft_runs_only_what_is_new",),
    ),
    Mutation(
        "draft: draws with the large model's settings",
        "edgelm/generation/draft_model.py",
        "self._sample, self._sure = Sampler(sampling), 0",
        "self._sure = 0",
        (f"{DRAFT}::test_the_text_stays[bloom bloom]",),
    ),
    Mutation(
        "draft: its memory is accounted for",
        "edgelm/generation/draft_model.py",
        "        ledger.absorb(PREFIX, own)\n",
        "",
        (f"{DRAFT}::test_both_are_in_the_plan",),
    ),
)
