"""Rows about the comparison with other engines."""

from __future__ import annotations

from mutations.row import Mutation

HERE = "tests/test_compare.py"
PARTS = "benches/comparison"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "compare: a ratio is the median of pairs",
        f"{PARTS}/turns.py",
        '["ratio"] = _short(median(pairs))',
        '["ratio"] = _short(median(beside[name].values()) / median(numbers))',
        (f"{HERE}::test_ratio_is_the_median_of_pairs_of_one_round",),
    ),
    Mutation(
        "compare: rounds begin with the next one",
        f"{PARTS}/turns.py",
        "first = round_ % len(names)",
        "first = 0",
        (f"{HERE}::test_everybody_has_one_turn_a_round_and_begins_once",),
    ),
    Mutation(
        "compare: we have a turn beside each other one, before and after",
        f"{PARTS}/run.py",
        "if round_ % 2 == 0 else",
        "if True else",
        (f"{HERE}::test_who_is_not_there_says_why_and_the_others_are_measured",),
    ),
    Mutation(
        "compare: torch's own share is taken off a start",
        f"{PARTS}/process.py",
        '{"import_torch_s": self.seconds_alive()}',
        '{"import_torch_s": 0.0}',
        (f"{HERE}::test_what_torch_alone_costs_is_measured_in_the_process_it_is_taken_from",),
    ),
    Mutation(
        "compare: torch's share is told before the engine is loaded",
        f"{PARTS}/process.py",
        "self.about = self._answer(LOAD_LIMIT_S) | base",
        "self.about = self._answer(LOAD_LIMIT_S) | base\n"
        '        self.about["import_torch_s"] += 1e6',
        (f"{HERE}::test_what_torch_alone_costs_is_measured_in_the_process_it_is_taken_from",),
    ),
    Mutation(
        "compare: who is hopeless has one turn",
        f"{PARTS}/turns.py",
        "return first[name] * _HOPELESS < max(first.values())",
        "return False",
        (f"{HERE}::test_who_is_hopeless_has_one_turn",),
    ),
    Mutation(
        "compare: the fastest settings take part",
        f"{PARTS}/run.py",
        "best = max(tried, key",
        "best = min(tried, key",
        (f"{HERE}::test_who_is_not_there_says_why_and_the_others_are_measured",),
    ),
    Mutation(
        "compare: who drops out is named",
        f"{PARTS}/run.py",
        "            self.missing[name] = str(why)\n",
        '            self.missing[name] = ""\n',
        (f"{HERE}::test_who_is_not_there_says_why_and_the_others_are_measured",),
    ),
    Mutation(
        "compare: random blocks have sane scales",
        f"{PARTS}/gguf_models.py",
        '"Q8_0": ((0, 1 / 74),)',
        '"Q8_0": ((0, 1 / 7),)',
        (f"{HERE}::test_files_of_random_blocks_load_and_equal",),
    ),
    Mutation(
        "compare: a lookup table is not read",
        f"{PARTS}/gguf_models.py",
        '"bytes_per_token": nbytes - table,',
        '"bytes_per_token": nbytes,',
        (f"{HERE}::test_sizes_leave_a_mere_lookup_table_out",),
    ),
)
