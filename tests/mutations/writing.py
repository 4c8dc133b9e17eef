"""Rows about what is written."""

from __future__ import annotations

from mutations.row import Mutation

_GPTQ = "tests/test_calibration.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "quantize: gptq's layers see what the layer before them gave",
        "edgelm/quantization/calibration.py",
        "rows if index else ids",
        "ids",
        (f"{_GPTQ}test_factors_are_of_the_whole_models_inputs",),
    ),
    Mutation(
        "quantize: each calibration sequence starts from nothing",
        "edgelm/quantization/calibration.py",
        "            cache.truncate(0, 0)\n",
        "",
        (f"{_GPTQ}test_factors_are_of_the_whole_models_inputs",),
    ),
    Mutation(
        "quantize: layers that are done run again on the way to the first that is not",
        "edgelm/quantization/calibration.py",
        "if index <= last:",
        "if hessians:",
        (f"{_GPTQ}test_kill_and_resume",),
    ),
    Mutation(
        "quantize: gptq packs with the factor",
        "edgelm/quantization/converted_rows.py",
        "if factor is not None:",
        "if False:",
        (f"{_GPTQ}test_divergence_on_held_out_text",),
    ),
    Mutation(
        "quantize: another calibration text is another job",
        "edgelm/quantization/packed_folder.py",
        "[calibration.identity] if calibration else []",
        "[]",
        (f"{_GPTQ}test_another_text_begins_anew",),
    ),
    Mutation(
        "quantize: a factor is gone before the next layer runs",
        "edgelm/quantization/packed_folder.py",
        "                del factor  # before the next layer's Hessians are allocated\n",
        "",
        (f"{_GPTQ}test_no_factor_is_left_when_the_next_layer_runs",),
    ),
    Mutation(
        "quantize: Hessians are promised",
        "edgelm/quantization/calibration.py",
        "max(hessians)",
        "0",
        (f"{_GPTQ}test_what_is_promised",),
    ),
    Mutation(
        "load: gptq is refused",
        "edgelm/planning/settings.py",
        "if settings.method in CALIBRATED_METHODS:",
        "if False:",
        (f"{_GPTQ}test_where_it_does_not_belong",),
    ),
    Mutation(
        "quantize: a calibration text for a method without is refused",
        "edgelm/quantization/quantize.py",
        "if path is not None:",
        "if False:",
        (f"{_GPTQ}test_where_it_does_not_belong",),
    ),
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
        "if type(version) is int and version > FORMAT_VERSION:",
        "if False:",
        ("tests/test_quantize.py::test_newer_and_damaged_manifests",),
    ),
    Mutation(
        "quantize: matrices left in floats stay so when loaded",
        "edgelm/planning/matrices.py",
        "if recipe is None and info.stays_float:",
        "if False:",
        ("tests/test_quantize.py::test_version_1_still_loads",),
    ),
    Mutation(
        "quantize: a .gguf file that was begun is gone on with",
        "edgelm/quantization/gguf_export.py",
        "if ours and self.journal.done and self.partial.exists():",
        "if False:",
        ("tests/test_quantize_resume.py::test_a_killed_gguf_goes_on",),
    ),
    Mutation(
        "quantize: a .gguf file is read back",
        "edgelm/checkpoint/gguf_writer.py",
        "if hashlib.sha256(data.numpy().data).hexdigest() != expected:",
        "if False:",
        ("tests/test_quantize_resume.py::test_a_flipped_bit_of_a_gguf_is_found",),
    ),
    Mutation(
        "quantize: two processes do not write one OUT",
        "edgelm/quantization/quantize.py",
        "lock.acquire(timeout=0)",
        "pass",
        ("tests/test_quantize_resume.py::test_a_second_process_is_refused",),
    ),
    Mutation(
        "hub: a killed download goes on in mid-file",
        "edgelm/hub/weights.py",
        'with partial.open("ab") as file:',
        'with partial.open("wb") as file:',
        ("tests/test_hub_server.py::test_a_killed_download_goes_on",),
    ),
    Mutation(
        "hub: a file of two parts is checked",
        "edgelm/hub/weights.py",
        "if found != blob.name:",
        "if False:",
        ("tests/test_hub_server.py::test_parts_that_do_not_fit_are_not_kept",),
    ),
    Mutation(
        "inspect: what loading converts is told",
        "edgelm/reports/inspection.py",
        "if product.stored:",
        "if True:",
        ("tests/test_inspect.py::test_what_loading_would_convert",),
    ),
    Mutation(
        "quantize: bitsandbytes' first code is the high one",
        "edgelm/checkpoint/bitsandbytes_layout.py",
        "codes = swap_nibbles(packed.qweight)",
        "codes = packed.qweight",
        ("tests/test_packed_peers.py::test_an_nf4_folder_gives_the_logits_of_the_recipe",),
    ),
    Mutation(
        "quantize: a place that refuses is no other process",
        "edgelm/quantization/quantize.py",
        "    Path(lock.lock_file).touch()",
        "    pass",
        ("tests/test_quantize_resume.py::test_a_place_that_cannot_be_written",),
    ),
)
