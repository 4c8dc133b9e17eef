"""Rows about refusals before harm and about what is learned from runs."""

from __future__ import annotations

from mutations.row import Mutation

ADMISSION = "tests/test_admission.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "admission: memory is asked for again before each weight",
        "edgelm/engine/loader.py",
        "        require_memory(self.plan)\n",
        "",
        (f"{ADMISSION}test_memory_taken_between_plan_and_load_is_refused",),
    ),
    Mutation(
        "admission: memory is asked for again before the buffers",
        "edgelm/model.py",
        "        require_memory(plan)\n",
        "",
        (f"{ADMISSION}test_memory_taken_between_plan_and_load_is_refused",),
    ),
    Mutation(
        "admission: a group's memory that others took",
        "edgelm/budget/admission.py",
        "if missing > available:",
        "if False:",
        ("tests/test_refusals.py::test_another_process_takes_the_memory",),
    ),
    Mutation(
        "plan: what is said where the runtime alone is too much",
        "edgelm/budget/shortage.py",
        "return _runtime_bytes(plan) > plan.budget_bytes",
        "return False",
        ("tests/test_refusals.py::test_nothing_is_taken_for_what_is_refused",),
    ),
    Mutation(
        "admission: the ledger asks the machine too",
        "edgelm/budget/ledger.py",
        "self._require_room(shares, on_host, min(self.headroom_bytes, available))",
        "self._require_room(shares, on_host, self.headroom_bytes)",
        (f"{ADMISSION}test_the_ledger_asks_the_machine_too",),
    ),
    Mutation(
        "admission: what does not fit is not fetched",
        "edgelm/loading.py",
        " and not (offline or _is_here(str(model), revision))",
        " and False",
        (f"{ADMISSION}test_a_hub_model_that_does_not_fit_is_not_fetched",),
    ),
    Mutation(
        "admission: a command refuses before it fetches",
        "edgelm/cli/opening.py",
        "prepare(files, threads=run.threads, **asdict(source), **settings)",
        "prepare(ModelFiles.open(files), threads=run.threads, **settings)",
        (f"{ADMISSION}test_a_hub_model_that_does_not_fit_is_not_fetched",),
    ),
    Mutation(
        "hub: a draft is fetched after the plan",
        "edgelm/loading.py",
        "None if draft is None else _open_cheaply(draft, None, offline, allow_pickle)",
        "None if draft is None else _open(draft, None, offline, allow_pickle)",
        (f"{ADMISSION}test_a_draft_that_does_not_fit_is_not_fetched",),
    ),
    Mutation(
        "hub: tokens are compared when there is a tokenizer",
        "edgelm/loading.py",
        "        drafting = _open(draft, None, offline, allow_pickle)\n    _check_tokens",
        "        pass\n    _check_tokens",
        (f"{ADMISSION}test_a_hub_model_is_planned_once[owner/model]",),
    ),
    Mutation(
        "runs: what was taken is recorded",
        "edgelm/budget/past_runs.py",
        "record(self._folder, self._model, self._plan, peak)",
        "pass",
        (f"{ADMISSION}test_runs_are_kept_and_shown",),
    ),
    Mutation(
        "runs: the correction is a median",
        "edgelm/budget/past_runs.py",
        "int(median(beyond))",
        "max(beyond)",
        (f"{ADMISSION}test_the_correction_is_a_median_and_never_negative",),
    ),
    Mutation(
        "runs: other versions' runs do not count",
        "edgelm/budget/past_runs.py",
        "if run.version == __version__]",
        "if run]",
        (f"{ADMISSION}test_the_correction_is_a_median_and_never_negative",),
    ),
    Mutation(
        "runs: somebody else's memory is not learned",
        "edgelm/budget/past_runs.py",
        "if run.beyond_bytes < _OTHERS_BYTES:",
        "if True:",
        (f"{ADMISSION}test_few_runs_are_kept_and_no_foreign_memory",),
    ),
    Mutation(
        "cgroups: groups around the own one count",
        "edgelm/machine/cgroups.py",
        "for group in (own, *own.parents):",
        "for group in (own,):",
        (f"{ADMISSION}test_limits_of_groups",),
    ),
    Mutation(
        "cgroups: pages of files count as free",
        "edgelm/machine/cgroups.py",
        "int(used) - _file_bytes(folder)",
        "int(used)",
        (f"{ADMISSION}test_limits_of_groups",),
    ),
    Mutation(
        "cgroups: mapped pages are in use",
        "edgelm/machine/cgroups.py",
        "max(0, pages - max(0, in_use))",
        "pages",
        (f"{ADMISSION}test_limits_of_groups",),
    ),
    Mutation(
        "hardware: mapped pages are in use",
        "edgelm/machine/hardware.py",
        ".available) - _mapped_file_bytes()",
        ".available)",
        (f"{ADMISSION}test_mapped_files_are_in_use",),
    ),
    Mutation(
        "load peak: a product is made beside all before it",
        "edgelm/planning/load_peak.py",
        "        held += product.nbytes\n",
        "",
        (f"{ADMISSION}test_the_load_peak_is_that_of_its_worst_moment",),
    ),
    Mutation(
        "load peak: blocks that were read are given back before the layout",
        "edgelm/engine/loader.py",
        "        hardware.release_freed_memory()  # blocks that were read\n",
        "",
        (f"{ADMISSION}test_memory_is_given_back_before_and_after_a_layout",),
    ),
    Mutation(
        "memory: compiled products are not kept for every number of rows",
        "edgelm/loading.py",
        "    hardware.bound_kernel_caches()\n",
        "",
        ("tests/test_promises.py::test_a_load_limits_what_onednn_keeps",),
    ),
)
