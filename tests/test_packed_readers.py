"""Folders that others quantized: the same codes and logits as their values loaded as floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_folders import VARIANTS, Variant, awq, compressed, eight_bit, four_bit, gptq
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao_folders import TORCHAO

import edgelm
from edgelm.checkpoint.opening import open_checkpoint

for library in ("compressed_tensors", "bitsandbytes"):
    pytest.importorskip(library)

ALL = [*VARIANTS, *TORCHAO]
IDS = [variant.name for variant in ALL]
PROMPT = torch.arange(1, 24).view(1, -1)
# Codes and scales are kept, so that only float32's own rounding may differ: bitsandbytes multiplies
# an int8 code first by the maximum and then by 1/127, where one scale is the maximum over 127.
RELATIVE_BOUND = {"bnb-int8": 2**-22}
LOGITS_BOUND = {"bnb-int8": 5e-6}


@pytest.mark.parametrize("variant", ALL, ids=IDS)
def test_numbers_are_those_of_the_format(variant: Variant, tmp_path: Path) -> None:
    packed, plain = (open_checkpoint(path) for path in variant.write(tmp_path))
    assert sorted(packed.names()) == sorted(plain.names())
    worst = 0.0
    for name in plain.names():
        expected = plain.read(name)
        assert packed.info(name).shape == expected.shape
        found = packed.read(name)
        worst = max(worst, float(((found - expected).abs() / expected.abs().clamp(1e-30)).max()))
        scheme = packed.info(name).scheme
        if scheme is None:
            continue
        if "down_proj" not in name:
            assert str(scheme) == variant.scheme
        for start, stop in ((0, 1), (3, 21), (24, 48), (len(expected) - 5, len(expected))):
            part = packed.read_packed(name, start, stop)
            assert part.nbytes == scheme.nbytes((stop - start, expected.shape[1]))
            assert torch.equal(packed.read(name, start, stop), found[start:stop])
    print(f"{variant.name}: largest relative difference {worst:.3g}")
    assert worst <= RELATIVE_BOUND.get(variant.name, 0.0)


@pytest.mark.parametrize("variant", ALL, ids=IDS)
def test_logits_equal_the_floats(variant: Variant, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"backend": "reference", "dtype": "float32"}
    packed, plain = variant.write(tmp_path)
    with edgelm.load(packed, quant="auto", **settings) as lm:
        stored = [p for p in lm.plan.products if p.stored]
        assert sum(len(p.names) for p in stored) == 14 + 2 * (not variant.keeps)
        notes = {module.name: module.note for module in lm.report.modules}
        assert (notes["embed"] == "left in floats by the file") == bool(variant.keeps)
        found = lm.forward(PROMPT).logits
    with edgelm.load(plain, quant="none", **settings) as lm:
        expected = lm.forward(PROMPT).logits
    difference = float((found - expected).abs().max() / (expected.max() - expected.min()))
    print(f"{variant.name}: logits differ by {difference:.3g} of their range")
    assert difference <= LOGITS_BOUND.get(variant.name, 0.0)


def test_blocks_read_apart_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix bigger than one read: the pieces meet without a gap."""
    from edgelm.checkpoint import packed_matrix

    for number, variant in enumerate((gptq(4, 32, False), awq(32), four_bit("nf4"), *TORCHAO)):
        (tmp_path / str(number)).mkdir()
        packed, plain = variant.write(tmp_path / str(number))
        name = "model.layers.1.mlp.gate_proj.weight"
        expected = open_checkpoint(plain).read(name, 5, 250)
        monkeypatch.setattr(packed_matrix, "READ_BYTES", 1024)
        assert torch.equal(open_checkpoint(packed).read(name, 5, 250), expected)


Q = "model.layers.0.self_attn.q_proj"


def edited(folder: Path, tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    """Replace (None: remove) tensors and settings of a packed folder."""
    file = folder / "model.safetensors"
    stored = load_file(file) | tensors
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: own for name, own in stored.items() if own is not None}, file, metadata)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] |= settings
    path.write_text(json.dumps(config), encoding="utf-8")


GPTQ, AWQ, COMPRESSED = gptq(4, 32, True), awq(32), compressed(4, 32, False)
NF4, INT8 = four_bit("nf4", double=True), eight_bit()
STATE = f"{Q}.weight.quant_state.bitsandbytes__nf4"


def state(**changes: Any) -> torch.Tensor:
    content = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [128, 128]}
    content |= {"nested_blocksize": 256, "nested_offset": 0.1} | changes
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


MISSING = [
    *((GPTQ, f"{Q}.{part}") for part in ("qzeros", "scales")),
    *((AWQ, f"{Q}.{part}") for part in ("qzeros", "scales")),
    *((COMPRESSED, f"{Q}.weight_{part}") for part in ("scale", "shape", "zero_point")),
    *((NF4, f"{Q}.weight.{part}") for part in ("absmax", "quant_map", "nested_absmax")),
    *((NF4, f"{Q}.weight.nested_quant_map"), (NF4, f"{Q}.weight"), (INT8, f"{Q}.weight")),
]


@pytest.mark.parametrize(("variant", "name"), MISSING)
def test_a_missing_part_is_named(variant: Variant, name: str, tmp_path: Path) -> None:
    packed, _ = variant.write(tmp_path)
    edited(packed, {name: None}, {})
    with pytest.raises(edgelm.ModelFileError, match=rf"{name}, which is missing.*fetch them again"):
        open_checkpoint(packed)


WRONG: list[tuple[Variant, dict[str, Any], dict[str, Any], str]] = [
    (GPTQ, {f"{Q}.qweight": zeros(16)}, {}, "qweight has shape"),
    (GPTQ, {f"{Q}.qweight": zeros(16, 128, dtype=torch.int64)}, {}, "qweight is I64"),
    (GPTQ, {f"{Q}.scales": zeros(3, 128, dtype=torch.float16)}, {}, r"scales is float16 \[3, 128"),
    (GPTQ, {f"{Q}.scales": zeros(4, 128)}, {}, "scales is I32"),
    (GPTQ, {f"{Q}.g_idx": zeros(7)}, {}, "g_idx is I32"),
    (AWQ, {f"{Q}.qzeros": zeros(4, 128)}, {}, "qzeros is I32"),
    (AWQ, {f"{Q}.qweight": zeros(0, 16)}, {}, "qweight has shape"),
    (COMPRESSED, {f"{Q}.weight_packed": zeros(128, 15)}, {}, "cannot hold 128 x 128 codes"),
    (COMPRESSED, {f"{Q}.weight_scale": zeros(128, 5, dtype=torch.float16)}, {}, "weight_scale has"),
    (COMPRESSED, {f"{Q}.weight_shape": torch.tensor([1 << 40, 128])}, {}, "cannot hold"),
    (COMPRESSED, {f"{Q}.weight_shape": torch.tensor([-1, 128])}, {}, "cannot hold"),
    (COMPRESSED, {}, {"config_groups": {}}, "no config_groups"),
    (COMPRESSED, {}, {"config_groups": {"group_0": {}}}, "without weights"),
    (NF4, {f"{Q}.weight": zeros(77, 1, dtype=torch.uint8)}, {}, "holds 77 bytes"),
    (NF4, {STATE: zeros(40, dtype=torch.uint8)}, {}, "is not JSON"),
    (NF4, {STATE: zeros(20000, dtype=torch.uint8)}, {}, "too many"),
    (NF4, {STATE: state(shape=[128])}, {}, "should be a matrix"),
    (NF4, {STATE: state(shape=[128, "a"])}, {}, "inputs = 'a'"),
    (NF4, {STATE: state(blocksize=0)}, {}, "blocksize = 0"),
    (NF4, {STATE: state(blocksize=32)}, {}, "absmax is U8"),
    (NF4, {STATE: state(nested_offset="x")}, {}, "nested_offset"),
    (INT8, {f"{Q}.SCB": zeros(5, dtype=torch.float32)}, {}, "SCB is float32"),
    (INT8, {f"{Q}.weight": zeros(128, 128)}, {}, "weight is I32"),
]


@pytest.mark.parametrize(("variant", "tensors", "settings", "message"), WRONG)
def test_parts_that_do_not_fit_are_refused(
    variant: Variant, tensors: dict[str, Any], settings: dict[str, Any], message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    packed, _ = variant.write(tmp_path)
    edited(packed, tensors, settings)
    with pytest.raises(edgelm.ModelFileError, match=message):
        open_checkpoint(packed)


def one_group(**changes: Any) -> dict[str, Any]:
    rule = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group"} | changes
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": rule}}}


UNSUPPORTED: list[tuple[Variant, dict[str, Any], dict[str, Any], str]] = [
    (GPTQ, {}, {"quant_method": "exl2"}, "'exl2'.*gptq"),
    (GPTQ, {}, {"quant_method": ["gptq"]}, r"\['gptq'\]"),
    (GPTQ, {}, {"bits": 3}, "bits = 3.*4, 8"),
    (GPTQ, {}, {"bits": 4.0}, r"bits = 4\.0"),
    (GPTQ, {}, {"group_size": 1024}, "group_size = 1024"),
    (GPTQ, {}, {"checkpoint_format": "marlin"}, "'marlin'"),
    (GPTQ, {}, {"dynamic": {"+:.*": {"bits": 2}}}, "bits = 2.*4, 8"),
    (GPTQ, {}, {"pack_dtype": "int16"}, "'int16'.*'int32'"),
    (AWQ, {}, {"version": "gemv"}, "'gemv'.*gemm"),
    (AWQ, {}, {"bits": 8}, "bits = 8"),
    (AWQ, {}, {"zero_point": False}, "zero_point = False"),
    (COMPRESSED, {}, {"format": "marlin-24"}, "'marlin-24'.*pack-quantized"),
    (COMPRESSED, {}, {"format": "mixed-precision"}, "format = None.*pack-quantized"),
    (COMPRESSED, {}, one_group(num_bits=3), "num_bits = 3"),
    (COMPRESSED, {}, one_group(actorder="random"), "actorder = 'random'"),
    (COMPRESSED, {}, one_group(type="float"), "type = 'float'"),
    (COMPRESSED, {}, one_group(strategy="tensor"), "strategy = 'tensor'"),
    (COMPRESSED, {}, {"transform_config": {"config_groups": {"R1": {}}}}, "transformed"),
    (COMPRESSED, {}, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
    (NF4, {STATE: state(quant_type="af4")}, {}, "code 'nf4'"),
    (NF4, {f"{Q}.weight.quant_map": torch.linspace(-1, 1, 16)}, {}, "custom table"),
    (INT8, {f"{Q}.weight_format": torch.tensor(1, dtype=torch.uint8)}, {}, "weight_format = 1"),
]


@pytest.mark.parametrize(("variant", "tensors", "settings", "message"), UNSUPPORTED)
def test_layouts_that_are_not_run_are_named(
    variant: Variant, tensors: dict[str, Any], settings: dict[str, Any], message: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    packed, _ = variant.write(tmp_path)
    edited(packed, tensors, settings)
    with pytest.raises(edgelm.UnsupportedModelError, match=message):
        open_checkpoint(packed)


def test_zero_points_of_a_symmetric_file_are_checked(tmp_path: Path) -> None:
    packed, _ = GPTQ.write(tmp_path)
    edited(packed, {f"{Q}.qzeros": zeros(4, 16)}, {})
    with pytest.raises(edgelm.ModelFileError, match="sym = true"):
        open_checkpoint(packed).read_packed(f"{Q}.weight")


def test_a_folder_without_packed_weights(tmp_path: Path) -> None:
    """Floats, but with a scale beside them: what they are is not known."""
    _, plain = GPTQ.write(tmp_path)
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": {}}
    (plain / "config.json").write_text(json.dumps(config))
    edited(plain, {f"{Q}.weight_scale": torch.ones(1)}, GPTQ.settings)
    with pytest.raises(edgelm.ModelFileError, match="no weight is packed as gptq"):
        open_checkpoint(plain)


def test_weights_may_be_quantized_again(tmp_path: Path) -> None:
    packed, _ = AWQ.write(tmp_path)
    with edgelm.load(packed, quant="int8") as lm:
        assert not any(product.stored for product in lm.plan.products)
        assert bool(torch.isfinite(lm.forward(PROMPT).logits).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_in_groups_by_importance(
    symmetric: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Columns shuffled together with their groups: the numbers are the shuffled ones, exactly."""
    variant = gptq(4, 32, symmetric)
    packed, plain = variant.write(tmp_path)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(3))
    stored = load_file(packed / "model.safetensors")[f"{Q}.qweight"]
    shifts = torch.arange(0, 32, 4).view(1, 8, 1)
    codes = ((stored.unsqueeze(1) >> shifts) & 15).view(128, -1)[order].view(16, 8, -1)
    words = (codes.long() << shifts).sum(1).to(torch.int32)
    groups = (order // 32).int()
    edited(packed, {f"{Q}.qweight": words, f"{Q}.g_idx": groups}, {"desc_act": True})
    expected = open_checkpoint(plain).read(f"{Q}.weight")[:, order]
    found = open_checkpoint(packed)
    assert torch.equal(found.read(f"{Q}.weight"), expected)
    assert torch.equal(found.read(f"{Q}.weight", 8, 30), expected[8:30])
    with edgelm.load(packed) as lm:
        assert [str(m.scheme) for m in lm.report.modules].count("int8-g32") == 1
        assert bool(torch.isfinite(lm.forward(PROMPT).logits).all())
    assert "in act order" in caplog.text and "requantized" in caplog.text


def test_settings_in_autogptqs_own_file(tmp_path: Path) -> None:
    """As AutoGPTQ wrote them: bits and groups without a quant_method, nothing in config.json."""
    packed, _ = GPTQ.write(tmp_path)
    expected = open_checkpoint(packed).read(f"{Q}.weight")
    config = json.loads((packed / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    (packed / "config.json").write_text(json.dumps(config))
    (packed / "quantize_config.json").write_text(json.dumps(settings))
    found = open_checkpoint(packed)
    assert found.format == "gptq"
    assert torch.equal(found.read(f"{Q}.weight"), expected)
