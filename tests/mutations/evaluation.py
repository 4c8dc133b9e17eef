"""Rows about evaluating."""

from __future__ import annotations

from mutations.row import Mutation

_TESTS = "tests/test_evaluation.py::"
_LAYERS = "tests/test_layerwise.py::"
_PAIRS = "tests/test_continuation.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "evaluate: the divergence is KL(baseline || model)",
        "edgelm/evaluation/divergence.py",
        "torch.sub(p, q, out=q)",
        "torch.sub(q, p, out=q)",
        ("tests/test_evaluation.py::test_figures_by_their_definitions",),
    ),
    Mutation(
        "evaluate: the baseline's head is capped",
        "edgelm/evaluation/baseline.py",
        "return logits if facts.softcap is None else softcap_(logits, facts.softcap)",
        "return logits",
        ("tests/test_evaluation.py::test_figures_by_their_definitions",),
    ),
    Mutation(
        "evaluate: a baseline of another text is refused",
        "edgelm/evaluation/baseline.py",
        "if held != given:",
        'if held != given and what != "text":',
        ("tests/test_evaluation.py::test_a_baseline_file_is_kept_and_checked",),
    ),
    Mutation(
        "evaluate: spaces at a prompt's end belong to the continuation",
        "edgelm/text/continuation.py",
        "start = tokenizer.encode(context.rstrip(), **how)",
        "start = tokenizer.encode(context, **how)",
        (f"{_PAIRS}test_spaces_go_over",),
    ),
    Mutation(
        "score: a token that joins both texts is not the continuation's",
        "edgelm/text/continuation.py",
        "if whole[: len(start)] != start or len(whole) == len(start):",
        "if len(whole) == len(start):",
        (f"{_PAIRS}test_a_join_within_a_word_is_scored_by_itself",),
    ),
    Mutation(
        "score: something stands before the first id",
        "edgelm/text/continuation.py",
        "    if not start:\n",
        "    if False:\n",
        (f"{_PAIRS}test_an_empty_context_needs_bos",),
    ),
    Mutation(
        "score: a text that goes on has no EOS",
        "edgelm/text/tokenizer.py",
        "        return prefix + ids\n",
        "        return [*prefix, *ids, *self._special.suffix]\n",
        (f"{_PAIRS}test_a_text_that_goes_on_never_ends_in_eos",),
    ),
    Mutation(
        "score: greedy is what is likeliest",
        "edgelm/tasks/scoring.py",
        "all(best for _, best in judged)",
        "any(best for _, best in judged)",
        (f"{_PAIRS}test_side_by_side_is_as_alone",),
    ),
    Mutation(
        "score: choices continue what they share",
        "edgelm/tasks/scoring.py",
        "self._rows.restore(row, snapshot)",
        "self._rows.truncate(row, 0)",
        (f"{_PAIRS}test_side_by_side_is_as_alone",),
    ),
    Mutation(
        "evaluate: a window begins as a prompt does",
        "edgelm/evaluation/passage.py",
        "            tokens[:, 0] = bos\n",
        "            pass\n",
        (f"{_TESTS}test_figures_by_their_definitions",),
    ),
    Mutation(
        "evaluate: a baseline of windows that begin otherwise is refused",
        "edgelm/evaluation/baseline.py",
        "_first_id(self.bos), _first_id(wanted.bos)",
        "0, 0",
        (f"{_TESTS}test_a_baseline_of_another_protocol_is_refused",),
    ),
    Mutation(
        "evaluate: choices beyond the context are cut and said",
        "edgelm/evaluation/choices.py",
        "    if changed:\n",
        "    if False:\n",
        (f"{_TESTS}test_choices_beyond_the_context_are_cut",),
    ),
    Mutation(
        "evaluate: flips count both ways",
        "edgelm/evaluation/inputs.py",
        "sum(a != b for a, b in",
        "sum(a < b for a, b in",
        ("tests/test_evaluation.py::test_flips_count_both_ways",),
    ),
    Mutation(
        "evaluate: blocks of logits come out of the budget",
        "edgelm/evaluation/divergence.py",
        "lm.ledger.extend({PartName.EVALUATION: needed})",
        "pass",
        ("tests/test_evaluation.py::test_memory_comes_out_of_the_budget",),
    ),
    Mutation(
        "evaluate: a layer takes what the one before it wrote",
        "edgelm/evaluation/layerwise.py",
        "rows.read(place, len(piece)) if index else piece",
        "piece",
        (f"{_LAYERS}test_hidden_states_are_the_whole_models",),
    ),
    Mutation(
        "evaluate: each window of the baseline starts from nothing",
        "edgelm/evaluation/layerwise.py",
        "        cache.truncate(0, 0)\n",
        "",
        (f"{_LAYERS}test_hidden_states_are_the_whole_models",),
    ),
    Mutation(
        "evaluate: BLOOM's embedding is normed once",
        "edgelm/evaluation/layerwise.py",
        "one.embed_norm if first else None",
        "one.embed_norm",
        (f"{_LAYERS}test_hidden_states_are_the_whole_models",),
    ),
    Mutation(
        "evaluate: each tail follows the shared ids alone",
        "edgelm/evaluation/layerwise.py",
        "            cache.restore(0, held)\n",
        "",
        (f"{_LAYERS}test_choices_are_as_likely_as_in_the_whole_model",),
    ),
    Mutation(
        "evaluate: layers of the baseline are dropped",
        "edgelm/evaluation/layerwise.py",
        "    engine = layer_engine(files, index, settings)\n",
        "    engine = layer_engine(files, index, settings)\n"
        '    globals().setdefault("kept", []).append(engine)\n',
        (f"{_LAYERS}test_a_baseline_beyond_the_budget_stays_within_it",),
    ),
    Mutation(
        "evaluate: a layer beyond the budget is refused",
        "edgelm/evaluation/layerwise.py",
        "if not plan.fits:",
        "if False:",
        (f"{_LAYERS}test_a_layer_beyond_the_budget_is_refused",),
    ),
    Mutation(
        "evaluate: blocks grow as far as the budget allows",
        "edgelm/evaluation/divergence.py",
        "        block *= 2\n",
        "        break\n",
        (f"{_TESTS}test_the_baselines_head_is_read_once_for_many_tokens",),
    ),
    Mutation(
        "evaluate: the noise floor of words",
        "edgelm/evaluation/divergence.py",
        "word_ppl_baseline=math.exp(own * per_word)",
        "word_ppl_baseline=math.exp(own)",
        (f"{_TESTS}test_figures_by_their_definitions",),
    ),
    Mutation(
        "evaluate: the noise floor of tasks is that of bfloat16",
        "edgelm/evaluation/make_baseline.py",
        '"bfloat16", NOISY)',
        '"bfloat16", EXACT)',
        (f"{_TESTS}test_tasks_have_a_noise_floor",),
    ),
    Mutation(
        "evaluate: a quantized folder's baseline is of its source",
        "edgelm/evaluation/evaluate.py",
        "return files.source_sha256 if stored else files.sha256",
        "return None if stored else files.sha256",
        (f"{_TESTS}test_a_folder_knows_what_it_was_quantized_from",),
    ),
    Mutation(
        "evaluate: a source at second hand is the first one",
        "edgelm/quantization/conversion.py",
        "source_sha256=files.source_sha256 or files.sha256",
        "source_sha256=files.sha256",
        (f"{_TESTS}test_a_folder_knows_what_it_was_quantized_from",),
    ),
    Mutation(
        "evaluate: a window beyond the text is refused",
        "edgelm/evaluation/passage.py",
        "if not 2 <= window <= len(ids):",
        "if not 0 < window:",
        (f"{_TESTS}test_a_window_beyond_the_text_is_refused",),
    ),
)
