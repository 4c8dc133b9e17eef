"""Rows about what a terminal shows, and about clearing the cache."""

from __future__ import annotations

from mutations.row import Mutation

_BARS = "tests/test_progress.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "progress: the loading bar counts what is packed",
        "edgelm/engine/loader.py",
        "            tensors = self._prepared(product)\n            self._tell(product)\n",
        "            tensors = self._prepared(product)\n",
        (f"{_BARS}test_loading_counts_every_byte",),
    ),
    Mutation(
        "progress: the loading bar ends at all",
        "edgelm/engine/loader.py",
        'self.progress("norms", self.plan.weight_bytes, self.plan.weight_bytes)',
        "pass",
        (f"{_BARS}test_loading_counts_every_byte",),
    ),
    Mutation(
        "progress: nothing where nobody watches",
        "edgelm/cli/console.py",
        "        yield lambda title: None\n        return\n",
        "        pass\n",
        (f"{_BARS}test_how_much_is_said",),
    ),
    Mutation(
        "progress: bars while fetching",
        "edgelm/hub/references.py",
        "_progress_bars(logger.isEnabledFor(logging.INFO))",
        "_progress_bars(False)",
        ("tests/test_hub_server.py::test_bars_while_fetching",),
    ),
    Mutation(
        "doctor: clearing the cache forgets the measured tiles",
        "edgelm/reports/diagnosis.py",
        "profiles = (hardware.PROFILE, kernel_choice.KEPT, TILES, ",
        "profiles = (hardware.PROFILE, kernel_choice.KEPT, ",
        ("tests/test_cli.py::test_clear_cache_deletes_its_own_files_only",),
    ),
)
