"""What users get wrong in Python: one clear error of the right class, and nothing lost.

The readers' and the command line's own cases stand with them (test_gguf_header,
test_safetensors_files, test_cli).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from safetensors.torch import load_file, save_file

import edgelm


def changed_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return folder


def changed_weight(folder: Path, name: str, change: Callable[[torch.Tensor], Any]) -> Path:
    path = folder / "model.safetensors"
    weights = load_file(path)
    result = change(weights.pop(name))
    if result is not None:
        weights[name] = result
    save_file(weights, path)
    return folder


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "mamba"}, edgelm.UnsupportedModelError, "'mamba'.*llama"),
        ({"model_type": "absent"}, edgelm.ModelFileError, "model_type"),
        ({"hidden_act": "gelu_new"}, edgelm.UnsupportedModelError, "'gelu_new'.*silu"),
        ({"hidden_size": "absent"}, edgelm.ModelFileError, "hidden_size"),
        ({"hidden_size": -48}, edgelm.ModelFileError, "hidden_size"),
        ({"hidden_size": 1 << 60}, edgelm.ModelFileError, "hidden_size"),
        ({"vocab_size": "many"}, edgelm.ModelFileError, "vocab_size"),
        ({"num_key_value_heads": 4}, edgelm.ModelFileError, "divide"),
        ({"rms_norm_eps": 0}, edgelm.ModelFileError, "rms_norm_eps"),
        ({"eos_token_id": "end"}, edgelm.ModelFileError, "eos_token_id"),
        ({"rope_parameters": {"rope_type": "mystery"}}, edgelm.UnsupportedModelError, "mystery"),
        ({"rope_parameters": {"rope_type": "linear"}}, edgelm.ModelFileError, "factor"),
        ({"rope_parameters": [1]}, edgelm.ModelFileError, "rope_parameters"),
        (
            {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}},
            edgelm.ModelFileError,
            "short_factor",
        ),
        ({"quantization_config": {"quant_method": "exl2"}}, edgelm.UnsupportedModelError, "exl2"),
    ],
)
def test_configs(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    _, folder = oracle.llama(tmp_path)
    with pytest.raises(error, match=message):
        edgelm.load(changed_config(folder, **changes))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", lambda w: None, "no tensor.*up_proj"),
        ("model.layers.1.mlp.up_proj.weight", lambda w: w[:-1].clone(), "shape"),
        ("model.layers.0.self_attn.q_proj.bias", lambda w: None, "q_proj.bias"),
        ("model.norm.weight", lambda w: w[:4].clone(), "shape"),
        ("model.layers.2.self_attn.o_proj.weight", lambda w: w[None].clone(), "shape"),
    ],
)
def test_weights_that_do_not_belong(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], Any], message: str
) -> None:
    _, folder = oracle.llama(tmp_path)
    with pytest.raises(edgelm.ModelFileError, match=message):
        edgelm.plan(changed_weight(folder, name, change))


def spoiled(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.clone()
    weight.view(-1)[3] = float("nan")
    return weight


@pytest.mark.parametrize("quant", ["none", "int4", "int8"])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"]
)
def test_nan_weights(tmp_path: Path, quant: str, name: str) -> None:
    _, folder = oracle.llama(tmp_path)
    changed_weight(folder, name, spoiled)
    with pytest.raises(edgelm.ModelFileError, match=name):
        edgelm.load(folder, quant=quant)


def test_overflow_names_the_layer(tmp_path: Path) -> None:
    """Finite weights whose products are not: the message says which layer came first."""
    _, folder = oracle.llama(tmp_path)
    changed_weight(folder, "model.layers.1.mlp.down_proj.weight", lambda w: w * 1e30 + 1e37)
    lm = oracle.load_exact(folder)
    with pytest.raises(edgelm.NonFiniteError, match=r"layers\.1 "):
        lm.forward(torch.tensor([[5, 6, 7]]))


def test_a_folder_without_tokenizer_runs_on_ids_and_says_so_for_text(tmp_path: Path) -> None:
    _, folder = oracle.llama(tmp_path)
    with edgelm.load(folder) as lm:
        assert lm.forward(torch.tensor([[5, 6]])).logits.shape == (1, 2, 211)
        with pytest.raises(edgelm.ModelFileError, match="tokenizer"):
            lm.generate("text")


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        ("int7", "int7"),
        ("int4-g48", "int4-g48"),
        ({"default": "int4-g64", "overrides": {"layers.*.atn.v": "int8"}}, "name nothing"),
        ({"overrides": {}}, "default"),
        ("missing.json", "missing.json"),
    ],
)
def test_recipes(tmp_path: Path, quant: Any, message: str) -> None:
    _, folder = oracle.llama(tmp_path, hidden_size=96)
    with pytest.raises(edgelm.UsageError, match=message):
        edgelm.plan(folder, quant=quant)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"context": 0}, edgelm.UsageError),
        ({"context": 97}, edgelm.ContextLengthError),
        ({"context": "long"}, edgelm.UsageError),
        ({"chunk": 0}, edgelm.UsageError),
        ({"rows": 0}, edgelm.UsageError),
        ({"dtype": "float16"}, edgelm.UsageError),
        ({"dtype": "int4"}, edgelm.UsageError),
        ({"kv": "int3"}, edgelm.UsageError),
        ({"device": "tpu"}, edgelm.UsageError),
        ({"method": "awq"}, edgelm.UsageError),
        ({"budget": "-1"}, edgelm.UsageError),
        ({"backend": "magic"}, edgelm.UsageError),
        ({"task": "translation"}, edgelm.UsageError),
        ({"colour": "red"}, edgelm.UsageError),
        ({"threads": 0}, edgelm.UsageError),
        ({"threads": 100_000}, edgelm.UsageError),
    ],
)
def test_settings(tmp_path: Path, settings: dict[str, Any], error: type[Exception]) -> None:
    _, folder = oracle.llama(tmp_path)
    with pytest.raises(error):
        edgelm.load(folder, **settings)


@pytest.mark.parametrize(
    "call",
    [
        {"input_ids": torch.tensor([[1, 211]])},
        {"input_ids": torch.tensor([[-1]])},
        {"input_ids": torch.tensor([1, 2])},
        {"input_ids": torch.tensor([[0.5]])},
        {"input_ids": torch.zeros(1, 0, dtype=torch.long)},
        {},
        {"input_ids": torch.tensor([[1]]), "inputs_embeds": torch.zeros(1, 1, 48)},
        {"inputs_embeds": torch.zeros(1, 2, 47)},
        {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 0, 1]])},
        {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[0, 0, 0]])},
        {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 5)},
        {"input_ids": torch.tensor([[1, 2, 3]]), "position_ids": torch.tensor([[0, 1, 96]])},
        {"input_ids": torch.tensor([[1, 2, 3]]), "position_ids": torch.tensor([[0, 1]])},
        {"input_ids": torch.tensor([[1, 2, 3]]), "logits_to_keep": -1},
        {"input_ids": torch.tensor([[1, 2, 3]]), "logits_to_keep": torch.tensor([3])},
        {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2]])},
        {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 211]])},
        {
            "input_ids": torch.tensor([[1, 2, 3]]),
            "labels": torch.tensor([[1, 2, 3]]),
            "logits_to_keep": 1,
        },
    ],
)
def test_forward_calls(exact: edgelm.LanguageModel, call: dict[str, Any]) -> None:
    with pytest.raises(edgelm.UsageError):
        exact.forward(**call)
    assert exact.forward(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> edgelm.LanguageModel:
    _, folder = oracle.llama(tmp_path_factory.mktemp("llama"))
    return oracle.load_exact(folder)
