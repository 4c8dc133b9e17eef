"""Rows about what callers give: values, prompts, schemas, threads, and who reads a stream."""

from __future__ import annotations

from mutations.row import Mutation

_VALUES = "tests/test_wrong_values.py::"
_SCHEMAS = "tests/test_schemas.py::"
_STREAMS = "tests/test_streams.py::"
_THREADS = "tests/test_threads.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "inputs: a value is read by its kind",
        "edgelm/option.py",
        "value if self.kind is None else self.kind(value)",
        "value",
        (f"{_VALUES}test_options_of_an_answer",),
    ),
    Mutation(
        "inputs: bools are no ids",
        "edgelm/values.py",
        "    if _is_bool(value) or _is_array(value):\n",
        "    if _is_array(value):\n",
        (f"{_VALUES}test_what_is_no_prompt_is_refused",),
    ),
    Mutation(
        "inputs: padding is no prompt",
        "edgelm/generation/prompts.py",
        "    if any(0 in ",
        "    if False and any(0 in ",
        (f"{_VALUES}test_what_is_no_prompt_is_refused",),
    ),
    Mutation(
        "inputs: references of a schema count as depth",
        "edgelm/generation/json_schema.py",
        '_target(schema, value.get("$ref"))',
        "None",
        (f"{_SCHEMAS}test_schemas_that_are_refused",),
    ),
    Mutation(
        "inputs: a panic is an error",
        "edgelm/generation/grammar.py",
        ' and type(error).__name__ != "PanicException"',
        "",
        (f"{_SCHEMAS}test_a_panic_of_the_library_is_an_error",),
    ),
    Mutation(
        "inputs: what could not be written is let go",
        "edgelm/cli/main.py",
        "    streams.drop_unwritten()\n    return code\n",
        "    return code\n",
        ("tests/test_standard_streams.py::test_started_without_a_stream",),
    ),
    Mutation(
        "inputs: a stream goes on in another thread",
        "edgelm/generation/text_calls.py",
        "                with batch.paused():\n                    yield piece\n",
        "                yield piece\n",
        (f"{_STREAMS}test_a_request_on_a_thread_that_read_is_served_in_turn",),
    ),
    Mutation(
        "inputs: nesting is known by the frames",
        "edgelm/call_lock.py",
        "        if at_once and reader.stands_here():\n",
        "        if False:\n",
        (f"{_STREAMS}test_nesting_is_refused_at_once",),
    ),
    Mutation(
        "inputs: a quota bounds the threads",
        "edgelm/machine/hardware.py",
        "        bounds.append(int(quota))\n",
        "        pass\n",
        (f"{_THREADS}test_quotas_of_groups_bound_the_default",),
    ),
)
