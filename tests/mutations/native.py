"""Rows about the native library; those in C++ need it built in place, so they are not here."""

from __future__ import annotations

from mutations.row import Mutation

TESTS = "tests/quant/test_native.py"
MISUSE_TESTS = "tests/quant/test_native_misuse.py"
BACKEND = "quant/backends/native_backend.py"
OPS = "quant/native/ops.py"
OPS_TESTS = "tests/quant/test_native_ops.py"

TAPE_TESTS = "tests/test_tape.py"
INTERFACE_TESTS = "tests/quant/test_native_interface.py"
LIBRARY_FILE = "quant/native/library_file.py"
LIBRARY_FILE_TESTS = "tests/quant/test_library_file.py"
PROVENANCE_TESTS = "tests/test_provenance.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "native: a bias is added",
        BACKEND,
        "bias = None if bias is None else bias.float()",
        "bias = None",
        (f"{TESTS}::test_strided_activations_bias_and_bfloat16",),
    ),
    Mutation(
        "native: results in another type are copied out",
        BACKEND,
        "        if not direct:\n            out.copy_(product)\n",
        "",
        (f"{TESTS}::test_strided_activations_bias_and_bfloat16",),
    ),
    Mutation(
        "native: super-scales are laid out",
        BACKEND,
        '("scales", "zeros", "supers"))',
        '("scales", "zeros", "scales"))',
        (f"{TESTS}::test_coded_scales_of_any_sign_and_block",),
    ),
    Mutation(
        "native: scales of one byte are told from floats",
        "quant/native/__init__.py",
        "int(exact), int(scheme.coded)),",
        "int(exact), 0),",
        (f"{TESTS}::test_layout_bytes",),
    ),
    Mutation(
        "native: iq4 is no other codebook",
        "quant/native/__init__.py",
        '"iq4": 4}',
        '"iq4": 1}',
        (f"{TESTS}::test_products_match_the_reference",),
    ),
    Mutation(
        "native: EDGELM_ISA",
        "quant/native/__init__.py",
        "    if wanted:\n",
        "    if False:\n",
        (f"{MISUSE_TESTS}::test_an_instruction_set_by_environment",),
    ),
    Mutation(
        "native: a library of another version is not used",
        "quant/native/__init__.py",
        "    if found != ABI:\n",
        "    if False:\n",
        (f"{MISUSE_TESTS}::test_a_library_that_cannot_be_used_is_said",),
    ),
    Mutation(
        "native: structs of another size are not passed on",
        "quant/native/__init__.py",
        "        if found != own:\n",
        "        if False:\n",
        (f"{INTERFACE_TESTS}::test_a_struct_of_another_size_is_said",),
    ),
    Mutation(
        "native: fields are in the header's order",
        "quant/native/structs.py",
        '"tokens size x_stride y_stride"',
        '"tokens size y_stride x_stride"',
        (f"{INTERFACE_TESTS}::test_structs_are_those_of_the_headers",),
    ),
    Mutation(
        "native: a library of other sources is refused",
        LIBRARY_FILE,
        " if wanted in file.read_bytes())",
        ")",
        (f"{LIBRARY_FILE_TESTS}::test_a_library_of_other_sources_is_refused",),
    ),
    Mutation(
        "native: a checkout takes the installed library",
        LIBRARY_FILE,
        "    yield from _libraries([str(installed)])\n",
        "",
        (f"{LIBRARY_FILE_TESTS}::test_a_checkout_without_one_takes_the_installed_one",),
    ),
    Mutation(
        "native: a checkout's own library comes first",
        LIBRARY_FILE,
        "    yield from _libraries(folders)\n    try:",
        "    try:",
        (f"{LIBRARY_FILE_TESTS}::test_a_checkout_takes_its_own_library_first",),
    ),
    Mutation(
        "native: a checkout without a library names the command",
        LIBRARY_FILE,
        '    if sources is None:\n        return "the package',
        '    if True:\n        return "the package',
        (f"{LIBRARY_FILE_TESTS}::test_a_checkout_without_any_names_the_command",),
    ),
    Mutation(
        "provenance: pytest says what it tests",
        "tests/conftest.py",
        "    return sentence()\n",
        "    return f'{len(sentence())} letters'\n",
        (f"{PROVENANCE_TESTS}::test_pytest_says_what_it_tests",),
    ),
    Mutation(
        "provenance: benchmarks say what they measure",
        "benches/products.py",
        "    announce()\n",
        "",
        (f"{PROVENANCE_TESTS}::test_every_benchmark_says_what_it_measures",),
    ),
    Mutation(
        "provenance: child processes use the same packages",
        "benches/provenance.py",
        '"PYTHONSAFEPATH": "1", ',
        "",
        (f"{PROVENANCE_TESTS}::test_child_processes_use_the_same_packages",),
    ),
    Mutation(
        "native: activations=float reaches the choice of kernels",
        "edgelm/planning/planner.py",
        "            exact_activations(self.settings),\n",
        "            False,\n",
        ("tests/test_exact_activations.py::test_exact_activations_give_the_reference_logits",),
    ),
    Mutation(
        "native: exact products round nothing",
        "quant/native/__init__.py",
        "int(exact), int(scheme.coded)),",
        "0, int(scheme.coded)),",
        (f"{TESTS}::test_exact_products_round_no_activations",),
    ),
    Mutation(
        "native: short buffers",
        BACKEND,
        '        _check(x, tensors["layout"], scheme, bias, out)\n',
        "",
        (f"{MISUSE_TESTS}::test_short_buffers_are_refused",),
    ),
    Mutation(
        "native: rows that are not there",
        BACKEND,
        "        if len(ids) and not 0 <=",
        "        if False and not 0 <=",
        (f"{MISUSE_TESTS}::test_rows_that_are_not_there_are_refused",),
    ),
    Mutation(
        "native: a wrong EDGELM_ISA is the user's error",
        BACKEND,
        "        if missing is None:\n",
        "        if False:\n",
        ("tests/test_exact_activations.py::test_a_wrong_instruction_set_is_one_sentence",),
    ),
    Mutation(
        "native: exact products of codes are never taken for their speed",
        "quant/backends/timing.py",
        "        and kernel not in EXACT_CODES\n",
        "",
        (f"{MISUSE_TESTS}::test_exact_products_are_not_ranked",),
    ),
    Mutation(
        "native ops: a window of the cache's ring",
        OPS,
        "stride(out), window or 0, scale",
        "stride(out), 0, scale",
        (f"{OPS_TESTS}::test_attention_matches_the_reference",),
    ),
    Mutation(
        "native ops: ALiBi's slopes",
        OPS,
        "(queries, out, rows, positions, slopes, workspace)),",
        "(queries, out, rows, positions, None, workspace)),",
        (f"{OPS_TESTS}::test_attention_matches_the_reference",),
    ),
    Mutation(
        "native ops: the scores' soft-cap",
        OPS,
        "scale, softcap or 0.0,",
        "scale, 0.0,",
        (f"{OPS_TESTS}::test_attention_matches_the_reference",),
    ),
    Mutation(
        "native ops: neighbours as rotary pairs",
        OPS,
        "stride(out), interleaved, threads()",
        "stride(out), 0, threads()",
        (f"{OPS_TESTS}::test_rotation",),
    ),
    Mutation(
        "tape: positions are set before each step",
        "edgelm/engine/steps.py",
        "ids[at], own_rows[at], positions[at] = token, row, offset",
        "ids[at], own_rows[at] = token, row",
        (f"{TAPE_TESTS}::test_replayed_steps_give_the_bits_of_a_prompt",),
    ),
    Mutation(
        "tape: each cache has tapes of its own",
        "edgelm/engine/tapes.py",
        "self._steps.setdefault(cache, {})",
        "self._steps.setdefault(next(iter(self._steps), cache), {})",
        (f"{TAPE_TESTS}::test_each_cache_has_tapes_of_its_own",),
    ),
    Mutation(
        "tape: caches that the library does not know",
        "edgelm/engine/engine.py",
        "isinstance(self.ops, NativeOps) or holds_natively(cache.dtype)\n",
        "isinstance(self.ops, NativeOps) or True\n",
        (f"{TAPE_TESTS}::test_float16_caches_run_on_the_reference",),
    ),
    Mutation(
        "tape: a replayed step's numbers are checked",
        "edgelm/engine/tapes.py",
        "return step.out, min(self._best[0, :count].tolist()) >= 0",
        "return step.out, True",
        (f"{TAPE_TESTS}::test_numbers_of_a_replayed_step_are_checked",),
    ),
    Mutation(
        "tape: a replayed head's numbers are checked",
        "edgelm/engine/engine.py",
        "if min(best) < 0:",
        "if False:",
        (f"{TAPE_TESTS}::test_numbers_of_a_replayed_step_are_checked",),
    ),
)
