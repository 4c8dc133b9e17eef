"""Rows about options: their tables, names, flags, types, and what is printed of a plan."""

from __future__ import annotations

from mutations.row import Mutation

_OPTIONS = "tests/test_options.py::"
_VIEW = "tests/test_plan_view.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "options: a range is the table's",
        "edgelm/generation/sampling.py",
        "require_option(name, getattr(self, name))",
        "getattr(self, name)",
        (f"{_OPTIONS}test_values_are_checked_by_the_table",),
    ),
    Mutation(
        "options: a field of the settings has its entry",
        "edgelm/planning/settings.py",
        '    offload: str = "none"\n',
        '    offload: str = "none"\n    colour: str = "auto"\n',
        (f"{_OPTIONS}test_one_table",),
    ),
    Mutation(
        "options: settings are checked by their table",
        "edgelm/planning/settings.py",
        "option.require(name, getattr(self, name))",
        "getattr(self, name)",
        ("tests/test_solver.py::test_counts_that_are_none",),
    ),
    Mutation(
        "options: max_tokens is accepted",
        "edgelm/option.py",
        '_ACCEPTED = {"max_tokens": "max_new_tokens"}',
        "_ACCEPTED: dict[str, str] = {}",
        (f"{_OPTIONS}test_max_tokens_is_max_new_tokens",),
    ),
    Mutation(
        "options: one option is not given under two names",
        "edgelm/option.py",
        "            if name in found:\n",
        "            if False:\n",
        (f"{_OPTIONS}test_max_tokens_is_max_new_tokens",),
    ),
    Mutation(
        "options: foreign names are known",
        "edgelm/option.py",
        "meant = _MEANT.get(name) or ",
        "meant = ",
        (f"{_OPTIONS}test_a_wrong_option_is_told_the_right_one",),
    ),
    Mutation(
        "options: a misspelled name is told the nearest",
        "edgelm/option.py",
        "n=1, cutoff=0.7)",
        "n=1, cutoff=1.0)",
        (f"{_OPTIONS}test_a_wrong_setting_is_told_the_right_one",),
    ),
    Mutation(
        "options: an argument of another call is named",
        "edgelm/option.py",
        "    if name in places:\n",
        "    if False:\n",
        (f"{_OPTIONS}test_an_argument_of_another_call_is_named",),
    ),
    Mutation(
        "options: forward refuses unknown names",
        "edgelm/tasks/forward_options.py",
        "in checked(given, FORWARD).items()",
        "in {k: v for k, v in given.items() if k in table}.items()",
        (f"{_OPTIONS}test_an_argument_of_another_call_is_named",),
    ),
    Mutation(
        "options: evaluate refuses unknown names before it reads anything",
        "edgelm/evaluation/evaluate.py",
        "    chosen = read_settings(settings)\n",
        "    chosen = read_settings({})\n",
        (f"{_OPTIONS}test_a_wrong_setting_is_told_the_right_one",),
    ),
    Mutation(
        "options: 4k is 4096",
        "edgelm/values.py",
        "(1024 if match[2] else 1)",
        "(1000 if match[2] else 1)",
        (f"{_OPTIONS}test_counts_and_sizes",),
    ),
    Mutation(
        "options: 6G is 6GiB",
        "edgelm/budget/units.py",
        '"g": 1 << 30, ',
        '"g": 10**9, ',
        (f"{_OPTIONS}test_counts_and_sizes",),
    ),
    Mutation(
        "options: errors on the command line name flags",
        "edgelm/cli/commands.py",
        "error.args = (_with_flags(str(error), given, own.params if own else ()),)",
        "pass",
        (f"{_OPTIONS}test_errors_on_the_command_line_name_flags",),
    ),
    Mutation(
        "options: errors keep the names of files",
        "edgelm/cli/commands.py",
        " and option.name not in typed:",
        ":",
        (f"{_OPTIONS}test_errors_on_the_command_line_keep_the_names_of_files",),
    ),
    Mutation(
        "options: ids need no grammar",
        "edgelm/generation/options.py",
        "None if schema is grammar is None else constraint(schema, grammar)",
        "constraint(schema, grammar)",
        (f"{_OPTIONS}test_ids_need_no_tokenizer_and_no_grammar",),
    ),
    Mutation(
        "options: help lists every allowed value",
        "edgelm/planning/setting_table.py",
        '"auto", *BACKENDS)',
        '"auto", *BACKENDS[:3])',
        (f"{_OPTIONS}test_help_lists_every_allowed_value",),
    ),
    Mutation(
        "options: help is in panels",
        "edgelm/cli/options.py",
        "    single.sort(key=_panel_rank)",
        "    pass",
        (f"{_OPTIONS}test_help_shows_panels_and_examples",),
    ),
    Mutation(
        "options: a type checker knows the calls",
        "edgelm/generation/text_calls.py",
        "    def request(self, prompt: Prompt, **options: Unpack[GenerateOptions])",
        "    def request(self, prompt: Prompt, **options: Any)",
        ("tests/test_typing.py::test_a_type_checker_knows_the_calls",),
    ),
    Mutation(
        "plan view: a page, not all 200 choices",
        "edgelm/budget/plan_view.py",
        'if all_of_them or other["scheme"] not in shown:',
        "if True:",
        (f"{_VIEW}test_a_plan_prints_in_a_page",),
    ),
    Mutation(
        "plan view: no line is too wide",
        "edgelm/budget/plan_view.py",
        "width=TEXT_WIDTH, ",
        "width=200, ",
        (f"{_VIEW}test_a_plan_prints_in_a_page",),
    ),
    Mutation(
        "plan view: HTML is escaped",
        "edgelm/budget/plan_view.py",
        "{escape(shown)}",
        "{shown}",
        (f"{_VIEW}test_notebooks_get_tables",),
    ),
    Mutation(
        "plan view: repr is short",
        "edgelm/budget/plan.py",
        'return f"<Plan: {plan_view.summary(self)}>"',
        "return plan_view.text(self)",
        (f"{_VIEW}test_a_plan_s_repr_is_one_short_line",),
    ),
    Mutation(
        "plan view: a report tells its notes",
        "quant/report.py",
        "            if module.note:\n",
        "            if False:\n",
        (f"{_VIEW}test_a_model_and_its_report_print",),
    ),
)
