"""Rows about answers that share rows and steps, and about the server before them."""

from __future__ import annotations

from mutations.row import Mutation

_SCHEDULER = "tests/test_scheduler.py::"
_SERVER = "tests/test_server.py::"
_CONNECTIONS = "tests/test_server_connections.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "scheduler: calls share steps",
        "edgelm/call_lock.py",
        "if before and not (call.shared and all(other.shared for other in before)):",
        "if before:",
        (f"{_SCHEDULER}test_answers_of_two_calls_share_steps",),
    ),
    Mutation(
        "scheduler: a prompt takes little of a step beside answers",
        "edgelm/generation/scheduler.py",
        "        if single:\n            room",
        "        if False:\n            room",
        (f"{_SCHEDULER}test_a_prompt_runs_in_pieces_beside_running_answers",),
    ),
    Mutation(
        "scheduler: an answer waits for its reader",
        "edgelm/generation/scheduler.py",
        "if own.ahead < AHEAD]",
        "]",
        (f"{_SCHEDULER}test_an_answer_runs_little_ahead_of_its_reader",),
    ),
    Mutation(
        "scheduler: a broken step is run again",
        "edgelm/generation/scheduler.py",
        "            answer.run_again()\n",
        "            pass\n",
        (f"{_SCHEDULER}test_a_step_that_breaks_off_is_run_again_for_the_others",),
    ),
    Mutation(
        "scheduler: a shared beginning is copied where its row holds more",
        "edgelm/generation/row_choice.py",
        "return lost > shared and lost > len(held[oldest])",
        "return False",
        (f"{_SCHEDULER}test_a_shared_beginning_is_copied",),
    ),
    Mutation(
        "server: the Host is one of ours",
        "edgelm/server/guard.py",
        "if self._key is None and name not in (*LOOPBACK_NAMES, self._host):",
        "if False:",
        (f"{_SERVER}test_other_sites_are_refused",),
    ),
    Mutation(
        "server: unknown fields are refused",
        "edgelm/server/fields.py",
        "        if self._left:\n",
        "        if False:\n",
        (f"{_SERVER}test_wrong_requests_are_told_why",),
    ),
    Mutation(
        "server: a client that goes frees its row",
        "edgelm/server/desk.py",
        "            stop.set()\n",
        "",
        (f"{_SERVER}test_who_goes_is_not_answered",),
    ),
    Mutation(
        "server: a request has a time in which it must be whole",
        "edgelm/server/connection.py",
        "            self._owed = self.loop.call_later(REQUEST_S, self._late)\n",
        "            pass\n",
        (f"{_CONNECTIONS}test_a_request_that_comes_a_byte_at_a_time",),
    ),
    Mutation(
        "server: who asks nothing makes room for who does",
        "edgelm/server/connection.py",
        "if len(self.connections) >= MOST_CONNECTIONS:",
        "if False:",
        (f"{_CONNECTIONS}test_who_connects_and_asks_nothing_keeps_nobody_out",),
    ),
    Mutation(
        "server: an answer must be read",
        "edgelm/server/connection.py",
        "        self._unread = self.loop.call_later(READ_S, self.drop)\n",
        "",
        (f"{_CONNECTIONS}test_an_answer_that_nobody_reads_leaves_its_row",),
    ),
    Mutation(
        "server: headers have a size",
        "edgelm/server/connection.py",
        "MOST_HEADER_BYTES = 64 << 10",
        "MOST_HEADER_BYTES = 64 << 20",
        (f"{_CONNECTIONS}test_headers_without_end",),
    ),
    Mutation(
        "server: every field is described",
        "edgelm/server/openapi.py",
        '"echo": _TRUTH,',
        "",
        ("tests/test_server_openapi.py::test_every_field_that_is_read_is_described",),
    ),
)
