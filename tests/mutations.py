"""Which test guards which feature: patches that must make a named test fail.

``run_mutations.py`` applies each row alone to a copy of the tree and runs its tests. A row whose
tests still pass is a feature nobody guards, and fails CI.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One feature and the smallest patch that breaks it."""

    feature: str
    file: str  # from the repository's root
    old: str  # found exactly once in the file
    new: str
    tests: tuple[str, ...]  # pytest nodes, the quickest that notice


HOUSE = "tests/test_house.py"
LLAMA = "tests/test_llama_parity.py"
GGUF = "tests/test_gguf_files.py"
HEADER = "tests/test_gguf_header.py"
SAFETENSORS = "tests/test_safetensors_files.py"
TOKENIZER = "tests/test_tokenizer.py"
CHAT = "tests/test_chat.py"
QUANT = "tests/quant"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "house: quant never imports edgelm",
        "quant/errors.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport edgelm\n",
        (f"{HOUSE}::test_quant_never_imports_edgelm",),
    ),
    Mutation(
        "house: heavy libraries load when used",
        "edgelm/errors.py",
        "from typing import Any\n",
        "from typing import Any\n\nimport safetensors\n",
        (f"{HOUSE}::test_import_edgelm_is_light",),
    ),
    # Llama
    Mutation(
        "llama: attention is causal",
        "edgelm/ops/reference.py",
        "torch.gt(keys, queries[:, None], out=out)",
        "torch.gt(keys, queries[:, None] + 1, out=out)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: scores are scaled",
        "edgelm/ops/reference.py",
        "scores.mul_(scale)",
        "scores.mul_(1.0)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the activation is SiLU",
        "edgelm/ops/reference.py",
        "torch.sigmoid(gate, out=out).mul_(gate)",
        "torch.sigmoid(gate, out=out)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the norm's eps",
        "edgelm/ops/reference.py",
        ".add_(eps).rsqrt_()",
        ".rsqrt_()",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the norm's weight",
        "edgelm/ops/reference.py",
        "return out.mul_(weight)",
        "return out",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: second half of the rotation",
        "edgelm/ops/reference.py",
        "out_second.addcmul_(first, sin)",
        "out_second.addcmul_(first, sin, value=-1)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: q, k and v may have biases",
        "edgelm/models/llama.py",
        "qkv_bias=config.attention_bias",
        "qkv_bias=False",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: o may have a bias",
        "edgelm/models/llama.py",
        "out_bias=config.attention_bias",
        "out_bias=False",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the MLP may have biases",
        "edgelm/models/llama.py",
        "config.activation, config.mlp_bias)",
        "config.activation, False)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: pairs are halves, not neighbours",
        "edgelm/models/llama.py",
        "rope = Rope(config.rope)",
        "rope = Rope(config.rope, interleaved=True)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "rope: linear",
        "edgelm/position.py",
        'return _inverse(rope, rope.theta) / _number(rope, "factor"), 1.0',
        "return _inverse(rope, rope.theta), 1.0",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: dynamic grows beyond the trained length",
        "edgelm/position.py",
        "max(context, trained) / trained",
        "max(trained, trained) / trained",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: yarn keeps fast pairs",
        "edgelm/position.py",
        "plain / factor * (1 - keep) + plain * keep",
        "plain / factor",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: yarn's mscale",
        "edgelm/position.py",
        'if rope.scaling.get("mscale") and rope.scaling.get("mscale_all_dim"):',
        "if False:",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: longrope changes its list with the length",
        "edgelm/position.py",
        'divisors["long_factor" if context > original else "short_factor"]',
        'divisors["short_factor"]',
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: longrope's magnitude",
        "edgelm/position.py",
        "math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0",
        "1.0",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: llama3's ramp",
        "edgelm/position.py",
        "return (1 - ramp) * plain / factor + ramp * plain, 1.0",
        "return plain / factor, 1.0",
        (f"{LLAMA}::test_ropes",),
    ),
    # Files
    Mutation(
        "gguf: rows of q and k are put back",
        "edgelm/checkpoint/gguf_files.py",
        "                if head:\n",
        "                if False:\n",
        (
            f"{GGUF}::test_permutation_turns_interleaved_rotation_into_halves",
            f"{GGUF}::test_any_slice_of_permuted_rows",
        ),
    ),
    Mutation(
        "gguf: k has its own number of heads",
        "edgelm/checkpoint/gguf_families.py",
        '"blk.*.attn_k": "attention.head_count_kv"}',
        '"blk.*.attn_k": "attention.head_count"}',
        (f"{GGUF}::test_any_slice_of_permuted_rows",),
    ),
    Mutation(
        "gguf: Q4_1 has a minimum",
        "edgelm/checkpoint/gguf_files.py",
        '"Q4_1": Scheme(4, 32, "float")',
        '"Q4_1": Scheme(4, 32, "int")',
        (f"{GGUF}::test_packed_rows_are_exact",),
    ),
    Mutation(
        "gguf: high nibbles are the second half of a block",
        "edgelm/checkpoint/gguf_files.py",
        "halves[..., 0, :] = (words & 15) | (higher & 240)",
        "halves[..., 0, :] = (words & 15) | (words & 240)",
        (f"{GGUF}::test_packed_rows_are_exact",),
    ),
    Mutation(
        "gguf: a head without output.weight is tied",
        "edgelm/checkpoint/gguf_families.py",
        '"output.weight" not in header.tensors',
        "False",
        (f"{GGUF}::test_config_in_hugging_face_words", f"{GGUF}::test_optional_keys"),
    ),
    Mutation(
        "gguf: lengths are held against the file",
        "edgelm/checkpoint/gguf_header.py",
        'if length > self.size - start:\n            self.fail(f"{what}',
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
        "safetensors: an index stays in its folder",
        "edgelm/checkpoint/safetensors_files.py",
        "not any(path.resolve().is_relative_to(place) for place in allowed)",
        "False",
        (f"{SAFETENSORS}::test_links_lead_nowhere_but_to_the_hub_cache",),
    ),
    Mutation(
        "safetensors: an index names no parent folder",
        "edgelm/checkpoint/safetensors_files.py",
        "    if (\n        foreign\n",
        "    if False and (\n        foreign\n",
        (f"{SAFETENSORS}::test_index_may_not_leave_the_folder",),
    ),
    Mutation(
        "safetensors: a tensor is in the shard the index says",
        "edgelm/checkpoint/safetensors_files.py",
        "if name not in shards[shard]:",
        "if False:",
        (f"{SAFETENSORS}::test_tensor_in_another_shard",),
    ),
    Mutation(
        "safetensors: quantized folders are refused",
        "edgelm/checkpoint/safetensors_files.py",
        'if "quantization_config" in self.config:',
        "if False:",
        (f"{SAFETENSORS}::test_quantized_folder_is_refused_by_method",),
    ),
    # Text
    Mutation(
        "tokenizer: never a second BOS",
        "edgelm/tokenizer.py",
        "if ids[: len(prefix)] == prefix:",
        "if False:",
        (f"{TOKENIZER}::test_never_a_second_bos",),
    ),
    Mutation(
        "tokenizer: the template's end of turn ends a text",
        "edgelm/tokenizer.py",
        "special.eos_ids | _end_of_turn_ids(vocabulary, special.chat_template)",
        "special.eos_ids",
        (f"{TOKENIZER}::test_end_tokens_are_a_union",),
    ),
    Mutation(
        "tokenizer: only whole characters are streamed",
        "edgelm/tokenizer.py",
        "return self._utf8.decode(data)",
        'return data.decode(errors="replace")',
        (f"{TOKENIZER}::test_stream_gives_whole_characters",),
    ),
    Mutation(
        "tokenizer: a user cannot write special tokens",
        "edgelm/tokenizer.py",
        "self._vocabulary.encode(text, parse_special)",
        "self._vocabulary.encode(text, True)",
        (f"{TOKENIZER}::test_special_tokens_in_a_text_are_text_unless_parsed",),
    ),
    Mutation(
        "chat: a template's time is bounded",
        "edgelm/sandbox.py",
        "if time.monotonic() > end:",
        "if time.monotonic() > end + 20:",
        (f"{CHAT}::test_bombs_are_stopped[loops]",),
    ),
    Mutation(
        "chat: a template changes no message",
        "edgelm/sandbox.py",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment",
        "from jinja2.sandbox import SandboxedEnvironment as ImmutableSandboxedEnvironment",
        (f"{CHAT}::test_messages_stay_as_they_were",),
    ),
    # Quantization
    Mutation(
        "quant: even inputs lie in the low nibble",
        "quant/packing.py",
        "stored[:, 0::2] | (stored[:, 1::2] << 4)",
        "stored[:, 1::2] | (stored[:, 0::2] << 4)",
        (f"{QUANT}/test_packing.py::test_even_inputs_lie_in_the_low_nibble",),
    ),
    Mutation(
        "quant: code 8 of symmetric int4 is zero",
        "quant/groupwise.py",
        "groups.sub_(8)",
        "groups.sub_(7)",
        (f"{QUANT}/test_packing.py::test_gguf_blocks_have_exactly_these_values",),
    ),
    Mutation(
        "quant: float minima",
        "quant/groupwise.py",
        "groups.mul_(step).add_(packed.zeros.float().unsqueeze(-1))",
        "groups.mul_(step)",
        (f"{QUANT}/test_packing.py::test_values_follow_the_written_formula",),
    ),
    Mutation(
        "quant: integer zeros",
        "quant/groupwise.py",
        "groups.sub_(packed.zeros.unsqueeze(-1))",
        "groups.sub_(0)",
        (f"{QUANT}/test_packing.py::test_values_follow_the_written_formula",),
    ),
    Mutation(
        "quant: the extreme of a group lands on -8",
        "quant/methods/rtn.py",
        "torch.where(high > -low, high, low) / -8",
        "torch.maximum(high, -low) / 8",
        (f"{QUANT}/test_rtn.py::test_symmetric_int4_keeps_the_extreme_exactly",),
    ),
    Mutation(
        "quant: numbers that are not finite are refused",
        "quant/methods/rtn.py",
        "if not bool(torch.isfinite(high - low).all()):",
        "if False:",
        (f"{QUANT}/test_rtn.py::test_numbers_that_are_not_finite_are_refused",),
    ),
    Mutation(
        "quant: scales beyond float16 are refused",
        "quant/methods/rtn.py",
        "if largest > _LARGEST:",
        "if False:",
        (f"{QUANT}/test_rtn.py::test_scales_beyond_float16_are_refused",),
    ),
    Mutation(
        "quant: bytes include the scales",
        "quant/scheme.py",
        "per_group = 2 +",
        "per_group = 0 +",
        (f"{QUANT}/test_scheme.py::test_nbytes_is_what_the_packing_takes",),
    ),
    Mutation(
        "quant: the last override wins",
        "quant/recipe.py",
        "return matches[-1] if matches else self.default",
        "return matches[0] if matches else self.default",
        (f"{QUANT}/test_scheme.py::test_overrides_match_by_pattern_and_the_last_one_wins",),
    ),
    Mutation(
        "quant: the reference adds the bias of each block",
        "quant/backends/reference.py",
        "part = None if bias is None else bias[start:stop]",
        "part = None",
        (f"{QUANT}/test_backends.py::test_products_match_the_definition",),
    ),
    # Cache and memory
    Mutation(
        "cache: rows are separate",
        "edgelm/cache.py",
        "return range(row * self.context + start, row * self.context + start + count)",
        "return range(start, start + count)",
        ("tests/test_cache.py::test_rows_of_different_lengths_in_one_step",),
    ),
    Mutation(
        "cache: truncate forgets",
        "edgelm/cache.py",
        "        self._lengths[row] = length\n",
        "",
        ("tests/test_cache.py::test_random_chunks_truncations_and_restores",),
    ),
    Mutation(
        "cache: restore brings the keys back",
        "edgelm/cache.py",
        "self._keys[:, row, : snapshot.length].copy_(snapshot.keys)",
        "pass",
        ("tests/test_cache.py::test_random_chunks_truncations_and_restores",),
    ),
    Mutation(
        "cache: a full row is refused",
        "edgelm/cache.py",
        "if start + count > self.context:",
        "if False:",
        ("tests/test_cache.py::test_a_full_row_is_refused_and_unchanged",),
    ),
    Mutation(
        "memory: what is not planned cannot be taken",
        "edgelm/memory.py",
        "if self.taken[part] + nbytes > self.planned[part]:",
        "if False:",
        ("tests/test_memory.py::test_ledger_refuses_what_is_not_planned",),
    ),
    Mutation(
        "memory: the cache is planned in its own dtype",
        "edgelm/cache.py",
        "config.head_size * dtype.itemsize",
        "config.head_size * 4",
        ("tests/test_cache.py::test_bytes_are_the_formula",),
    ),
)
