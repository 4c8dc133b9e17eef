"""Rows about evaluating."""

from __future__ import annotations

from mutations.row import Mutation

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
        "edgelm/evaluation/choices.py",
        "start = prompt.rstrip()",
        "start = prompt",
        ("tests/test_evaluation.py::test_pairs_are_encoded_whole",),
    ),
    Mutation(
        "evaluate: flips count both ways",
        "edgelm/evaluation/job.py",
        "sum(a != b for a, b in",
        "sum(a < b for a, b in",
        ("tests/test_evaluation.py::test_flips_count_both_ways",),
    ),
    Mutation(
        "evaluate: blocks of logits come out of the budget",
        "edgelm/evaluation/divergence.py",
        'lm.ledger.extend("evaluation", working_bytes)',
        "pass",
        ("tests/test_evaluation.py::test_memory_comes_out_of_the_budget",),
    ),
)
