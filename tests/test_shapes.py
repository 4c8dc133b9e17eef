"""Shapes of public checkpoints: their published sizes, their plans, and random weights for them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.checkpoint import random_weights
from edgelm.checkpoint.shapes import SHAPES, shape_config
from edgelm.cli.main import main
from edgelm.models import family_of, persimmon
from edgelm.models.model_files import ModelFiles
from edgelm.models.weight_names import WeightNames
from edgelm.ops.cache import KVCache
from edgelm.ops.cache_sizes import cache_parts, ring_slots
from edgelm.reports.benchmark import random_model

# Exact totals. Llama and Gemma 2: the safetensors totals of the Hub's model pages (Gemma 2 also in
# keras-hub's presets); BLOOM: its model cards. Helium's and Persimmon's cards only say "2B" and
# "8B" (Helium's file of 4.35 GB holds 2.17 G numbers of two bytes): theirs are transformers' own.
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
    "llama-2-7b": 6_738_415_616,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "helium-1-preview-2b": 2_172_643_840,
    "persimmon-8b": 9_397_175_296,
    "bloom-560m": 559_214_592,
    "bloom-7b1": 7_069_016_064,
}


def parameters(files: ModelFiles) -> int:
    """Numbers in all tensors of the files; a tied head has none of its own."""
    return sum(prod(files.checkpoint.info(name).shape) for name in files.checkpoint.names())


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_published(shape: str) -> None:
    assert parameters(random_model(shape)) == PUBLISHED[shape]


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_counts_the_same(shape: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    data = dict(shape_config(shape))
    config = AutoConfig.for_model(data.pop("model_type"), **data)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[shape]


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("gemma-2-9b", "gemma-2-9b-it.config.json"),
        ("helium-1-preview-2b", "helium-1-preview-2b.config.json"),
        ("persimmon-8b", "persimmon-8b-base.config.json"),
        ("bloom-560m", "bloom-560m/config.json"),
    ],
)
def test_shapes_are_the_real_configs(shape: str, name: str, assets: Path) -> None:
    real = json.loads((assets / "configs" / name).read_text())
    family = family_of(real)
    assert family.read_config(real) == family.read_config(shape_config(shape))


def test_the_query_scale_of_27b_is_not_its_head_size() -> None:
    config = random_model("gemma-2-27b").config
    assert (config.head_size, config.scale) == (128, 144**-0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_plans_add_up(shape: str) -> None:
    files = random_model(shape)
    config = files.config
    plan = edgelm.plan(files, quant="int4", context=2048, kv="bfloat16", chunk=256)
    sizes = {part.name: part.bytes for part in plan.parts}
    assert plan.steady_peak_bytes == sum(sizes.values())
    matrices = sum(product.nbytes for product in plan.products)
    # Norms are float32, biases as wide as the activations: here float32 too.
    vectors = 4 * (
        parameters(files) - sum(product.shape[0] * product.shape[1] for product in plan.products)
    )
    assert plan.weight_bytes == matrices + vectors
    assert plan.bits_per_weight == plan.weight_bytes * 8 / PUBLISHED[shape]
    assert 4.4 < plan.bits_per_weight < 6.5
    slots = sum(ring_slots(window, 2048, 256) for window in config.windows)
    caches = sum(nbytes for name, nbytes in sizes.items() if name.startswith("kv cache."))
    assert caches == slots * 2 * config.num_kv_heads * config.head_size * 2
    assert sizes["logits"] == (plan.draft_depth + 1) * config.vocab_size * 4
    print(f"{shape}: {plan.steady_peak_bytes / 2**30:.2f} GiB, {plan.bits_per_weight:.2f} bits")


@pytest.mark.parametrize("chunk", [1, 512, 2048])
def test_cache_of_gemma_2_2b_at_8k_is_the_formula(chunk: int) -> None:
    """624 MiB of hybrid cache and 13 x (chunk - 1) x 4 KiB of ring slack, planned and taken."""
    files = random_model("gemma-2-2b")
    expected = (624 << 20) + 13 * (chunk - 1) * (4 << 10)
    plan = edgelm.plan(files, quant="int4", context=8192, kv="bfloat16", chunk=chunk)
    planned = {p.name: p.bytes for p in plan.parts if p.name.startswith("kv cache.")}
    assert sum(planned.values()) == expected and planned["kv cache.full"] == 416 << 20
    taken = []

    def take(
        part: str, shape: tuple[int, ...], dtype: torch.dtype, where: str | None = None
    ) -> torch.Tensor:
        memory = torch.empty(shape, dtype=dtype)  # as the Ledger does, but pages are not touched
        taken.append((part, memory.nbytes))
        return memory

    cache = KVCache(files.config, 1, 8192, chunk, torch.bfloat16, take, owner=None)
    assert sum(nbytes for _, nbytes in taken) == cache.nbytes == expected
    for name, nbytes in planned.items():
        assert sum(own for part, own in taken if part == name) == nbytes
    parts = cache_parts(files.config, 1, 8192, chunk, torch.bfloat16)
    assert {share.name: nbytes for share, nbytes in parts.items()} == planned
    print(f"chunk {chunk}: {expected} bytes, {expected / 2**20:.1f} MiB")


def test_plan_takes_a_shape(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path))
    monkeypatch.setattr("edgelm.machine.hardware.read_gb_s", lambda: 20.0)
    arguments = ["plan", "--shape", "gemma-2-27b", "--budget", "8GiB", "--json"]
    assert main(arguments) == 3
    plan = json.loads(capsys.readouterr().out)
    assert plan["weight_bytes"] > 12 << 30 and not plan["fits"]
    assert main(["plan", "--shape", "gemma-2-3b"]) == 2
    assert main(["plan"]) == main(["plan", "demo", "--shape", "bloom-560m"]) == 2


FUSED: dict[str, Any] = {
    "model_type": "persimmon",
    "vocab_size": 50,
    "hidden_size": 512,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
}


def test_interleaved_rows_are_made_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 64 rows lie in blocks of 1024: q, k and v read each of the two blocks once."""
    made = []
    make = random_weights._random_block

    def counted(shape: tuple[int, int], *rest: Any) -> Any:
        made.append(shape)
        return make(shape, *rest)

    monkeypatch.setattr(random_weights, "_random_block", counted)
    files = random_model(FUSED)
    names = WeightNames(persimmon.WEIGHTS, files.checkpoint, files.config.head_size)
    parts = [names.read_packed(f"layers.0.attn.{part}", (512, 512)) for part in "qkv"]
    assert len(made) == 3 * 2
    whole = files.checkpoint.read_packed(names.file_name("layers.0.attn.q"))
    by_head = whole.qweight.view(8, 3, 64, -1)
    for index, part in enumerate(parts):
        assert torch.equal(part.qweight.view(8, 64, -1), by_head[:, index])


def test_biases_are_small_and_norms_ones() -> None:
    checkpoint = random_model(FUSED).checkpoint
    name = "model.layers.0.self_attn.query_key_value.bias"
    bias = checkpoint.read(name)
    assert torch.equal(bias[7:90], checkpoint.read(name, 7, 90))
    assert 0 < float(bias.abs().max()) < 0.2
    assert checkpoint.read("model.final_layernorm.weight").tolist() == [1.0] * 512
