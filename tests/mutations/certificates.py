"""Rows about certificates, the harness's model class and tasks with written answers."""

from __future__ import annotations

from mutations.row import Mutation

_TESTS = "tests/test_certificate.py::"
_HARNESS = "tests/test_harness.py::"
_WRITTEN = "tests/test_written_tasks.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "certificate: parts that were left in floats run in floats",
        "edgelm/evaluation/layerwise.py",
        'if settings.quant == "auto" and not keeps_its_scheme(decoder, alone.names):',
        "if False:",
        (f"{_TESTS}test_parts_left_in_floats_run_in_floats",),
    ),
    Mutation(
        "certificate: a head without products asks for the library",
        "edgelm/ops/native.py",
        "        and native.missing() is None\n",
        "",
        (f"{_TESTS}test_a_head_that_is_the_embedding_needs_no_library",),
    ),
    Mutation(
        "certificate: windows are spread over the text",
        "edgelm/evaluation/certify.py",
        "firsts = [number * found // windows * window for number in range(windows)]",
        "firsts = [number * window for number in range(windows)]",
        (f"{_TESTS}test_windows_are_spread_over_a_text_that_no_calibration_reads",),
    ),
    Mutation(
        "certificate: a worse result is not shipped",
        "edgelm/quantization/certification.py",
        "if self.max_kld is not None and found.kld_mean > self.max_kld:",
        "if False:",
        (f"{_TESTS}test_a_worse_result_is_not_shipped",),
    ),
    Mutation(
        "certificate: the worst matrix is the one with the largest error for its kind",
        "edgelm/quantization/certification.py",
        "shares[name] = each * 10 ** (-module.error_db / 10)",
        "shares[name] = each",
        (f"{_TESTS}test_a_worse_result_is_not_shipped",),
    ),
    Mutation(
        "verify: other weights are noticed",
        "edgelm/evaluation/verify.py",
        '_hashes("weights_sha256", stated, files.sha256)',
        '_hashes("weights_sha256", stated, stated.weights_sha256)',
        (f"{_TESTS}test_verify_notices_other_weights",),
    ),
    Mutation(
        "verify: another figure is not the same",
        "edgelm/evaluation/verify.py",
        "abs(found - told) <= absolute + relative * abs(told)",
        "bool(absolute + relative)",
        (f"{_TESTS}test_verify_measures_again",),
    ),
    Mutation(
        "harness: each token of a long text is predicted after as many as fit",
        "edgelm/evaluation/harness.py",
        "every[max(0, stop - size) : stop + 1]",
        "every[start : stop + 1]",
        (f"{_HARNESS}test_rolling_predicts_each_token_once",),
    ),
    Mutation(
        "harness: quant=none on its command line is no default",
        "edgelm/evaluation/harness.py",
        '{name: "none" if value is None else value for name, value in given.items()}',
        "dict(given)",
        (f"{_HARNESS}test_it_is_registered_and_loads_by_arguments",),
    ),
    Mutation(
        "tasks: an example is not asked",
        "edgelm/evaluation/few_shot.py",
        "return examples, [item for place, item in enumerate(items) if place not in taken]",
        "return examples, list(items)",
        (f"{_WRITTEN}test_examples_depend_on_the_seed_alone",),
    ),
    Mutation(
        "tasks: examples are of the question's language",
        "edgelm/evaluation/answering.py",
        "lambda q: q.language, str(path)",
        'lambda q: "en", str(path)',
        (f"{_WRITTEN}test_prompts_begin_with_examples_of_their_language",),
    ),
)
