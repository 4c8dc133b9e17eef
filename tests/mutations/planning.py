"""Rows about plans."""

from __future__ import annotations

from mutations.row import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "plan: a budget that is too small",
        "edgelm/entry.py",
        "if not made.fits:",
        "if False:",
        ("tests/test_memory.py::test_a_plan_that_does_not_fit_is_refused_with_the_plan",),
    ),
    Mutation(
        "plan: overrides that name nothing",
        "edgelm/settings.py",
        "if unused:",
        "if False:",
        ("tests/test_bad_input.py::test_recipes",),
    ),
    Mutation(
        "load: NaN weights",
        "edgelm/loading.py",
        "if not bool(torch.isfinite(vector).all()):",
        "if False:",
        ("tests/test_bad_input.py::test_nan_weights",),
    ),
    Mutation(
        "engine: a layer that overflows is named",
        "edgelm/engine.py",
        "            finite = all_finite(out)",
        "            finite = True",
        ("tests/test_bad_input.py::test_overflow_names_the_layer",),
    ),
    Mutation(
        "tied weights are stored once",
        "edgelm/weight_plan.py",
        "if projection is self.decoder.head and embed.tied_to_head:",
        "if False:",
        ("tests/test_memory.py::test_what_is_taken_is_what_was_planned",),
    ),
    Mutation(
        "solver: accuracy comes before speed",
        "edgelm/solver.py",
        "return (*first, streamed, accuracy, plan.moved_bytes_per_token)",
        "return (*first, streamed, plan.moved_bytes_per_token)",
        ("tests/test_solver.py::test_the_most_accurate_that_fits",),
    ),
    Mutation(
        "solver: of equals the fastest",
        "edgelm/solver.py",
        "return (*first, streamed, accuracy, plan.moved_bytes_per_token)",
        "return (*first, streamed, accuracy)",
        ("tests/test_solver.py::test_the_fastest_of_equals_is_taken",),
    ),
    Mutation(
        "solver: the context is shortened last",
        "edgelm/solver.py",
        "bool(streamed), -plan.context, ",
        "bool(streamed), 0, ",
        ("tests/test_solver.py::test_the_context_is_shortened_last",),
    ),
    Mutation(
        "solver: what fits comes first",
        "edgelm/solver.py",
        "if not plan.fits:\n        device",
        "if False:\n        device",
        ("tests/test_solver.py::test_the_most_accurate_that_fits",),
    ),
    Mutation(
        "solver: a quantized file keeps its scheme",
        "edgelm/solver.py",
        "if keeps_its_scheme(planner.decoder, planner.names):",
        "if False:",
        ("tests/test_solver.py::test_a_quantized_file_keeps_its_scheme",),
    ),
    Mutation(
        "solver: the reference's floats are moved too",
        "edgelm/weight_plan.py",
        'if product.kernel == "reference" and not',
        "if False and not",
        ("tests/test_solver.py::test_the_fastest_of_equals_is_taken",),
    ),
    Mutation(
        "budget: numbers beyond any machine",
        "edgelm/memory.py",
        "if 1 <= budget < _LARGEST_BUDGET:",
        "if budget >= 1:",
        ("tests/test_solver.py::test_budgets_that_are_no_amount",),
    ),
    Mutation(
        "config: layers beyond any model",
        "edgelm/config.py",
        "_MAX_LAYERS = 1 << 12",
        "_MAX_LAYERS = 1 << 13",
        ("tests/test_solver.py::test_more_layers_than_any_model_has",),
    ),
    Mutation(
        "hub: a plan fetches headers only",
        "edgelm/entry.py",
        "files = _open(model, revision, offline, allow_pickle, headers_only=True)",
        "files = _open(model, revision, offline, allow_pickle)",
        ("tests/test_hub_headers.py::test_a_folder_of_floats",),
    ),
    Mutation(
        "hub: a header that is longer than the first read",
        "edgelm/hub_headers.py",
        "if end > FIRST_BYTES:",
        "if False:",
        ("tests/test_hub_headers.py::test_shards_and_long_headers",),
    ),
    Mutation(
        "hub: settings of packed weights are fetched",
        "edgelm/hub_headers.py",
        "        if quantized:\n",
        "        if False:\n",
        ("tests/test_hub_headers.py::test_packed_folders",),
    ),
    Mutation(
        "hub: a server without ranges is hung up on",
        "edgelm/hub_headers.py",
        "if len(found) >= stop - start:",
        "if False:",
        ("tests/test_hub_headers.py::test_a_server_without_ranges",),
    ),
)
