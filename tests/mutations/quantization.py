"""Rows about quant."""

from __future__ import annotations

from mutations.row import Mutation

QUANT = "tests/quant"

MUTATIONS: tuple[Mutation, ...] = (
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
        "groups.mul_(step).add_(zeros.float().unsqueeze(-1))",
        "groups.mul_(step)",
        (f"{QUANT}/test_packing.py::test_values_follow_the_written_formula",),
    ),
    Mutation(
        "quant: integer zeros",
        "quant/groupwise.py",
        "groups.sub_(zeros.unsqueeze(-1))",
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
        "if largest > limit:",
        "if False:",
        (f"{QUANT}/test_rtn.py::test_scales_beyond_float16_are_refused",),
    ),
    Mutation(
        "quant: bytes include the scales",
        "quant/scheme.py",
        "per_group = scale +",
        "per_group = 0 +",
        (f"{QUANT}/test_scheme.py::test_nbytes_is_what_the_packing_takes",),
    ),
    Mutation(
        "quant: a codebook's byte holds the even number low",
        "quant/codebooks.py",
        "torch.stack([table[byte & 15], table[byte >> 4]], dim=1)",
        "torch.stack([table[byte >> 4], table[byte & 15]], dim=1)",
        (f"{QUANT}/test_codebooks.py::test_codes_scales_and_numbers_equal_bitsandbytes",),
    ),
    Mutation(
        "quant: a file in another codebook does not pass for the one asked for",
        "quant/recipe.py",
        "if scheme.codebook != first.codebook:",
        "if False:",
        (f"{QUANT}/test_scheme.py::test_files_keep_what_the_recipe_accepts",),
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
    Mutation(
        "quant: mse keeps the better grid of each group",
        "quant/methods/mse.py",
        "torch.where(better, source, target)",
        "source",
        (f"{QUANT}/test_mse.py::test_no_group_is_worse_than_round_to_nearest",),
    ),
    Mutation(
        "quant: mse fits scales to the codes",
        "quant/methods/mse.py",
        "_FITS = 3",
        "_FITS = 0",
        (f"{QUANT}/test_mse.py::test_gain_on_gaussian_weights",),
    ),
    Mutation(
        "bitsandbytes: outlier columns are multiplied in float",
        "quant/backends/bitsandbytes_backend.py",
        "OUTLIER = 6.0",
        "OUTLIER = 6e9",
        (f"{QUANT}/test_backends.py::test_outlier_columns_keep_their_precision",),
    ),
    Mutation(
        "bitsandbytes: even inputs lie in the high nibble",
        "quant/backends/bitsandbytes_backend.py",
        'return packed.tensors() | {"qweight": swap_nibbles(packed.qweight)}',
        "return packed.tensors()",
        (f"{QUANT}/test_backends.py::test_products_match_the_definition",),
    ),
    Mutation(
        "kernel choice: what was measured goes before the table's order",
        "quant/backends/__init__.py",
        "for kernel in (*ranked, *table):",
        "for kernel in table:",
        ("tests/test_kernel_choice.py::test_a_plan_follows_what_was_measured",),
    ),
    Mutation(
        "kernel choice: a damaged file counts as absent",
        "edgelm/kernel_choice.py",
        "return data if _is_valid(data) else {}",
        "return data",
        ("tests/test_kernel_choice.py::test_a_damaged_file_is_ignored_and_remade",),
    ),
    Mutation(
        "kernel choice: slow kernels are named",
        "edgelm/entry.py",
        "kernel_choice.warn_of_slow(made.products, decoder.embed.tied_to_head)",
        "pass",
        ("tests/test_kernel_choice.py::test_a_slow_kernel_is_never_silent",),
    ),
)
