"""Real weights: the golden story, the nano Llama's perplexity, the demo against transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import llama2c
import pytest
import torch

import edgelm
from quant import native

PPL_SHARE = 0.002
"""Largest allowed relative difference of a perplexity from the one recorded at training."""

PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at",
    "The three primary colors are", "In 1969, humans first", "My favorite food is",
    "The quick brown fox", "Photosynthesis is the process", "A good way to learn a language is",
    "The largest planet is", "To make a cup of tea,", "Albert Einstein was", "The sun rises in the",
    "Two plus two equals", "The history of Rome begins", "import numpy as np", "Dear Sir or Madam,",
    "Cats and dogs are", "At the end of the day,",
]  # fmt: skip

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    "do.\"\nLily didn't want to help her mom, so she"
)
"""What llama2.c's own run prints in 200 steps (karpathy/llama2.c, test_all.py)."""


def test_stories260k_text_byte_for_byte(assets: Path, tmp_path: Path) -> None:
    source = assets / "stories260K"
    folder = llama2c.convert(source / "stories260K.bin", source / "tok512.bin", tmp_path)
    golden = json.loads((assets / "golden" / "stories260K_greedy200.json").read_text())
    count = len(golden["greedy_ids_incl_bos"]) - 1
    with edgelm.load(folder, quant="none", dtype="float32") as lm:
        out = lm.generate(golden["prompt_ids"], max_new_tokens=count)
        assert lm.decode(golden["greedy_ids_incl_bos"]).encode() == STORY.encode()
    assert list(out.token_ids) == golden["greedy_ids_incl_bos"][1:]
    assert out.text.removeprefix(" ").encode() == STORY.encode()


def heldout_perplexity(lm: edgelm.LanguageModel, text: str, windows: int) -> float:
    """As training.json has it: windows of 256, the first id replaced by BOS."""
    ids = lm.tokenizer.encode(text, add_special=False)
    loss, count = 0.0, 0
    for start in range(0, min(len(ids) - 255, windows * 256), 256):
        window = [lm.config.bos_id, *ids[start + 1 : start + 256]]
        found = lm.log_likelihoods(window)
        loss, count = loss - float(found.double().sum()), count + len(found)
    return math.exp(loss / count)


@pytest.mark.parametrize("family", ["bloom", "gemma2", "helium", "llama", "persimmon"])
def test_nano_heldout_perplexity(assets: Path, family: str) -> None:
    folder = assets / "nano" / family
    expected = json.loads((folder / "training.json").read_text())["heldout_ppl_fp32"]
    text = (assets / "nano" / "heldout.txt").read_text(encoding="utf-8")
    with edgelm.load(folder, quant="none", dtype="float32") as lm:
        got = heldout_perplexity(lm, text, windows=10**6)
    print(f"{family}: perplexity {got:.4f}, at training {expected:.4f}")
    assert abs(got / expected - 1) < PPL_SHARE


def test_demo_names_paris_in_four_bits(demo: Path) -> None:
    with edgelm.load(demo, quant="int4") as lm:
        assert lm.plan.scheme == "int4"
        table = "int8" if native.missing() else "int6-g32-coded"
        assert {p.scheme for p in lm.plan.products} == {"int4-g32-zfloat", table}
        question = [{"role": "user", "content": "What is the capital of France?"}]
        out = lm.chat(question, max_new_tokens=32)
    print(out.text)
    assert "Paris" in out.text and out.finish_reason == "stop"


def test_demo_perplexity_on_wikitext(demo: Path, assets: Path) -> None:
    """Token perplexity of 2048 tokens in windows of 512, no BOS, 511 predictions each."""
    text = (assets / "text" / "wiki.test.raw").read_text(encoding="utf-8")
    with edgelm.load(demo, quant="none", dtype="float32", context=512) as lm:
        ids = lm.tokenizer.encode(text[:20_000], add_special=False)[:2048]
        losses = [lm.log_likelihoods(ids[i : i + 512]) for i in range(0, 2048, 512)]
    perplexity = math.exp(-float(torch.cat(losses).double().mean()))
    print(f"wikitext-2 token perplexity {perplexity:.4f}")
    assert len(torch.cat(losses)) == 4 * 511
    assert perplexity == pytest.approx(29.98, abs=0.02)


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_demo_equals_transformers_on_the_dequantized_file(demo: Path, count: int) -> None:
    """Prompts, 32 greedy tokens each, float32 on both sides."""
    reference, tokenizer = _transformers_demo(demo)
    different = []
    with edgelm.load(demo, quant="none", dtype="float32", context=128) as lm:
        for prompt in PROMPTS[:count]:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            assert ids[0].tolist() == lm.encode(prompt)
            expected = reference.generate(ids, max_new_tokens=32, do_sample=False)[
                0, ids.shape[1] :
            ]
            got = lm.generate(prompt, max_new_tokens=32, temperature=0.0).token_ids
            if list(got) != expected.tolist():
                different.append(prompt)
    print(f"{count - len(different)} of {count} prompts equal")
    assert not different


def _transformers_demo(demo: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(demo.parent), "gguf_file": demo.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(**where)
