"""Rows about quantized folders: their layouts, what refuses them, what they say of themselves."""

from __future__ import annotations

from mutations.row import Mutation

_SCHEMES = "tests/test_quantized_schemes.py::"
_REFUSED = (f"{_SCHEMES}test_transformers_refuses_in_words",)
_DAMAGED = (f"{_SCHEMES}test_damaged_numbers_are_refused_by_name",)
_BITS = (f"{_SCHEMES}test_bits_per_weight_are_one_number",)
_KEPT = (f"{_SCHEMES}test_what_is_quantized_stays_by_default",)
_FALLBACK = (f"{_SCHEMES}test_a_fallback_is_said",)
_README = (f"{_SCHEMES}test_the_readme_of_a_folder",)
_LAYOUT = "edgelm/quantization/folder_layout.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "folders: transformers 5 refuses what it cannot read",
        _LAYOUT,
        '            "transformers_weights": canonical_layout.REFUSAL,\n',
        "",
        _REFUSED,
    ),
    Mutation(
        "folders: transformers 4 refuses what it cannot read",
        "edgelm/quantization/packed_folder.py",
        'form = "edgelm" if',
        'form = "pt" if',
        _REFUSED,
    ),
    Mutation(
        "folders: a mix that transformers would misread is marked",
        _LAYOUT,
        "if foreign or not (simple or len(schemes) == 1):",
        "if foreign:",
        _REFUSED,
    ),
    Mutation(
        "folders: another file's name in the source's config.json is not copied",
        "edgelm/quantization/packed_folder.py",
        'for key in ("quantization_config", "transformers_weights"):',
        'for key in ("quantization_config",):',
        (f"{_SCHEMES}test_other_engines_own_layouts_stay",),
    ),
    Mutation(
        "folders: an older edgelm refuses them by version",
        _LAYOUT,
        "return 2 if self.method == canonical_layout.METHOD else 1",
        "return 1",
        (f"{_SCHEMES}test_an_older_edgelm_refuses_by_version",),
    ),
    Mutation(
        "folders: version 1 holds the schemes of version 1",
        "edgelm/checkpoint/manifest.py",
        "if version == 1 and not expresses(scheme):",
        "if False:",
        (f"{_SCHEMES}test_an_older_edgelm_refuses_by_version",),
    ),
    Mutation(
        "folders: rows of the canonical layout are those asked for",
        "edgelm/checkpoint/packed.py",
        "self._files.read_stored(stem + suffix, start, stop)",
        "self._files.read_stored(stem + suffix, 0, stop - start)",
        (f"{_SCHEMES}test_a_folder_holds_what_was_chosen",),
    ),
    Mutation(
        "folders: super-scales that are no numbers are named",
        "quant/packing.py",
        "if self.supers is not None and not bool(torch.isfinite(self.supers).all()):",
        "if False:",
        _DAMAGED,
    ),
    Mutation(
        "folders: zeros beyond the codes are refused",
        "quant/packing.py",
        "            if largest > limit:\n",
        "            if False:\n",
        _DAMAGED,
    ),
    Mutation(
        "load: stored scales are checked",
        "edgelm/engine/loader.py",
        "                packed.check()\n",
        "",
        _DAMAGED,
    ),
    Mutation(
        "quantize: scales that are kept are checked",
        "edgelm/quantization/converted_rows.py",
        "            kept.check()\n",
        "            pass\n",
        _DAMAGED,
    ),
    Mutation(
        "plan: bits per weight leave out what a kernel adds",
        "edgelm/planning/matrices.py",
        "sum(Scheme.parse(p.scheme).nbytes(p.shape) for p in self.products)",
        "sum(p.nbytes for p in self.products)",
        _BITS,
    ),
    Mutation(
        "plan: bits per weight count vectors as they are stored",
        "edgelm/planning/matrices.py",
        "nbytes += size * info.nbytes // math.prod(info.shape)",
        "nbytes += size * 4",
        _BITS,
    ),
    Mutation(
        "report: bits per weight count vectors as they are stored",
        "quant/report.py",
        "nbytes += self.other_stored_bytes",
        "nbytes += self.other_bytes",
        _BITS,
    ),
    Mutation(
        "inspect: bits per weight leave out shapes stored beside",
        "edgelm/reports/inspection.py",
        "    if info.scheme is None:\n        return info.nbytes\n    return info.scheme",
        "    if True:\n        return info.nbytes\n    return info.scheme",
        _BITS,
    ),
    Mutation(
        "quantize: what is quantized already stays by default",
        "edgelm/quantization/conversion.py",
        'keep or quant == "auto")',
        "keep)",
        _KEPT,
    ),
    Mutation(
        "recipes: iq4 is 4 bits as int4 asks for",
        "quant/recipe.py",
        '(None, "iq4") if',
        "(first.codebook,) if",
        (f"{_SCHEMES}test_recipes_accept_what_their_bits_allow",),
    ),
    Mutation(
        "load: a fallback is in the report",
        "edgelm/engine/loader.py",
        "            note = note or product.note\n",
        "",
        _FALLBACK,
    ),
    Mutation(
        "quantize: a fallback is in the manifest",
        "edgelm/quantization/conversion.py",
        "    note = recipe.fallback_note(known, info.shape, scheme)\n",
        '    note = ""\n',
        _FALLBACK,
    ),
    Mutation(
        "folders: a README.md names no paths",
        "edgelm/quantization/folder_readme.py",
        "shown = Path(source).name if is_local(source) else source",
        "shown = source",
        _README,
    ),
    Mutation(
        "folders: our own README.md is no model card",
        "edgelm/quantization/companions.py",
        "    if not ours:\n",
        "    if True:\n",
        _README,
    ),
    Mutation(
        "folders: act order takes the zero of its scheme",
        "edgelm/checkpoint/act_order.py",
        "codes -= scheme.middle if",
        "codes -= 0 if",
        ("tests/test_quantized_folders.py::test_compressed_groups_by_importance",),
    ),
)
