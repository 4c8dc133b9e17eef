"""Folders of other tools that say less, more or something else than the usual ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama_weights
from packed_folders import CONFIG, FLOATS, Packed, Variant, eight_bit, four_bit, gptq, grid, ungrid
from packed_folders import words as packed_words
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchao_folders import bytes_variant, tiles

import edgelm
from edgelm.checkpoint.gguf_header import read_header
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.cli.main import main
from edgelm.hub.headers import SETTINGS

PROMPT = torch.arange(1, 24).view(1, -1)
EXACT: dict[str, Any] = {"backend": "reference", "dtype": "float32"}


def pack_quantized(
    weight: Tensor, bits: int, group: int, symmetric: bool = True, order: Tensor | None = None
) -> Packed:
    """compressed-tensors' layout; order: input k is in the group of column order[k] of a matrix
    whose groups are neighbours."""
    codes, zeros, scales = grid(weight, bits, group, symmetric)
    values = ungrid(codes, zeros, scales)
    parts = {"weight_shape": torch.tensor(weight.shape), "weight_scale": scales}
    if order is not None:
        codes, values = codes[:, order], values[:, order]
        parts["weight_g_idx"] = (order // group).int()
    parts["weight_packed"] = packed_words(codes, bits)
    if not symmetric:
        parts["weight_zero_point"] = packed_words(zeros.t(), bits).t()
    return parts, values


def compressed_settings(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": weights | {"group_size": 32} | changes}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


def write(
    folder: Path, pack: Callable[[str, Tensor], Packed | None], settings: dict[str, Any],
    config: dict[str, Any] = CONFIG, metadata: dict[str, str] | None = None,
) -> tuple[Path, Path]:  # fmt: skip
    """(packed, plain) folders of a tiny Llama whose matrices ``pack`` packs, or leaves alone."""
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in tiny_llama_weights(config).items():
        done = pack(name, weight) if weight.dim() == 2 else None
        parts, plain[name] = done or ({"weight": weight}, weight)
        module = name.removesuffix(".weight")
        packed |= {f"{module}.{part}": own for part, own in parts.items()}
    for place, tensors in (("packed", packed), ("plain", plain)):
        told = config | ({"quantization_config": settings} if place == "packed" else {})
        (folder / place).mkdir()
        (folder / place / "config.json").write_text(json.dumps(told), "utf-8")
        contiguous = {name: own.contiguous() for name, own in tensors.items()}
        save_file(contiguous, folder / place / "model.safetensors", metadata)
    return folder / "packed", folder / "plain"


def change(folder: Path, **settings: Any) -> None:
    """Replace (...: remove) keys of the quantization_config."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    own = config["quantization_config"] | settings
    kept = {key: value for key, value in own.items() if value is not ...}
    path.write_text(json.dumps(config | {"quantization_config": kept}), "utf-8")


def logits(folder: Path, quant: str = "auto") -> Tensor:
    with edgelm.load(folder, quant=quant, **EXACT) as lm:
        return lm.forward(PROMPT).logits


def assert_same_numbers(packed: Path, plain: Path) -> None:
    found, expected = open_checkpoint(packed), open_checkpoint(plain)
    assert sorted(found.names()) == sorted(expected.names())
    for name in expected.names():
        assert torch.equal(found.read(name), expected.read(name).float()), name
        rows = expected.info(name).shape[0]
        assert torch.equal(found.read(name, 3, rows - 9), expected.read(name, 3, rows - 9).float())


def assert_one_model(packed: Path, plain: Path, tmp_path: Path, tensors: int) -> None:
    """Plan, load, inspect and quantize see the same stored matrices, with the floats' logits."""
    expected = logits(plain, "none")
    with edgelm.load(packed, **EXACT) as lm:
        assert sum(len(p.names) for p in lm.plan.products if p.stored) == tensors
        assert torch.equal(lm.forward(PROMPT).logits, expected)
        planned = edgelm.plan(packed, **EXACT)
        assert planned.products == lm.plan.products
    schemes = [
        open_checkpoint(packed).info(name).scheme for name in open_checkpoint(packed).names()
    ]
    assert sum(scheme is not None for scheme in schemes) == tensors
    edgelm.quantize(packed, tmp_path / "again", quant="int8")
    assert bool(torch.isfinite(logits(tmp_path / "again")).all())


def mixed_pack(name: str, weight: Tensor) -> Packed | None:
    """int8 by row in attention, int4 in groups with zero points elsewhere, one matrix ignored."""
    if "layers.1.mlp.down" in name or any(kept in name for kept in FLOATS):
        return None
    if "self_attn" in name:
        return pack_quantized(weight, 8, weight.shape[1])
    return pack_quantized(weight, 4, 32, symmetric=False)


def mixed_settings(**second: Any) -> dict[str, Any]:
    by_row = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    grouped = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group"}
    first = {"targets": ["re:.*self_attn.*"], "weights": by_row, "format": "pack-quantized"}
    rest = {"targets": ["Linear"], "weights": grouped | {"group_size": 32}}
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "group_0": first,
            "group_1": rest | {"format": "pack-quantized"} | second,
        },
        "ignore": ["lm_head", "re:.*layers\\.1\\.mlp\\.down_proj"],
    }


# Rows of 96 inputs: one scale per row is no group that a scheme has.
NARROW = CONFIG | {"hidden_size": 96, "head_dim": 24}


@pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["128", "96"])
def test_groups_with_formats_of_their_own(config: dict[str, Any], tmp_path: Path) -> None:
    packed, plain = write(tmp_path, mixed_pack, mixed_settings(), config)
    assert_same_numbers(packed, plain)
    assert_one_model(packed, plain, tmp_path, 13)
    found = open_checkpoint(packed)
    assert str(found.info("model.layers.0.self_attn.k_proj.weight").scheme) == "int8"
    assert str(found.info("model.layers.0.mlp.up_proj.weight").scheme) == "int4-g32-zint"
    assert found.info("model.layers.1.mlp.down_proj.weight").stays_float


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"format": "float-quantized"}, "'float-quantized'.*pack-quantized"),
        ({"format": None}, "format = None"),
        ({"input_activations": {"num_bits": 8}}, "input_activations.*supported: null"),
    ],
)
def test_a_group_that_is_not_run_is_named(
    second: dict[str, Any], message: str, tmp_path: Path
) -> None:
    packed, _ = write(tmp_path, mixed_pack, mixed_settings(**second))
    with pytest.raises(edgelm.UnsupportedModelError, match=message):
        open_checkpoint(packed)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("named", ["group", "dynamic", True])
def test_compressed_groups_by_importance(symmetric: bool, named: Any, tmp_path: Path) -> None:
    def pack(name: str, weight: Tensor) -> Packed | None:
        if any(kept in name for kept in FLOATS):
            return None
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(3))
        return pack_quantized(weight, 4, 32, symmetric, order if "q_proj" in name else None)

    told = compressed_settings(symmetric=symmetric, actorder=named)
    packed, plain = write(tmp_path, pack, told)
    assert_same_numbers(packed, plain)
    found = open_checkpoint(packed)
    assert str(found.info("model.layers.0.self_attn.q_proj.weight").nearest) == "int8-g32"
    with edgelm.load(packed, **EXACT) as lm:
        assert [str(module.scheme) for module in lm.report.modules].count("int8-g32") == 2
        ours = lm.forward(PROMPT).logits
    expected = logits(plain, "none")
    share = float((ours - expected).abs().max() / (expected.max() - expected.min()))
    print(f"logits differ by {share:.3g} of their range (bound 0.03)")
    assert share < 0.03  # 8 bits where the file has 4


@pytest.mark.parametrize("named", ["weight", "static", False, None])
def test_compressed_inputs_in_their_own_order(named: Any, tmp_path: Path) -> None:
    """Other orders leave no trace in the file, but for a g_idx that was never set."""

    def pack(name: str, weight: Tensor) -> Packed | None:
        if any(kept in name for kept in FLOATS):
            return None
        parts, values = pack_quantized(weight, 4, 32)
        unset = {"weight_g_idx": torch.full((weight.shape[1],), -1, dtype=torch.int32)}
        return parts | unset, values

    packed, plain = write(tmp_path, pack, compressed_settings(actorder=named))
    assert_one_model(packed, plain, tmp_path, 14)


def test_a_group_that_does_not_exist(tmp_path: Path) -> None:
    order = torch.arange(128).flip(0) + 32
    packed, _ = write(
        tmp_path,
        lambda name, weight: (
            pack_quantized(weight, 4, 32, order=order % 128) if "q_proj" in name else None
        ),
        compressed_settings(actorder="group"),
    )
    stored = load_file(packed / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight_g_idx"
    save_file(stored | {name: (order // 32).int()}, packed / "model.safetensors")
    with pytest.raises(edgelm.ModelFileError, match="beyond the 4 that exist"):
        open_checkpoint(packed)


def test_headers_alone_hold_what_describes_the_packing() -> None:
    for part in ("g_idx", "weight_g_idx", "weight_shape"):
        assert SETTINGS.fullmatch(f"model.layers.0.self_attn.q_proj.{part}")


@pytest.mark.parametrize("library", ["bitsandbytes"])
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_before_quant_method(library: str, bits: int, tmp_path: Path) -> None:
    pytest.importorskip(library)
    variant = four_bit("nf4") if bits == 4 else eight_bit()
    packed, _ = variant.write(tmp_path)
    expected = logits(packed)
    change(packed, quant_method=..., load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    assert torch.equal(logits(packed), expected)
    assert open_checkpoint(packed).format == "bitsandbytes"
    change(packed, load_in_4bit=False, load_in_8bit=False)
    with pytest.raises(edgelm.UnsupportedModelError, match=r"quantized by None.*bitsandbytes"):
        open_checkpoint(packed)


LEFT_OVER: list[dict[str, Any]] = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"load_in_8bit": True},
    {"quant_method": "gptq", "bits": 3, "group_size": 128},
    {"quant_method": "awq", "bits": 4},
    compressed_settings(),
    {"quant_method": "torchao", "quant_type": "int4_weight_only"},
]


@pytest.mark.parametrize("settings", LEFT_OVER)
def test_settings_left_behind_by_floats(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed, plain = write(tmp_path, lambda name, weight: None, settings)
    assert torch.equal(logits(packed, "none"), logits(plain, "none"))
    told = [each for each in caplog.messages if "quantization_config" in each]
    assert len(told) == 1 and "plain floats" in told[0] and "Remove that key" in told[0]
    assert edgelm.plan(packed).scheme == edgelm.plan(plain).scheme
    edgelm.quantize(packed, tmp_path / "out", quant="nf4-g32")
    assert (tmp_path / "out" / "config.json").read_text("utf-8").count('"quant_method"') == 1


def test_an_unknown_method_is_no_left_over(tmp_path: Path) -> None:
    """Some methods keep floats that are no weights by themselves (bitnet's online kind)."""
    packed, _ = write(tmp_path, lambda name, weight: None, {"quant_method": "bitnet"})
    with pytest.raises(edgelm.UnsupportedModelError, match=r"'bitnet'.*remove that key"):
        open_checkpoint(packed)


def test_quantized_weights_in_pickles_stay_closed(tmp_path: Path) -> None:
    packed, _ = write(tmp_path, lambda name, weight: None, LEFT_OVER[0])
    (packed / "model.safetensors").rename(packed / "pytorch_model.bin")
    for allowed in (False, True):
        with pytest.raises(
            edgelm.UnsupportedModelError, match=r"pickled weights.*safetensors alone"
        ):
            open_checkpoint(packed, allow_pickle=allowed)


def dynamic_pack(name: str, weight: Tensor) -> Packed | None:
    if "layers.1" in name or any(kept in name for kept in FLOATS):
        return None
    variant = (
        gptq(8, 64, True) if "down_proj" in name else gptq(4, -1 if "up" in name else 32, True)
    )
    return variant.pack(weight)


DYNAMIC: dict[str, Any] = {
    r"-:model\.layers\.1\..*": {},
    r"+:.*down_proj": {"bits": 8, "group_size": 64},
    r".*up_proj": {"group_size": -1, "desc_act": False},
}


def test_gptqs_settings_for_single_modules(tmp_path: Path) -> None:
    settings = gptq(4, 32, True).settings | {"dynamic": DYNAMIC}
    packed, plain = write(tmp_path, dynamic_pack, settings)
    assert_same_numbers(packed, plain)
    assert_one_model(packed, plain, tmp_path, 7)
    found = open_checkpoint(packed)
    own = {
        name: str(found.info(f"model.layers.0.{name}.weight").scheme)
        for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    }
    assert own == {
        "self_attn.q_proj": "int4-g32", "mlp.up_proj": "int4-row", "mlp.down_proj": "int8-g64"
    }  # fmt: skip
    assert found.info("model.layers.1.mlp.up_proj.weight").stays_float
    change(packed, dynamic={})
    with pytest.raises(edgelm.ModelFileError, match=r"down_proj.qzeros is I32"):
        open_checkpoint(packed)


@pytest.mark.parametrize("dynamic", [["a"], {"+:.*": 4}, {"+:.*": {"bits": "8"}}])
def test_rules_of_other_types(dynamic: Any, tmp_path: Path) -> None:
    packed, _ = gptq(4, 32, True).write(tmp_path)
    change(packed, dynamic=dynamic)
    with pytest.raises(edgelm.EdgeLMError, match=r"dynamic|bits = '8'"):
        open_checkpoint(packed)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stored", [1, 2])
def test_zero_points_under_the_label_of_the_other_version(
    stored: int, bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """sym = true has its zero in the middle, which only one version's reading gives."""
    packed, plain = gptq(bits, 64, True, version=stored).write(tmp_path)
    assert not caplog.messages
    change(packed, checkpoint_format="gptq" if stored == 2 else "gptq_v2")
    assert_same_numbers(packed, plain)
    assert f"those of version {stored}" in caplog.text and "checkpoint_format" in caplog.text
    assert_one_model(packed, plain, tmp_path, 14)


TIED = [gptq(4, 32, False), bytes_variant("Int8Tensor", None, "int8-sfloat32", keeps=()), tiles(64)]


@pytest.mark.parametrize("variant", TIED, ids=[each.name for each in TIED])
def test_a_tied_matrix_stored_as_the_head_only(
    variant: Variant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG | {"tie_word_embeddings": True, "vocab_size": 208} | (variant.config or {})
    told: dict[str, str] = {}

    def pack(name: str, weight: Tensor) -> Packed:
        if variant.describe:
            told[name.replace("model.embed_tokens", "lm_head")] = json.dumps(
                variant.describe(weight)
            )
        return variant.pack(weight)

    packed, plain = write(tmp_path, pack, variant.settings, config)
    stored = load_file(packed / "model.safetensors")
    stored.pop("lm_head.weight", None)
    renamed = {
        name.replace("model.embed_tokens", "lm_head"): own
        for name, own in stored.items()
        if not name.startswith("lm_head")
    }
    save_file(renamed, packed / "model.safetensors", told)
    values = load_file(plain / "model.safetensors")
    values = {name: own for name, own in values.items() if not name.startswith("lm_head")}
    save_file(values, plain / "model.safetensors")
    assert "model.embed_tokens.weight" not in open_checkpoint(packed).names()
    assert_one_model(packed, plain, tmp_path, 15)
    edgelm.quantize(packed, tmp_path / "model.gguf", quant="int8-g32")
    assert "token_embd.weight" in read_header(tmp_path / "model.gguf").tensors
    assert main(["inspect", str(packed), "--json"]) == 0
    assert "lm_head.weight" in capsys.readouterr().out
