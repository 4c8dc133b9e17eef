"""Rows about the decisions of the plan and those who obey it."""

from __future__ import annotations

from mutations.row import Mutation

TESTS = "tests/test_execution.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "execution: no room for guesses that nobody makes",
        "edgelm/planning/execution.py",
        "if not drafted and not rows_stand_alone(products):",
        "if False:",
        (f"{TESTS}test_nothing_is_planned_for_guesses_that_nobody_makes",),
    ),
    Mutation(
        "execution: a draft model needs no lookup",
        "edgelm/planning/planner.py",
        'if execution.drafter == "lookup":',
        'if execution.drafter != "none":',
        (f"{TESTS}test_nothing_is_planned_for_guesses_that_nobody_makes",),
    ),
    Mutation(
        "execution: streamed steps are not recorded",
        "edgelm/planning/execution.py",
        'ops, recorded = "native", not streams',
        'ops, recorded = "native", True',
        (f"{TESTS}test_steps_that_wait_for_the_disk_are_not_recorded",),
    ),
    Mutation(
        "execution: the engine takes the plan's operations",
        "edgelm/engine/engine.py",
        'if execution.ops == "native":',
        'if plan.device == "cpu":',
        (f"{TESTS}test_what_runs_obeys_the_plan",),
    ),
    Mutation(
        "execution: the model takes the plan's drafter",
        "edgelm/model.py",
        'if plan.execution.drafter == "lookup":',
        "if draft is None:",
        (f"{TESTS}test_what_runs_obeys_the_plan",),
    ),
    Mutation(
        "execution: a load plans once",
        "edgelm/loading.py",
        "    _require_fit(files, plan, chosen)\n    drafting =",
        "    _solved(files, assembled, chosen, drafted=False)\n    drafting =",
        (f"{TESTS}test_a_load_plans_once",),
    ),
    Mutation(
        "solver: reasons follow the order",
        "edgelm/planning/solver.py",
        "for criterion in CRITERIA:",
        "for criterion in reversed(CRITERIA):",
        (f"{TESTS}test_reasons_are_the_first_criterion_that_was_lost_by",),
    ),
    Mutation(
        "solver: layers beside a device are not on disk",
        "edgelm/planning/solver.py",
        'return "on disk" if plan.device == "cpu" else "on the CPU"',
        'return "on disk"',
        (f"{TESTS}test_layers_on_the_host_beside_a_device_are_told_as_such",),
    ),
)
