"""What a config.json may say: each family's keys, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.config import ModelConfig
from edgelm.errors import EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.models import FAMILIES, family_of
from edgelm.reports.benchmark import random_model

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "gemma2": _SIZES | {"head_dim": 16, "sliding_window": 8},
    "helium": _SIZES | {"head_dim": 16},
    "persimmon": _SIZES,
    "bloom": {"vocab_size": 64, "n_embed": 32, "n_layer": 2, "n_head": 2, "seq_length": 64},
}
FILE_LINES = 150


def data(family: str, **changes: Any) -> dict[str, Any]:
    return CONFIGS[family] | {"model_type": family} | changes


def read(family: str, **changes: Any) -> ModelConfig:
    """The config, and the decoder built from it: some values are only looked at there."""
    config = family_of(data(family)).read_config(data(family, **changes))
    family_of(data(family)).build(config, None)
    return config


ROPE = ("llama", "gemma2", "helium", "persimmon")
WRONG: list[tuple[str, dict[str, Any], type[EdgeLMError], str]] = [
    ("gemma2", {"layer_types": ["full_attention"]}, ModelFileError, "must name 3 layers"),
    ("gemma2", {"layer_types": ["full_attention"] * 2 + ["x"]}, ModelFileError, "layer_types"),
    ("gemma2", {"layer_types": [["full_attention"]] * 3}, ModelFileError, "layer_types"),
    ("gemma2", {"layer_types": "full_attention"}, ModelFileError, "layer_types"),
    ("gemma2", {"sliding_window": 0}, ModelFileError, "sliding_window is 0"),
    ("gemma2", {"sliding_window": -8}, ModelFileError, "sliding_window is -8"),
    ("gemma2", {"sliding_window": 8.5}, ModelFileError, "sliding_window is 8.5"),
    ("gemma2", {"hidden_activation": "relu"}, UnsupportedModelError, "hidden_activation is 'relu'"),
    ("gemma2", {"attn_logit_softcapping": -1}, ModelFileError, "attn_logit_softcapping is -1"),
    ("gemma2", {"final_logit_softcapping": "x"}, ModelFileError, "final_logit_softcapping is 'x'"),
    ("gemma2", {"query_pre_attn_scalar": 0}, ModelFileError, "query_pre_attn_scalar is 0"),
    ("gemma2", {"use_bidirectional_attention": True}, UnsupportedModelError, "causal"),
    ("gemma2", {"num_key_value_heads": 3}, ModelFileError, "does not divide"),
    ("helium", {"head_dim": 8}, ModelFileError, "is not hidden_size 32"),
    ("helium", {"hidden_act": "gelu"}, UnsupportedModelError, "supported: silu"),
    ("helium", {"num_attention_heads": 0}, ModelFileError, "num_attention_heads is 0"),
    ("persimmon", {"hidden_act": "silu"}, UnsupportedModelError, "supported: relu2"),
    ("persimmon", {"num_attention_heads": 3}, ModelFileError, "does not divide"),
    ("persimmon", {"qk_layernorm": 1}, ModelFileError, "qk_layernorm is 1"),
    ("persimmon", {"layer_norm_eps": float("nan")}, ModelFileError, "layer_norm_eps is nan"),
    ("bloom", {"n_head": 3}, ModelFileError, "does not divide by n_head 3"),
    ("bloom", {"n_embed": None}, ModelFileError, "has no n_embed or hidden_size"),
    ("bloom", {"n_layer": "2"}, ModelFileError, "n_layer is '2'"),
    ("bloom", {"seq_length": -1}, ModelFileError, "seq_length is -1"),
    ("bloom", {"apply_residual_connection_post_layernorm": "no"}, ModelFileError, "true or false"),
]
for part in (0, -0.5, 1.5, 0.001, "half", True, float("inf"), [0.5], 10**400):
    flat = {"partial_rotary_factor": part}
    for changes in (flat, {"rope_parameters": flat}):
        WRONG.append(("persimmon", changes, ModelFileError, "partial_rotary_factor"))
for family in ROPE:
    WRONG += [
        (family, {"rope_theta": 0}, ModelFileError, "rope_theta is 0"),
        (family, {"rope_parameters": "linear"}, ModelFileError, "expected an object"),
        (
            family,
            {"rope_scaling": {"type": "dynamic", "factor": "2"}},
            ModelFileError,
            "factor is '2'",
        ),
        (family, {"rope_parameters": {"rope_type": "su"}}, UnsupportedModelError, "'su'"),
        (family, {"vocab_size": True}, ModelFileError, "vocab_size is True"),
        (family, {"hidden_size": 2**40}, ModelFileError, "hidden_size is 1099511627776"),
        (family, {"eos_token_id": ["</s>"]}, ModelFileError, "eos_token_id"),
    ]


@pytest.mark.parametrize(
    ("family", "changes", "error", "message"), WRONG, ids=lambda value: str(value)[:40]
)
def test_a_wrong_value_is_named(
    family: str, changes: dict[str, Any], error: type[EdgeLMError], message: str
) -> None:
    with pytest.raises(error) as caught:
        read(family, **changes)
    assert type(caught.value) is error and message in str(caught.value), caught.value
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_absent(family: str) -> None:
    nulls = ("dtype", "torch_dtype", "rope_scaling", "pad_token_id", "quantization_config")
    assert read(family, **dict.fromkeys(nulls)) == read(family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("missing", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_a_required_key_has_no_default(family: str, missing: str) -> None:
    old = {"hidden_size": "n_embed", "num_hidden_layers": "n_layer"}
    key = old.get(missing, missing) if family == "bloom" else missing
    with pytest.raises(ModelFileError, match=key):
        read(family, **{key: None})


@pytest.mark.parametrize("family", ROPE)
def test_dynamic_rope_lengthens_the_context_once(family: str) -> None:
    config = read(family, rope_parameters={"rope_type": "dynamic", "factor": 3.0})
    assert config.rope is not None
    assert (config.max_context, config.rope.trained_context) == (192, 64)


def test_defaults_are_the_familys_own() -> None:
    bare = dict.fromkeys(("max_position_embeddings", "rope_theta", "rms_norm_eps"))
    found = {}
    for family in ROPE:
        config = read(family, **bare)
        assert config.rope is not None
        found[family] = (config.max_context, config.rope.theta, config.norm_eps)
    assert found == {
        "llama": (2048, 1e4, 1e-6),
        "gemma2": (8192, 1e4, 1e-6),
        "helium": (4096, 1e5, 1e-8),
        "persimmon": (16384, 25e3, 1e-5),
    }


def test_both_names_of_gemmas_activation() -> None:
    for key in ("hidden_act", "hidden_activation"):
        assert read("gemma2", **{key: "gelu_pytorch_tanh"}).activation == "gelu_pytorch_tanh"
    both = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu"}
    assert read("gemma2", **both).activation == "gelu_pytorch_tanh"  # the first is the one meant


def test_windows_given_and_absent() -> None:
    assert read("gemma2").windows == (8, None, 8)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert read("gemma2", layer_types=kinds).windows == (None, 8, None)
    all_full = read("gemma2", layer_types=["full_attention"] * 3, sliding_window=4096)
    assert all_full.windows == (None,) * 3  # a window that no layer has may be any
    assert read("gemma2", sliding_window=64).windows == (64, None, 64)


def test_blooms_two_spellings() -> None:
    long = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    short = dict.fromkeys(("n_embed", "n_layer", "n_head"))
    assert read("bloom", **long, **short) == read("bloom")
    assert read("bloom", seq_length=None).max_context == 2048


def test_float16_is_refused_with_the_reason() -> None:
    files = random_model(data("gemma2"), "none")
    with pytest.raises(edgelm.UsageError, match=r"float16.*range \(65504\).*bfloat16"):
        edgelm.plan(files, dtype="float16")
    with pytest.raises(edgelm.UsageError, match=r"float16.*CPU.*bfloat16"):
        edgelm.plan(random_model(data("llama"), "none"), dtype="float16")
    for dtype in ("float32", "bfloat16"):
        assert edgelm.plan(files, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_beyond_the_models(family: str) -> None:
    files = random_model(data(family), "none")
    assert edgelm.plan(files).context == edgelm.plan(files, context=64).context == 64
    if family == "bloom":  # ALiBi has no table of positions to run out of
        assert edgelm.plan(files, context=65).context == 65
        return
    with pytest.raises(edgelm.ContextLengthError) as caught:
        edgelm.plan(files, context=65)
    assert (caught.value.given, caught.value.allowed) == (65, 64)


def test_a_window_longer_than_the_context_asked_for_is_fine() -> None:
    files = random_model(data("gemma2", sliding_window=32), "none")
    plan = edgelm.plan(files, context=16, chunk=4)
    parts = [part.bytes for part in plan.parts if part.name.startswith("kv cache.")]
    assert sum(parts) == 3 * 16 * 2 * 2 * 16 * 4


def test_a_family_is_one_short_file() -> None:
    folder = Path(edgelm.__file__).parent / "models"
    files = [folder / f"{family}.py" for family in FAMILIES]
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    print(lengths)
    assert max(lengths.values()) < FILE_LINES
