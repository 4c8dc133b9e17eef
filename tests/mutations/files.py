"""Rows about reading files."""

from __future__ import annotations

from mutations.row import Mutation

GGUF = "tests/test_gguf_files.py"
MODELS = "tests/test_gguf_models.py"
BLOCKS = "tests/test_gguf_blocks.py"
HEADER = "tests/test_gguf_header.py"
SAFETENSORS = "tests/test_safetensors_files.py"
SHARDS = "tests/test_shards.py"
PLAIN = "tests/test_plain_files.py"
PARTS = "tests/test_gguf_parts.py"
PACKED = "tests/test_packed_readers.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "gguf: rows of q and k are put back",
        "edgelm/checkpoint/gguf_files.py",
        "if weight.order is not None and weight.order.pairs:",
        "if False:",
        (
            f"{GGUF}::test_permutation_turns_interleaved_rotation_into_halves",
            f"{GGUF}::test_any_slice_of_permuted_rows",
        ),
    ),
    Mutation(
        "gguf: k has its own number of heads",
        "edgelm/checkpoint/gguf_families.py",
        '"blk.*.attn_k": RowOrder("attention.head_count_kv"',
        '"blk.*.attn_k": RowOrder("attention.head_count"',
        (f"{GGUF}::test_any_slice_of_permuted_rows",),
    ),
    Mutation(
        "gguf: Q4_1 has a minimum",
        "edgelm/checkpoint/gguf_blocks.py",
        '"Q4_1": Scheme(4, 32, "float")',
        '"Q4_1": Scheme(4, 32, "int")',
        (f"{GGUF}::test_packed_rows_are_exact",),
    ),
    Mutation(
        "gguf: high nibbles are the second half of a block",
        "edgelm/checkpoint/gguf_blocks.py",
        "halves[..., 0, :] = (words & 15) | (higher & 240)",
        "halves[..., 0, :] = (words & 15) | (words & 240)",
        (f"{GGUF}::test_packed_rows_are_exact",),
    ),
    Mutation(
        "gguf: a head without output.weight is tied",
        "edgelm/checkpoint/gguf_families.py",
        'return "output.weight" not in header.tensors',
        "return False",
        (f"{GGUF}::test_config_in_hugging_face_words", f"{GGUF}::test_optional_keys"),
    ),
    Mutation(
        "gguf: BLOOM's q, k and v stand one below the other",
        "edgelm/checkpoint/gguf_families.py",
        'RowOrder("attention.head_count", parts=3)',
        'RowOrder("attention.head_count")',
        (f"{MODELS}::test_rows_of_q_k_v_in_any_slice",),
    ),
    Mutation(
        "gguf: Gemma's norms are stored with 1 added",
        "edgelm/checkpoint/gguf_families.py",
        "    norm_offset=1.0,\n",
        "",
        (f"{MODELS}::test_gemma_norms_lose_the_added_one",),
    ),
    Mutation(
        "gguf: blocks quantized anew are spoken of",
        "edgelm/engine/loader.py",
        "            if scheme == info.nearest:",
        "            if False:",
        (f"{BLOCKS}::test_auto_says_what_it_made",),
    ),
    Mutation(
        "gguf: lengths are held against the file",
        "edgelm/checkpoint/gguf_header.py",
        'if length > min(self.size - start, MAX_PIECE_BYTES):\n            self.fail(f"{what}',
        'if False:\n            self.fail(f"{what}',
        (f"{HEADER}::test_lying_headers_cost_nothing",),
    ),
    Mutation(
        "gguf: the entries of arrays are bounded",
        "edgelm/checkpoint/gguf_header.py",
        "if self.entries > MAX_ARRAY_ENTRIES:",
        "if False:",
        (f"{HEADER}::test_lying_headers_cost_nothing",),
    ),
    Mutation(
        "gguf: tensors lie inside the file",
        "edgelm/checkpoint/gguf_header.py",
        "if tensor.nbytes > self.size - offset:",
        "if False:",
        (f"{HEADER}::test_lying_headers_cost_nothing",),
    ),
    Mutation(
        "gguf: tensors do not overlap",
        "edgelm/checkpoint/gguf_header.py",
        "if offset < end:",
        "if False:",
        (f"{HEADER}::test_lying_headers_cost_nothing",),
    ),
    Mutation(
        "safetensors: an index names no parent folder",
        "edgelm/checkpoint/shards.py",
        "if foreign or",
        "if False and foreign or False and",
        (f"{SAFETENSORS}::test_index_may_not_leave_the_folder",),
    ),
    Mutation(
        "shards: of a tensor stored twice the index's counts",
        "edgelm/checkpoint/shards.py",
        "            tensors[name] = here[shard][name]",
        "            pass",
        (f"{SHARDS}::test_of_a_tensor_stored_twice_the_one_that_the_index_names",),
    ),
    Mutation(
        "shards: a file that is needed may not be missing",
        "edgelm/models/weight_names.py",
        "            self.refuse_missing(canonical, kind)\n",
        "",
        (f"{SHARDS}::test_a_missing_file_that_is_needed",),
    ),
    Mutation(
        "shards: a head whose file is missing is not made anew",
        "edgelm/models/model_files.py",
        '            names.refuse_missing("head")\n',
        "",
        (f"{SHARDS}::test_a_head_in_a_missing_file_is_not_made_anew",),
    ),
    Mutation(
        "files: what is no plain file is not opened",
        "edgelm/plain_file.py",
        "if not stat.S_ISREG(mode):",
        "if False:",
        (f"{PLAIN}::test_needed_files_that_are_no_plain_files",),
    ),
    Mutation(
        "files: small files are small",
        "edgelm/plain_file.py",
        "if len(content) > limit:",
        "if False:",
        (f"{PLAIN}::test_small_files_that_are_huge",),
    ),
    Mutation(
        "files: only plain files tell a model apart",
        "edgelm/checkpoint/opening.py",
        "[file for file in found if file.is_file()]",
        "found",
        (f"{PLAIN}::test_files_that_nobody_needs",),
    ),
    Mutation(
        "gguf: parts say which they are",
        "edgelm/checkpoint/gguf_parts.py",
        "if (own.get(_NUMBER), own.get(_COUNT)) != (number, len(parts)):",
        "if False:",
        (f"{PARTS}::test_parts_that_do_not_belong_together",),
    ),
    Mutation(
        "gguf: every part tells a model apart",
        "edgelm/checkpoint/opening.py",
        "else part_paths(path)",
        "else [path]",
        (f"{PARTS}::test_every_part_is_one_of_the_model_s_files",),
    ),
    Mutation(
        "safetensors: quantized folders are refused",
        "edgelm/checkpoint/folders.py",
        "if quantization_settings(path) is not None:",
        "if False:",
        (f"{SAFETENSORS}::test_quantized_folder_is_refused_by_method",),
    ),
    Mutation(
        "packed: version 1 of GPTQ stores zero points less one",
        "edgelm/checkpoint/gptq.py",
        'offset = 0 if version == "gptq_v2" else 1',
        "offset = 0",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: 8-bit codes count from the middle",
        "edgelm/checkpoint/packed_matrix.py",
        "return unsigned if bits == 4 else (unsigned ^ CODE_SIGN).view(torch.int8)",
        "return unsigned if bits == 4 else unsigned.view(torch.int8)",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: AWQ's order of nibbles",
        "edgelm/checkpoint/awq.py",
        "NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)",
        "NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: zero points of a later row",
        "edgelm/checkpoint/compressed_tensors.py",
        "zeros = zeros[start - first * per_word : stop - first * per_word]",
        "zeros = zeros[: stop - start]",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: bitsandbytes' first code is the high one",
        "edgelm/checkpoint/bitsandbytes_files.py",
        "packed.qweight[first - start : last - start] = swap_nibbles(codes)",
        "packed.qweight[first - start : last - start] = codes",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: the offset of double-quantized scales",
        "edgelm/checkpoint/bitsandbytes_files.py",
        "* outer[block] + self.nested.offset",
        "* outer[block]",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: rows that begin inside a block of scales",
        "edgelm/checkpoint/bitsandbytes_files.py",
        "offset = (begin - first * self.block_size) // self.scheme.group_size",
        "offset = 0",
        (f"{PACKED}::test_numbers_are_those_of_the_format",),
    ),
    Mutation(
        "packed: inputs in groups by importance",
        "edgelm/checkpoint/packed_matrix.py",
        "return not torch.equal(order, in_turn) and bool((order != -1).any())",
        "return False",
        (f"{PACKED}::test_inputs_in_groups_by_importance",),
    ),
    Mutation(
        "packed: zero points of a symmetric file are checked",
        "edgelm/checkpoint/gptq.py",
        "elif bool((zeros != 1 << (bits - 1)).any()):",
        "elif False:",
        (f"{PACKED}::test_zero_points_of_a_symmetric_file_are_checked",),
    ),
    Mutation(
        "files: pickles stay closed without the flag",
        "edgelm/checkpoint/folders.py",
        "if pickled and allow_pickle:",
        "if pickled:",
        ("tests/test_other_files.py::test_without_the_flag_pickles_stay_closed",),
    ),
    Mutation(
        "files: pickles are weights alone",
        "edgelm/checkpoint/torch_files.py",
        "weights_only=True",
        "weights_only=False",
        ("tests/test_other_files.py::test_files_that_are_more_or_less_than_weights",),
    ),
    Mutation(
        "files: Flax stores kernels transposed",
        "edgelm/checkpoint/flax_files.py",
        '"kernel": ("weight", True),',
        '"kernel": ("weight", False),',
        ("tests/test_other_files.py::test_flax_bloom_gives_the_same_logits",),
    ),
    Mutation(
        "files: arrays in pieces read across their ends",
        "edgelm/checkpoint/flax_files.py",
        "flat, done = flat[len(taken) :], max(0, done - length)",
        "flat, done = flat[len(taken) :], done",
        ("tests/test_other_files.py::test_flax_bloom_gives_the_same_logits",),
    ),
    Mutation(
        "files: a pickled tensor ends inside its file",
        "edgelm/checkpoint/torch_files.py",
        "if offset < 0 or offset + tensor.numel() * tensor.element_size() > size:",
        "if False:",
        ("tests/test_other_files.py::test_a_tensor_that_ends_beyond_its_file",),
    ),
    Mutation(
        "packed: floats of a quantized folder stay floats",
        "edgelm/checkpoint/quantized_folders.py",
        "return replace(self._files.info(name), stays_float=True)",
        "return self._files.info(name)",
        (f"{PACKED}::test_logits_equal_the_floats",),
    ),
    Mutation(
        "gptq: AutoGPTQ's own settings file",
        "edgelm/checkpoint/quantized_folders.py",
        "if settings is None and is_present(",
        "if False and is_present(",
        ("tests/test_packed_readers.py::test_settings_in_autogptqs_own_file",),
    ),
)
