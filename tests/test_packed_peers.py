"""transformers with compressed-tensors on folders that we wrote: float32 logits side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from oracle import assert_close

import edgelm
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.quantization.readers import READERS

WIDE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 96, "intermediate_size": 128},
    "gemma2": {"hidden_size": 96, "intermediate_size": 128},
    "helium": {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 6,
               "num_key_value_heads": 2},
    "persimmon": {"intermediate_size": 128},
    "bloom": {},
}  # fmt: skip
"""Row lengths that groups of 32 divide."""

FLOAT_EMBED = {"embed": "none", "head": "none"}
RECIPES: dict[str, Any] = {
    "symmetric": "int4-g32",
    "asymmetric": "int4-g32-zint",
    "int8": "int8",
    "int8-asymmetric": "int8-zint",
    "mixed-symmetric": {"default": "int4-g32", "overrides": FLOAT_EMBED | {"*.down": "int8"}},
    "asymmetric-float-embed": {"default": "int4-g32-zint", "overrides": FLOAT_EMBED},
    "for transformers": READERS["transformers"].recipe,
    "for vllm": READERS["vllm"].recipe,
}
MIXED = ("mixed-symmetric", "for transformers", "for vllm")
"""The first four quantize the embedding too; Gemma 2 and BLOOM tie it to the head."""


FLOAT16_BOUND = 1e-2
"""Where transformers dequantizes, it multiplies in the scales' type: 11 bits, finer than 8."""


@pytest.mark.peer
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", WIDE)
def test_transformers_loads_our_folder(tmp_path: Path, family: str, recipe: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    oracle.family(family, tmp_path / "source", **WIDE[family])
    done = edgelm.quantize(tmp_path / "source", tmp_path / "out", quant=RECIPES[recipe])
    assert not done.peer_note
    tokens = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(1))
    loader = transformers.AutoModelForCausalLM
    theirs = loader.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    theirs.set_attn_implementation("eager")
    settings = {"dtype": "float32", "backend": "reference"}
    with edgelm.load(tmp_path / "out", **settings) as lm, torch.no_grad():
        assert all(p.stored or p.scheme == "float32" for p in lm.plan.products)
        ours, reference = lm.forward(tokens).logits, theirs(tokens).logits
    if recipe in MIXED:
        assert_close(ours, reference, f"{family} {recipe}")
        return
    found, state = open_checkpoint(tmp_path / "out"), theirs.state_dict()
    for name in done.manifest.modules:
        assert torch.equal(state[name], found.read(name).half().float()), name
    share = oracle.share_of_range(ours, reference)
    print(f"{family} {recipe}: {share:.2e} of the range (bound {FLOAT16_BOUND})")
    assert share < FLOAT16_BOUND


BITSANDBYTES_BOUND = 2e-2
"""bitsandbytes' CPU kernel multiplies in bfloat16 (8 bits) whatever the activations are."""


@pytest.mark.peer
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bitsandbytes_loads_our_nf4_folder(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    linear = pytest.importorskip("bitsandbytes").nn.Linear4bit
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 8}
    oracle.family(family, tmp_path / "source", **sizes, initializer_range=0.08)
    recipe = {"default": "nf4", "overrides": FLOAT_EMBED}
    done = edgelm.quantize(tmp_path / "source", tmp_path / "out", quant=recipe)
    assert not done.peer_note
    tokens = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(1))
    loader = transformers.AutoModelForCausalLM
    theirs = loader.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    theirs.set_attn_implementation("eager")
    packed = [module for module in theirs.modules() if isinstance(module, linear)]
    with edgelm.load(tmp_path / "out", dtype="float32", backend="reference") as lm:
        assert all(p.stored or p.scheme == "float32" for p in lm.plan.products)
        assert len(packed) == sum(len(p.names) for p in lm.plan.products if p.stored)
        ours = lm.forward(tokens).logits
    with torch.no_grad():
        for module in packed:  # in float32, without the kernel that works in bfloat16
            module.support_avx512bf16_for_cpu = False
        assert_close(ours, theirs(tokens).logits, f"{family} nf4 in float32")
        for module in packed:
            module.support_avx512bf16_for_cpu = True
        share = oracle.share_of_range(ours, theirs(tokens).logits)
    print(f"{family} nf4 by bitsandbytes' own kernel: {share:.2e} (bound {BITSANDBYTES_BOUND})")
    assert share < BITSANDBYTES_BOUND


def test_an_nf4_folder_gives_the_logits_of_the_recipe(tmp_path: Path) -> None:
    """Codes and scales that went through bitsandbytes' layout are those packed while loading."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 8}
    oracle.family("llama", tmp_path / "source", **sizes)
    recipe = {"default": "nf4", "overrides": FLOAT_EMBED}
    edgelm.quantize(tmp_path / "source", tmp_path / "out", quant=recipe)
    assert '"bitsandbytes"' in (tmp_path / "out" / "config.json").read_text("utf-8")
    found = []
    for folder, quant in (("source", recipe), ("out", "auto")):
        with edgelm.load(
            tmp_path / folder, quant=quant, dtype="float32", backend="reference"
        ) as lm:
            found.append(lm.forward(torch.arange(3, 30).view(1, -1)).logits)
    assert torch.equal(*found)
