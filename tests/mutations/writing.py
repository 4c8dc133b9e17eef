"""Rows about what is written."""

from __future__ import annotations

from mutations.row import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "quantize: a journal of another job is not taken up",
        "edgelm/checkpoint/journal.py",
        'if not entries or entries[0] != {"job": self.job}:',
        "if not entries:",
        ("tests/test_quantize.py::test_another_job_begins_anew",),
    ),
    Mutation(
        "quantize: what was written is read back",
        "edgelm/checkpoint/safetensors_writer.py",
        "if not sound:",
        "if False:",
        ("tests/test_quantize.py::test_a_flipped_bit_is_found",),
    ),
    Mutation(
        "quantize: a cut-off journal line is dropped from the file",
        "edgelm/checkpoint/journal.py",
        "file.truncate(sum(len(line) + 1 for line in complete))",
        "pass",
        ("tests/test_quantize.py::test_a_cut_off_journal_line",),
    ),
    Mutation(
        "quantize: newer manifests are refused",
        "edgelm/checkpoint/manifest.py",
        "if isinstance(version, int) and version > FORMAT_VERSION:",
        "if False:",
        ("tests/test_quantize.py::test_newer_and_damaged_manifests",),
    ),
    Mutation(
        "quantize: matrices left in floats stay so when loaded",
        "edgelm/planner.py",
        "if recipe is None and info.stays_float:",
        "if False:",
        ("tests/test_quantize.py::test_version_1_still_loads",),
    ),
    Mutation(
        "quantize: bitsandbytes' first code is the high one",
        "edgelm/checkpoint/bitsandbytes_layout.py",
        "codes = (packed.qweight << 4) | (packed.qweight >> 4)",
        "codes = packed.qweight",
        ("tests/test_packed_peers.py::test_an_nf4_folder_gives_the_logits_of_the_recipe",),
    ),
)
