"""Rows about caches, windows and memory."""

from __future__ import annotations

from mutations.row import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "cache: rows are separate",
        "edgelm/ops/cache.py",
        "row * self.slots + p % self.slots",
        "p % self.slots",
        ("tests/test_cache.py::test_rows_of_different_lengths_in_one_step",),
    ),
    Mutation(
        "cache: truncate forgets",
        "edgelm/ops/cache.py",
        "        self._lengths[row] = length\n",
        "",
        ("tests/test_cache.py::test_random_chunks_truncations_and_restores",),
    ),
    Mutation(
        "cache: restore brings the keys back",
        "edgelm/ops/cache.py",
        "target.copy_(snapshot.tensors[name])",
        "pass",
        ("tests/test_cache.py::test_a_snapshot_brings_back_keys_and_values",),
    ),
    Mutation(
        "cache: a full row is refused",
        "edgelm/ops/cache.py",
        "if wanted > self.context:",
        "if False:",
        ("tests/test_cache.py::test_a_full_row_is_refused_and_unchanged",),
    ),
    Mutation(
        "memory: what is not planned cannot be taken",
        "edgelm/budget/ledger.py",
        "if self._taken[share] + nbytes > self._planned[share]:",
        "if False:",
        ("tests/test_memory.py::test_ledger_refuses_what_is_not_planned",),
    ),
    Mutation(
        "memory: the cache is planned in its own dtype",
        "edgelm/ops/cache_sizes.py",
        "config.head_size * dtype.itemsize",
        "config.head_size * 4",
        ("tests/test_cache.py::test_bytes_are_the_formula",),
    ),
    Mutation(
        "window: slots of a ring",
        "edgelm/ops/cache_sizes.py",
        "min(context, window + chunk - 1)",
        "min(context, window + chunk - 2)",
        ("tests/test_window_cache.py::test_every_query_sees_exactly_its_window",),
    ),
    Mutation(
        "window: a ring knows what it lost",
        "edgelm/ops/cache.py",
        "if length and needed < written - store.slots:",
        "if False:",
        ("tests/test_window_cache.py::test_a_ring_undoes_at_most_a_chunk",),
    ),
    Mutation(
        "window: positions of a ring that went round",
        "edgelm/ops/cache.py",
        "(length - 1 - slots) % self.slots",
        "(length - slots) % self.slots",
        ("tests/test_window_cache.py::test_every_query_sees_exactly_its_window",),
    ),
    Mutation(
        "cache: int8 scales",
        "edgelm/ops/reference.py",
        "wide[0].mul_(stored.key_scales)",
        "pass",
        ("tests/test_window_cache.py::test_int8_caches_stay_near",),
    ),
)
