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
        "if not all_finite(out):",
        "if False:",
        ("tests/test_bad_input.py::test_overflow_names_the_layer",),
    ),
    Mutation(
        "tied weights are stored once",
        "edgelm/weight_plan.py",
        "if projection is self.decoder.head and embed.tied_to_head:",
        "if False:",
        ("tests/test_memory.py::test_what_is_taken_is_what_was_planned",),
    ),
)
