"""Rows about the Triton products; their tests need Triton, which the extra `test` brings."""

from __future__ import annotations

from mutations.row import Mutation

NUMBERS = "tests/quant/test_triton.py"
CHOICES = "tests/quant/test_triton_choices.py"
COMPILED = "tests/quant/test_triton_compiled.py"
DEFINITION = f"{NUMBERS}::test_products_match_the_definition"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "triton: planes of a word in their bits",
        "quant/triton/layout.py",
        "<< (own.bits * plane)",
        "<< (own.bits * (own.planes - 1 - plane))",
        (f"{NUMBERS}::test_codes_lie_where_the_geometry_says",),
    ),
    Mutation(
        "triton: integer zeros of int8 are unsigned too",
        "quant/triton/layout.py",
        'tensors["zeros"].view(torch.uint8) ^ 128',
        'tensors["zeros"].view(torch.uint8)',
        (f"{DEFINITION}[int8-zint-torch.float32]",),
    ),
    Mutation(
        "triton: integer zeros are taken from codes",
        "quant/triton/decoding.py",
        "offset = tl.load(zeros + at, mask=live, other=0).to(tl.float32)",
        "offset = shift + (1 << (BITS - 1))",
        (f"{DEFINITION}[int4-g64-zint-torch.float32]",),
    ),
    Mutation(
        "triton: upper bits in their places",
        "quant/triton/layout.py",
        "<< own.upper_place(plane)",
        "<< (own.upper * plane)",
        (f"{NUMBERS}::test_codes_lie_where_the_geometry_says[int6-g16-coded]",),
    ),
    Mutation(
        "triton: kernels find upper bits where the layout puts them",
        "quant/triton/layout.py",
        "return 4 * (plane % aligned) + self.upper * (plane // aligned)",
        "return self.upper * plane",
        (f"{DEFINITION}[int5-g32-torch.float32]", f"{DEFINITION}[int6-row-torch.float32]"),
    ),
    Mutation(
        "triton: upper bits are counted",
        "quant/triton/layout.py",
        "own.words * (4 + own.upper)",
        "own.words * 4",
        (f"{NUMBERS}::test_codes_lie_where_the_geometry_says[int5-g32]",),
    ),
    Mutation(
        "triton: the middle of 5 and 6 bits",
        "quant/triton/decoding.py",
        "(1 << (BITS + UPPER - 1))",
        "(1 << (BITS - 1))",
        (f"{NUMBERS}::test_rows_read_exactly[int6-row]",),
    ),
    Mutation(
        "triton: each 256 inputs have their super-scale",
        "quant/triton/decoding.py",
        "at_super = at // SHARED",
        "at_super = at // (2 * SHARED) * 2",
        (f"{NUMBERS}::test_rows_read_exactly[iq4-g32-coded]",),
    ),
    Mutation(
        "triton: super-scales of minima lie between those of scales",
        "quant/triton/decoding.py",
        'at // SHARED * (2 if ZEROS == "float" else 1)',
        "at // SHARED",
        (f"{NUMBERS}::test_rows_read_exactly[int4-g32-zfloat-coded]",),
    ),
    Mutation(
        "triton: minima have super-scales of their own",
        "quant/triton/decoding.py",
        "supers + at_super + 1",
        "supers + at_super",
        (f"{DEFINITION}[int5-g64-zfloat-coded-torch.float32]",),
    ),
    Mutation(
        "triton: a row without 256 inputs to share has one super-scale",
        "quant/triton/launch.py",
        "own.groups // scheme.super_groups(own.inputs) if scheme.coded else 0",
        "256 // (scheme.group_size or 1) if scheme.coded else 0",
        (f"{DEFINITION}[int6-g128-zint-coded-torch.float32]",),
    ),
    Mutation(
        "triton: matrices for timings have super-scales",
        "quant/triton/tuning.py",
        "(packed.scales, packed.zeros, packed.supers)",
        "(packed.scales, packed.zeros)",
        (f"{CHOICES}::test_a_matrix_for_timings_has_finite_numbers",),
    ),
    Mutation(
        "triton: threads of groups of 16 have whole pieces",
        "quant/triton/launch.py",
        'min(4, shared["SPAN"])',
        "4",
        (f"{COMPILED}::test_few_rows_read_four_words_at_a_time",),
    ),
    Mutation(
        "triton: float minima in registers",
        "quant/triton/gemv.py",
        "acc = tl.fma(tl.sum(total, 0), shift, acc)",
        "acc = acc",
        (f"{DEFINITION}[int4-g128-zfloat-torch.float32]",),
    ),
    Mutation(
        "triton: float minima on the tensor cores",
        "quant/triton/gemm.py",
        "weights += shift",
        "weights += 0",
        (f"{DEFINITION}[int4-g128-zfloat-torch.float32]",),
    ),
    Mutation(
        "triton: rows with one scale end within a word",
        "quant/triton/gemv.py",
        "mask = mask & (at < inputs)",
        "mask = mask",
        (f"{DEFINITION}[int4-row-torch.float32]",),
    ),
    Mutation(
        "triton: every range is added",
        "quant/triton/gemv.py",
        "for split in range(SPLITS):",
        "for split in range(SPLITS - 1):",
        (f"{NUMBERS}::test_split_sums_are_whole_and_repeat",),
    ),
    Mutation(
        "triton: a bias is added after the ranges",
        "quant/triton/gemv.py",
        "    if bias is not None:\n        sums += tl.load(bias",
        "    if False:\n        sums += tl.load(bias",
        (f"{NUMBERS}::test_split_sums_are_whole_and_repeat",),
    ),
    Mutation(
        "triton: each row of activations is its own",
        "quant/triton/gemv.py",
        "x3 = _row(x, first + 3, rows, x_stride)",
        "x3 = _row(x, first + 2, rows, x_stride)",
        (f"{NUMBERS}::test_a_row_has_the_same_bits_in_any_company",),
    ),
    Mutation(
        "triton: ids that name no row",
        "quant/triton/rows.py",
        "live = (word < pieces * SPAN) & (row >= 0) & (row < outputs)",
        "row = tl.minimum(tl.maximum(row, 0), outputs - 1)\n    live = word < pieces * SPAN",
        (f"{NUMBERS}::test_ids_that_name_no_row_read_as_zeros",),
    ),
    Mutation(
        "triton: blocks of weights as numbers",
        "quant/triton/launch.py",
        "_read(None, start, matrix, weight)",
        "_read(None, 0, matrix, weight)",
        (f"{NUMBERS}::test_many_rows_go_through_blocks_of_numbers",),
    ),
    Mutation(
        "triton: damaged choices are ignored",
        "quant/triton/choices.py",
        "for key, fields in own.items() if _is_config(fields)}",
        "for key, fields in own.items()}",
        (f"{CHOICES}::test_a_damaged_file_is_ignored_with_a_warning",),
    ),
    Mutation(
        "triton: choices belong to a card",
        "quant/triton/choices.py",
        "data | {card(device): own}",
        "{card(device): own}",
        (f"{CHOICES}::test_choices_survive_in_a_file_beside_those_of_other_cards",),
    ),
    Mutation(
        "triton: few rows share one choice",
        "quant/triton/configs.py",
        "    if rows <= FEW_ROWS:\n        return FEW_ROWS\n",
        "",
        (f"{NUMBERS}::test_a_row_has_the_same_bits_in_any_company",),
    ),
    Mutation(
        "triton: tiles that do not fit the card are passed over",
        "quant/triton/tuning.py",
        "        except (OutOfResources, PTXASError):",
        "        except PTXASError:",
        (f"{CHOICES}::test_the_fastest_config_is_kept_and_measured_once",),
    ),
    Mutation(
        "triton: pieces that a graph may know stay",
        "quant/triton/workspace.py",
        "pieces.append(torch.empty(nbytes, dtype=torch.uint8, device=device))",
        "pieces[:] = [torch.empty(nbytes, dtype=torch.uint8, device=device)]",
        (f"{CHOICES}::test_products_take_no_memory_after_prepare",),
    ),
    Mutation(
        "triton: the workspace is taken by prepare",
        "quant/backends/triton_backend.py",
        "        workspace.reserve(packed.qweight.device, shared)\n",
        "",
        (f"{CHOICES}::test_products_take_no_memory_after_prepare",),
    ),
    Mutation(
        "triton: scales and words have one layout",
        "quant/triton/gemv.py",
        "(piece * one)",
        "piece",
        (f"{COMPILED}::test_no_number_of_the_loop_goes_through_shared_memory",),
    ),
)
