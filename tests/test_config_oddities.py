"""Configs as people have them: old keys beside new ones, heads beside tied ones, other names.

transformers is the oracle: what it makes of a folder, our logits must be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from gguf_models import write_gguf_model
from oracle import assert_close, load_exact
from safetensors.torch import load_file, save_file

import edgelm
from edgelm.budget.parts import PROCESS, Part
from edgelm.budget.plan import Plan
from edgelm.errors import UnsupportedModelError
from edgelm.models.model_files import ModelFiles

TOKENS = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(5))


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; ... removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    path.write_text(json.dumps(kept))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def assert_as_transformers(folder: Path) -> torch.Tensor:
    """Our logits, equal to those of the folder as transformers reads it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = model(TOKENS).logits
    with load_exact(folder) as lm:
        ours = lm.forward(TOKENS).logits
    assert_close(ours, expected)
    return ours


SCALINGS: list[dict[str, Any]] = [
    {"type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2", "helium"])
def test_a_users_rope_scaling_stands_above_rope_parameters(
    tmp_path: Path, family: str, scaling: dict[str, Any]
) -> None:
    """As model cards tell to add it to a folder that transformers 5 saved."""
    _, folder = oracle.family(family, tmp_path)
    before = assert_as_transformers(folder)
    edit(folder, rope_scaling=scaling)
    assert (assert_as_transformers(folder) - before).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma2", "helium"])
@pytest.mark.parametrize("place", ["top", "rope_parameters"])
def test_a_partial_factor_does_nothing_where_whole_heads_rotate(
    tmp_path: Path, family: str, place: str
) -> None:
    _, folder = oracle.family(family, tmp_path)
    if place == "top":
        edit(folder, partial_rotary_factor=0.5)
    else:
        told = json.loads((folder / "config.json").read_text())["rope_parameters"]
        edit(folder, rope_parameters=told | {"partial_rotary_factor": 0.5})
    assert_as_transformers(folder)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_head_beside_the_embedding_is_used(tmp_path: Path, family: str) -> None:
    """tie_word_embeddings is true and the file holds another head: in loading, plan and export."""
    _, folder = oracle.family(family, tmp_path, tie_word_embeddings=True)
    tied = assert_as_transformers(folder)
    embed = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    # Only the last row differs: no sample of some rows would do.
    other = embed.clone()
    other[-1] *= -3
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": other}))
    ours = assert_as_transformers(folder)
    assert (ours - tied).abs().max() > 0.01
    plan = edgelm.plan(folder, quant="none", context=48)
    assert {"weights.head", "weights.embed"} <= {part.name for part in plan.parts}
    out = tmp_path / "out"
    edgelm.quantize(folder, out, quant="int8")
    again = json.loads((out / "config.json").read_text())
    assert again["tie_word_embeddings"] is False and not ModelFiles.open(out).config.tied
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": embed.clone()}))
    assert torch.equal(assert_as_transformers(folder), tied)
    assert ModelFiles.open(folder).config.tied


def tensors_of(plan: Plan) -> list[Part]:
    """The parts of a plan but for the process, which grows from test to test."""
    return [part for part in plan.parts if part.name not in PROCESS]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_tied_matrix_under_the_heads_name_only(tmp_path: Path, family: str) -> None:
    """A writer dropped the other name of the shared storage."""
    _, folder = oracle.family(family, tmp_path, tie_word_embeddings=True)
    tied = assert_as_transformers(folder)
    planned = tensors_of(edgelm.plan(folder, quant="int8"))

    def rename(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    change_weights(folder, rename)
    assert torch.equal(assert_as_transformers(folder), tied)
    assert tensors_of(edgelm.plan(folder, quant="int8")) == planned


def test_a_window_beyond_a_shortened_context(tmp_path: Path) -> None:
    _, folder = oracle.family("gemma2", tmp_path)
    edit(folder, max_position_embeddings=48, sliding_window=4096)
    assert_as_transformers(folder)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_act": "swish"}),
        ("helium", {"hidden_act": "swish"}),
        ("gemma2", {"hidden_activation": ..., "hidden_act": "gelu"}),
        ("gemma2", {"hidden_activation": "gelu_new"}),
        ("gemma2", {"hidden_activation": "gelu_fast"}),
        ("gemma2", {"hidden_activation": "gelu_python_tanh"}),
        ("gemma2", {"hidden_activation": "gelu_accurate"}),
    ],
    ids=str,
)
def test_activations_by_other_names(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    _, folder = oracle.family(family, tmp_path)
    edit(folder, **changes)
    assert_as_transformers(folder)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_ggufs_factor_without_a_type_is_linear(tmp_path: Path, family: str) -> None:
    """llama.cpp's default; and rope.scale_linear, the key of files before 2023-10."""
    _, folder = oracle.family(family, tmp_path)
    whole = write_gguf_model(folder, tmp_path / "plain.gguf")
    keys = {
        "typed": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        "untyped": {"rope.scaling.factor": 4.0},
        "old": {"rope.scale_linear": 4.0},
        "none": {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        "one": {"rope.scaling.factor": 1.0},
        "zero": {"rope.scaling.factor": 0.0},
    }
    logits = {"plain": logits_of(whole)}
    for name, more in keys.items():
        path = tmp_path / f"{name}.gguf"
        logits[name] = logits_of(write_gguf_model(folder, path, more=more))
    assert torch.equal(logits["typed"], logits["untyped"])
    assert torch.equal(logits["typed"], logits["old"])
    assert not torch.equal(logits["typed"], logits["plain"])
    assert all(torch.equal(logits[name], logits["plain"]) for name in ("none", "one", "zero"))
    with pytest.raises(UnsupportedModelError, match="'su'"):
        write_gguf_model(folder, tmp_path / "su.gguf", more={"rope.scaling.type": "su"})
        ModelFiles.open(tmp_path / "su.gguf")


def logits_of(path: Path) -> torch.Tensor:
    with load_exact(path) as lm:
        return lm.forward(TOKENS).logits
