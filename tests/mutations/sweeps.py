"""Rows about sweeps."""

from __future__ import annotations

from mutations.row import Mutation

HERE = "tests/test_sweep.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "sweep: finished cells are not measured again",
        "edgelm/evaluation/sweep/sweep.py",
        "    if results.get(job.key) is None:\n        return True\n",
        "    return True\n",
        (f"{HERE}::test_a_stopped_sweep_goes_on_and_grows",),
    ),
    Mutation(
        "sweep: a cell's budget is its promise",
        "edgelm/evaluation/sweep/cell.py",
        'settings=self.work.settings | {"budget": budget}',
        "settings=self.work.settings",
        (f"{HERE}::test_a_cell_stays_inside_its_promise",),
    ),
    Mutation(
        "sweep: a cell that fails leaves the others",
        "edgelm/evaluation/sweep/job.py",
        "        except EdgeLMError as error:\n            yield job, error\n",
        "        except ZeroDivisionError as error:\n            raise error\n",
        (f"{HERE}::test_a_failed_cell_is_told_and_the_others_are_kept",),
    ),
    Mutation(
        "sweep: cells run beside others and are not timed",
        "edgelm/evaluation/sweep/cell.py",
        "timed=False",
        "timed=True",
        (f"{HERE}::test_the_table_is_that_of_compare",),
    ),
)
