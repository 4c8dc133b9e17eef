"""Schemes and recipes as texts and data."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from quant import PackedWeight, QuantError, Recipe, Scheme

LAYOUTS = (
    *("int4-g32", "int4-g64", "int4-g128", "int4-row"),
    *("int8", "int8-g32", "int8-g64", "int8-g128"),
)
TEXTS = [
    *(layout + zeros for layout in LAYOUTS for zeros in ("", "-zint", "-zfloat")),
    *("int4-g32-sbfloat16", "int4-row-zint-sfloat32", "int8-sfloat32", "int8-g64-zfloat-sbfloat16"),
    *("nf4", "nf4-g32", "nf4-g128", "nf4-sfloat16", "nf4-g32-sbfloat16", "fp4", "fp4-g128"),
]
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("text", [*TEXTS, *FLOATS])
def test_text_and_scheme_are_one(text: str) -> None:
    scheme = Scheme.parse(text)
    assert str(scheme) == text
    assert scheme.is_float == (text in FLOATS)
    assert pickle.loads(pickle.dumps(scheme)) == scheme


@pytest.mark.parametrize("text", [*TEXTS, *FLOATS])
@pytest.mark.parametrize("outputs", [1, 61])
def test_nbytes_is_what_the_packing_takes(text: str, outputs: int) -> None:
    scheme = Scheme.parse(text)
    assert PackedWeight.empty((outputs, 384), scheme).nbytes == scheme.nbytes((outputs, 384))


def test_nbytes_of_known_formats() -> None:
    # GGUF's blocks of 32 weights: Q4_0 18 bytes, Q4_1 20, Q8_0 34.
    sizes = {"int4-g32": 18, "int4-g32-zfloat": 20, "int8-g32": 34}
    assert {text: Scheme.parse(text).nbytes((1, 32)) for text in sizes} == sizes
    # bitsandbytes' blocks of 64: a float32 and 64 codes.
    assert Scheme.parse("nf4").nbytes((1, 64)) == 36


@pytest.mark.parametrize(
    "text",
    [
        *(
            "int4",
            "int3-g32",
            "int4-g8",
            "int5",
            "iq4-coded-g32",
            "int8-zfp",
            "int4-g32-zint ",
            "INT8",
            "",
            "g32",
        ),
        *("int8-row", "int8-sfloat16", "nf3", "nf4-g64", "nf4-sfloat32"),
    ],
)
def test_unknown_texts_are_refused_with_the_allowed_ones(text: str) -> None:
    with pytest.raises(QuantError, match=r"allowed: int4\|int5\|int6\|int8-g16"):
        Scheme.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 3},
        {"bits": 4, "group_size": 8},
        {"bits": 4, "codebook": "nf4"},
        {"bits": 8, "group_size": 64, "codebook": "nf4"},
        {"bits": 4, "group_size": 64, "codebook": "nf4", "zeros": "int"},
        {"bits": 8, "scales": "float64"},
        {"bits": 8, "group_size": 33},
        {"bits": 8, "zeros": "maybe"},
        {"bits": 16, "codebook": "float32"},
        {"bits": 32, "codebook": "float32", "group_size": 32},
        {"bits": 16},
    ],
)
def test_impossible_schemes_are_refused(fields: dict) -> None:
    with pytest.raises(QuantError, match="no layout for"):
        Scheme(**fields)


def test_floating_takes_float_types_only() -> None:
    assert Scheme.floating(torch.bfloat16) == Scheme(16, codebook="bfloat16")
    with pytest.raises(QuantError, match="float64"):
        Scheme.floating(torch.float64)


def test_a_row_that_groups_do_not_divide_names_the_remedy() -> None:
    with pytest.raises(QuantError, match=r"divisible by 128.*group size 32 or 64"):
        Scheme.parse("int4-g128").check((576, 576))
    with pytest.raises(QuantError, match="use int8"):
        Scheme.parse("int4-g32").check((8, 50))
    with pytest.raises(QuantError, match=r"divisible by 2.*use int8"):
        Scheme.parse("int4-row").check((8, 51))
    with pytest.raises(QuantError, match="matrices"):
        Scheme.parse("int8").check((576,))


def scheme_text(recipe: Recipe, name: str, inputs: int = 576) -> str:
    return str(recipe.schemes_for(name, (64, inputs), torch.bfloat16)[0])


def test_default_recipe() -> None:
    recipe = Recipe.parse("int4")
    for inputs, text in ((576, "iq4-g32-coded"), (80, "iq4-g16-coded"), (72, "int8")):
        assert scheme_text(recipe, "layers.3.attn.q", inputs) == text
    for name, bits in (("v", 6), ("k", 5), ("o", 5), ("qkv", 5)):
        for inputs, text in ((576, "g32-coded"), (80, "g16-coded")):
            wanted = scheme_text(recipe, f"layers.30.attn.{name}", inputs)
            assert wanted == f"int{bits}-{text}"
    assert scheme_text(recipe, "embed") == scheme_text(recipe, "head") == "int6-g32-coded"
    assert str(recipe) == "int4"


def test_nf4_recipe() -> None:
    recipe = Recipe.parse("nf4")
    for inputs, text in ((576, "nf4"), (160, "nf4-g32"), (80, "int8")):
        assert scheme_text(recipe, "layers.3.mlp.down", inputs) == text
    assert scheme_text(recipe, "embed") == scheme_text(recipe, "head") == "int8"


@pytest.mark.parametrize(
    ("asked", "stored", "kept"),
    [
        *(("int4", text, True) for text in ("int4-g32", "int4-g128-zint-sbfloat16", "int4-row")),
        *(("int4", text, False) for text in ("nf4", "int8", "float32")),
        *(("nf4", text, True) for text in ("nf4", "nf4-g128", "nf4-sfloat16")),
        *(("nf4", text, False) for text in ("fp4", "int4-g32")),
        *(("int8", text, True) for text in ("int8", "int8-sfloat32")),
        *(("int8", text, False) for text in ("int8-g32", "int8-zint")),
    ],
)
def test_files_keep_what_the_recipe_accepts(asked: str, stored: str, kept: bool) -> None:
    assert Recipe.parse(asked).accepts("layers.0.attn.q", Scheme.parse(stored)) == kept


def test_a_scheme_text_and_none_apply_everywhere() -> None:
    for name in ("layers.0.mlp.down", "embed", "head"):
        assert scheme_text(Recipe.parse("int8-g64-zint"), name) == "int8-g64-zint"
        assert scheme_text(Recipe.parse("none"), name) == "bfloat16"


def test_overrides_match_by_pattern_and_the_last_one_wins() -> None:
    overrides = {"layers.*": "int8-g32", "layers.1?.mlp.down": "none", "layers.2.*": "int4-g32"}
    recipe = Recipe.parse({"default": "int4-g64", "overrides": overrides})
    assert scheme_text(recipe, "head") == "int4-g64"
    assert scheme_text(recipe, "layers.1.mlp.down") == "int8-g32"
    assert scheme_text(recipe, "layers.12.mlp.down") == "bfloat16"
    assert scheme_text(recipe, "layers.2.mlp.down") == "int4-g32"


def test_data_can_start_from_a_named_recipe() -> None:
    recipe = Recipe.parse({"default": "int4", "overrides": {"*.v": "int8", "head": "int4-g64"}})
    assert scheme_text(recipe, "layers.0.attn.v") == "int8"
    assert scheme_text(recipe, "layers.0.attn.k") == "int5-g32-coded"
    assert scheme_text(recipe, "embed") == "int6-g32-coded"
    assert scheme_text(recipe, "head") == "int4-g64"


def test_a_json_file_is_a_recipe(tmp_path: Path) -> None:
    data = {"default": ["int4-g128", "int4-g32"], "overrides": {"head": "int8"}}
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    for given in (path, str(path)):
        recipe = Recipe.parse(given)
        assert scheme_text(recipe, "layers.0.attn.v") == "int4-g32"
        assert scheme_text(recipe, "layers.0.attn.v", inputs=256) == "int4-g128"
    assert Recipe.parse(recipe) is recipe
    assert Recipe.parse(recipe.to_dict()).to_dict() == recipe.to_dict()


@pytest.mark.parametrize("given", ["int4", "nf4", "none", "int8-g32", "nf4-sfloat16"])
def test_recipes_survive_data_and_pickle(given: str) -> None:
    recipe = Recipe.parse(given)
    again = Recipe.parse(json.loads(json.dumps(recipe.to_dict())))
    for name in ("layers.0.attn.v", "embed"):
        assert scheme_text(again, name) == scheme_text(recipe, name)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("int7", r"allowed: none, int4, int5, int6, nf4, int4\|int5"),
        ("auto", "allowed"),
        ("missing.json", "cannot read the recipe missing.json"),
        ({"default": "int7"}, "unknown scheme 'int7'"),
        ({"overrides": {}}, "default required"),
        ({"default": "int8", "override": {}}, "holds the keys"),
        ({"default": "int8", "overrides": ["head"]}, "map patterns"),
        ({"default": 4}, "a scheme or a list"),
        ({"default": []}, "a scheme or a list"),
    ],
)
def test_bad_recipes_say_what_is_allowed(given: str | dict, message: str) -> None:
    with pytest.raises(QuantError, match=message):
        Recipe.parse(given)


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text("{default: int4}", encoding="utf-8")
    with pytest.raises(QuantError, match=r"bad\.json is not JSON"):
        Recipe.parse(path)


def test_a_scheme_that_does_not_fit_names_the_tensor() -> None:
    with pytest.raises(QuantError, match=r"layers\.0\.attn\.q: int4-g128 needs"):
        scheme_text(Recipe.parse("int4-g128"), "layers.0.attn.q")


@pytest.mark.parametrize(
    ("recipe", "name", "scheme", "accepted"),
    [
        ("int4", "layers.0.attn.q", "int4-g32-zfloat", True),
        ("int4", "layers.0.attn.q", "int4-g128", True),
        ("int4", "layers.0.attn.q", "int8-g32", False),
        ("int4", "layers.0.attn.q", "iq4-g32", True),
        ("int4", "layers.0.attn.q", "int5-g32-coded", False),
        ("int4", "layers.0.attn.v", "int6-g16-coded", True),
        ("int4", "embed", "int8-g32", False),
        ("int4", "embed", "int6-g16-coded", True),
        ("int4", "head", "int4-g32", True),
        ("int4", "embed", "float32", False),
        ("int4-g32", "layers.0.attn.q", "int4-g32", True),
        ("int4-g32", "layers.0.attn.q", "int4-g32-zfloat", False),
        ("int8", "embed", "int8-g32", False),
        ("none", "embed", "int8", False),
        ("none", "embed", "bfloat16", True),
    ],
)
def test_which_packed_weights_a_recipe_accepts(
    recipe: str, name: str, scheme: str, accepted: bool
) -> None:
    assert Recipe.parse(recipe).accepts(name, Scheme.parse(scheme)) is accepted


def test_patterns_that_match_nothing_are_found() -> None:
    recipe = Recipe.parse({"default": "int8", "overrides": {"*.up": "none", "*.wo": "none"}})
    assert recipe.unused_patterns(["layers.0.mlp.up", "head"]) == ["*.wo"]
    assert Recipe.parse("int4").unused_patterns(["layers.0.mlp.up"]) == []  # no family has all


def test_names_without_torch_are_those_of_what_they_name() -> None:
    from quant import names
    from quant.backends import KERNELS
    from quant.methods import CALIBRATED_METHODS, METHODS
    from quant.recipe import NAMED

    assert tuple(NAMED) == names.RECIPE_NAMES
    assert tuple(METHODS) == names.METHOD_NAMES
    assert tuple(CALIBRATED_METHODS) == names.CALIBRATED_NAMES
    assert tuple(dict.fromkeys(kernel.backend for kernel in KERNELS)) == names.BACKENDS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("q4_k_m", "int4"), ("Q4_K_S", "int4"), ("UD-Q4_K_XL", "int4"), ("iq2_xxs", "int4")),
        *(("q5_k_m", "int5"), ("Q6_K", "q6_k"), ("Q8_0", "q8_0"), ("INT4", "int4")),
        *(("bf16", "none"), ("fp16", "none"), ("4bit", "int4"), ("8", "int8"), ("gptq", "int4")),
    ],
)
def test_names_of_other_programs_are_told_the_scheme(name: str, meant: str) -> None:
    with pytest.raises(QuantError, match=rf"{name}'; did you mean {meant}\?"):
        Recipe.parse(name)
