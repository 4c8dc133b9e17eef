"""Rows about turns, cancelling, asyncio, fork and closing."""

from __future__ import annotations

from mutations.row import Mutation

_TESTS = "tests/test_lifecycle.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "lifecycle: a waiting call is cancelled",
        "edgelm/generation/scheduler.py",
        "        if waited and not self._closed and all(answer.row < 0 for answer in own):",
        "        if False:",
        (f"{_TESTS}test_a_waiting_call_is_cancelled",),
    ),
    Mutation(
        "lifecycle: a forked child is refused",
        "edgelm/call_lock.py",
        "        return self._process != os.getpid()",
        "        return False",
        (f"{_TESTS}test_a_forked_child_is_told",),
    ),
    Mutation(
        "lifecycle: an interrupted step leaves no prefix",
        "edgelm/generation/scheduler.py",
        "        self.session.forget_rows()\n",
        "",
        (f"{_TESTS}test_what_an_interrupted_step_wrote_is_not_kept",),
    ),
    Mutation(
        "lifecycle: closing ends a half read answer",
        "edgelm/generation/scheduler.py",
        "                    if self._closed or all(",
        "                    if all(",
        (f"{_TESTS}test_closing_in_the_middle_of_an_answer_ends_it",),
    ),
    Mutation(
        "lifecycle: a cancelled task stops the engine",
        "edgelm/asynchronous.py",
        "        stop.set()\n        thread",
        "        thread",
        (f"{_TESTS}test_a_cancelled_task_cancels_its_answer",),
    ),
    Mutation(
        "lifecycle: one thread in a forked child",
        "edgelm/loading.py",
        "    if os.getpid() != _IMPORTED_IN:",
        "    if False:",
        (f"{_TESTS}test_a_forked_child_loads_with_one_thread",),
    ),
)
