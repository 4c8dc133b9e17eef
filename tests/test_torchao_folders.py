"""torchao folders: what is checked in them, and those that torchao and transformers write.

That numbers and logits are those of the format is in ``test_packed_readers.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama_weights
from packed_folders import CONFIG, Variant
from safetensors.torch import load_file, save_file
from test_quantized_folders import (
    PROMPT,
    assert_same_numbers,
    change,
    logits,
    write,
)
from torch import Tensor
from torchao_folders import INTX, TORCHAO, bytes_variant

import edgelm
from edgelm.checkpoint.opening import open_checkpoint

INT8, _, ASYMMETRIC, *_, NIBBLES, TILES, _ = TORCHAO
Q = "model.layers.0.self_attn.q_proj.weight"


def described(variant: Variant, folder: Path, text: Any = None, **fields: Any) -> None:
    """Replace the metadata of q_proj, or fields of it."""
    file = folder / "model.safetensors"
    matrix = tiny_llama_weights(CONFIG)[Q]
    assert variant.describe is not None
    told = {name: json.dumps(variant.describe(own))
            for name, own in tiny_llama_weights(CONFIG | (variant.config or {})).items()
            if own.dim() == 2 and not any(kept in name for kept in variant.keeps)}  # fmt: skip
    changed = variant.describe(matrix)
    changed["_data"] |= fields
    told[Q] = json.dumps(changed) if text is None else text
    save_file(load_file(file), file, told)


FALSE: list[tuple[Variant, dict[str, Any], str]] = [
    (INT8, {"text": "{"}, "metadata of model.*q_proj.weight is not JSON"),
    (INT8, {"text": "[" * 100_000}, "is not JSON"),
    (INT8, {"text": "[]"}, "has no _type"),
    (INT8, {"text": '{"_type": "Int8Tensor"}'}, "has no _data"),
    (INT8, {"text": '{"_type": "Float8Tensor", "_data": {}}'}, "Float8Tensor; supported: Int8Ten"),
    (INT8, {"block_size": [128, 128]}, "a scale per block of"),
    (INT8, {"block_size": [1, 64]}, r"_weight_scale is float32 \[128, 1\]"),
    (INT8, {"block_size": [1]}, "block_size"),
    (INT8, {"block_size": [1, 16]}, "_weight_scale is float32"),
    (INT8, {"act_quant_kwargs": {"_type": "x"}}, "act_quant_kwargs"),
    (ASYMMETRIC, {"activation_quantization": "int8_asym_per_token"}, "activation_quantization"),
    (ASYMMETRIC, {"target_dtype": {"_data": "int9"}}, "'int9'"),
    (ASYMMETRIC, {"target_dtype": {"_data": ["int4"]}}, "target_dtype"),
    (NIBBLES, {"activation_dtype": {"_data": "float8_e4m3fn"}}, "float8_e4m3fn"),
    (NIBBLES, {"shape": [128]}, "has shape"),
    (NIBBLES, {"shape": [128, True]}, "has shape"),
    (NIBBLES, {"block_size": [1, 16]}, "is bfloat16"),
    (TILES, {"shape": [256, 128]}, "_weight_qdata is I32"),
    (TILES, {"block_size": [1, 48]}, "a scale per block of"),
]


@pytest.mark.parametrize(("variant", "told", "message"), FALSE)
def test_what_torchao_says_of_a_weight_is_checked(
    variant: Variant, told: dict[str, Any], message: str, tmp_path: Path
) -> None:
    packed, _ = variant.write(tmp_path)
    described(variant, packed)
    open_checkpoint(packed)
    described(variant, packed, **told)
    with pytest.raises(edgelm.EdgeLMError, match=message):
        open_checkpoint(packed)


@pytest.mark.parametrize("part", ["qdata", "scale"])
def test_a_missing_part_of_torchao_is_named(part: str, tmp_path: Path) -> None:
    packed, _ = INT8.write(tmp_path)
    file, name = packed / "model.safetensors", f"{Q.removesuffix('weight')}_weight_{part}"
    stored = load_file(file)
    del stored[name]
    save_file(stored, file)
    described(INT8, packed)
    with pytest.raises(edgelm.ModelFileError, match=rf"{name}, which is missing"):
        open_checkpoint(packed)


@pytest.mark.parametrize("variant", [INT8, ASYMMETRIC], ids=["zeros", "range"])
def test_torchaos_codes_and_zeros_are_checked(variant: Variant, tmp_path: Path) -> None:
    packed, _ = variant.write(tmp_path)
    file, name = packed / "model.safetensors", f"{Q.removesuffix('weight')}_weight_zero_point"
    stored = load_file(file)
    stored[name][5] = 9
    save_file(stored, file)
    described(variant, packed)
    with pytest.raises(edgelm.ModelFileError, match=r"symmetric, but has|more than 4 bits"):
        open_checkpoint(packed).read(Q)


def peer_configs() -> dict[str, Any]:
    from torchao.quantization import (
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerAxis,
        PerGroup,
    )

    four = {"weight_dtype": torch.int4, "granularity": PerGroup(32)}
    return {
        "int8": Int8WeightOnlyConfig(),
        "int4": IntxWeightOnlyConfig(**four),
        "int4-zero": IntxWeightOnlyConfig(**four, mapping_type=MappingType.ASYMMETRIC),
        "int6": IntxWeightOnlyConfig(weight_dtype=torch.int6, granularity=PerAxis(0)),
    }


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["int8", "int4", "int4-zero", "int6"])
def test_folders_that_transformers_saves_by_torchao(kind: str, tmp_path: Path) -> None:
    """Several files, embeddings too: every number is the library's, logits within float32."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchao")
    _, plain = write(tmp_path, lambda name, weight: None, {})
    config = transformers.TorchAoConfig(
        peer_configs()[kind], include_input_output_embeddings=kind == "int4"
    )
    loader, own = transformers.AutoModelForCausalLM, {"dtype": torch.float32, "device_map": "cpu"}
    model = loader.from_pretrained(plain, quantization_config=config, **own)
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    theirs = loader.from_pretrained(tmp_path / "saved", **own).eval()
    found = open_checkpoint(tmp_path / "saved")
    values = {
        n: t.dequantize() if type(t) is not Tensor else t for n, t in theirs.state_dict().items()
    }
    assert set(found.names()) == set(values)
    assert all(torch.equal(found.read(name), value) for name, value in values.items())
    packed = sum(found.info(name).scheme is not None for name in found.names())
    assert packed == (15 if kind == "int4" else 14)
    with torch.no_grad():
        expected = theirs(PROMPT).logits
    ours = logits(tmp_path / "saved")
    assert float((ours - expected).abs().max()) < 1e-4


@pytest.mark.peer
@pytest.mark.parametrize("variant", [NIBBLES, TILES], ids=["plain", "tiles"])
def test_names_and_metadata_of_int4_are_torchaos(variant: Variant, tmp_path: Path) -> None:
    """Its classes can be made on a CPU, though not its numbers."""
    quantization = pytest.importorskip("torchao.quantization")
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    weights = tiny_llama_weights(CONFIG)
    parts, values = variant.pack(weights[Q])
    assert variant.describe is not None
    told = variant.describe(weights[Q])
    tensors = {name.removeprefix("_weight_"): part.contiguous() for name, part in parts.items()}
    made = getattr(quantization, told["_type"])(
        **tensors, block_size=[1, told["_data"]["block_size"][1]], shape=weights[Q].shape
    )
    flat, metadata = flatten_tensor_state_dict(weights | {Q: made})
    config = CONFIG | {"quantization_config": variant.settings}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(
        {n: t.contiguous() for n, t in flat.items()}, tmp_path / "model.safetensors", metadata
    )
    assert torch.equal(open_checkpoint(tmp_path).read(Q), values)


def test_groups_of_intx_without_a_setting_for_all_have_zeros(tmp_path: Path) -> None:
    """FqnToConfig names settings by module: zero points are kept, as none is known to be zero."""
    packed, plain = bytes_variant(INTX, 32, "", target="int4").write(tmp_path)
    change(packed, quant_type={"default": {"_type": "FqnToConfig", "_data": {}}})
    assert str(open_checkpoint(packed).info(Q).scheme) == "int4-g32-zint-sfloat32"
    assert_same_numbers(packed, plain)
