"""Gemma 2, Helium, Persimmon and BLOOM against transformers in float32, hard features on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from oracle import assert_close, load_exact
from test_llama_parity import greedy

import edgelm

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "gemma2": [{}, {"num_key_value_heads": 1}, {"attention_bias": True}],
    "helium": [{}, {"num_key_value_heads": 1}, {"attention_bias": True, "mlp_bias": True}],
    "persimmon": [{}, {"tie_word_embeddings": True}],
    "bloom": [{"n_head": 6}, {"n_head": 12}],
}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 40},
]  # fmt: skip


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of 29 ids with paddings of 0, 9 and 17 on one side."""
    generator = torch.Generator().manual_seed(1)
    tokens, mask = torch.randint(3, 200, (3, 29), generator=generator), torch.ones(3, 29).long()
    for row, padding in enumerate((0, 9, 17)):
        mask[row, slice(0, padding) if side == "left" else slice(29 - padding, None)] = 0
    return tokens, mask


def run_reference(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    """transformers with the positions that generate() would use; BLOOM takes none."""
    if model.config.model_type != "bloom":
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(tokens, attention_mask=mask, **options)


@pytest.mark.parametrize("family", VARIANTS)
def test_causal_lm(tmp_path: Path, family: str) -> None:
    """Logits, hidden states and attentions of padded rows, in chunks that the window is no
    multiple of; loss; greedy ids."""
    for number, changes in enumerate(VARIANTS[family]):
        reference, folder = oracle.family(family, tmp_path / str(number), **changes)
        with load_exact(folder, chunk=15) as lm:
            for side in ("left", "right"):
                tokens, mask = batch(side)
                real = mask.bool()
                wanted = {"output_hidden_states": True, "output_attentions": True}
                expected = run_reference(reference, tokens, mask, **wanted)
                out = lm.forward(tokens, attention_mask=mask, **wanted)
                assert_close(out.logits[real], expected.logits[real], f"{family} {changes} {side}")
                for ours, theirs in zip(out.hidden_states, expected.hidden_states, strict=True):
                    assert_close(ours[real], theirs[real], "hidden state")
                for ours, theirs in zip(out.attentions, expected.attentions, strict=True):
                    both = (ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real])
                    assert_close(*both, "attention")
            check_loss_and_greedy(reference, lm)


def check_loss_and_greedy(reference: Any, lm: edgelm.LanguageModel) -> None:
    tokens, _ = batch("right")
    labels = tokens.clone()
    labels[1, :7] = -100
    with torch.no_grad():
        loss = float(reference(tokens, labels=labels).loss)
    got = float(lm.forward(tokens, labels=labels).loss)
    print(f"loss {got:.6f}, transformers {loss:.6f}")
    assert got == pytest.approx(loss, rel=1e-5)
    prompt = tokens[:1, :9]
    ids = reference.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[0, 9:]  # fmt: skip
    assert list(greedy(lm, prompt[0].tolist(), 30)) == ids.tolist()


@pytest.mark.parametrize("family", VARIANTS)
def test_base(tmp_path: Path, family: str) -> None:
    """The bare decoder, from its own checkpoint (without the prefix) and from the whole one."""
    reference, folder = oracle.family(family, tmp_path / "whole")
    body = reference.base_model
    body.save_pretrained(tmp_path / "base")
    tokens, mask = batch("left")
    expected = run_reference(body, tokens, mask).last_hidden_state
    for path in (tmp_path / "base", folder):
        with load_exact(path, task="base") as lm:
            out = lm.forward(tokens, attention_mask=mask).last_hidden_state
            assert_close(out[mask.bool()], expected[mask.bool()], f"{family} from {path.name}")


@pytest.mark.parametrize("family", VARIANTS)
def test_logits_to_keep_and_embeddings(tmp_path: Path, family: str) -> None:
    reference, folder = oracle.family(family, tmp_path)
    tokens, index = batch("left")[0], torch.tensor([0, 28, 11])
    embeddings = reference.get_input_embeddings()(tokens).detach() * 1.1
    with torch.no_grad():
        whole = reference(tokens).logits
        embedded = reference(inputs_embeds=embeddings).logits
    with load_exact(folder, chunk=10) as lm:
        assert_close(lm.forward(tokens, logits_to_keep=4).logits, whole[:, -4:], "last 4")
        assert_close(lm.forward(tokens, logits_to_keep=index).logits, whole[:, index], "index")
        assert_close(lm.forward(inputs_embeds=embeddings).logits, embedded, "embeddings")


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("family", ["gemma2", "helium", "persimmon"])
def test_ropes(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    """Scaling acts on the rotated part alone, which is a quarter of Persimmon's heads."""
    parameters = rope | {"rope_theta": 100.0}
    if family == "persimmon":
        parameters["partial_rotary_factor"] = 0.25
    reference, folder = oracle.family(family, tmp_path, rope_parameters=parameters)
    tokens = batch("left")[0]
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens).logits, expected, f"{family} {rope['rope_type']}")


def test_gemma2_without_layer_types(tmp_path: Path) -> None:
    """The original configs have none: layers 0, 2, 4, ... slide."""
    reference, folder = oracle.family("gemma2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"]
    (folder / "config.json").write_text(json.dumps(config))
    tokens = batch("left")[0]
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens).logits, expected)


def test_gemma2_without_soft_caps(tmp_path: Path) -> None:
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    reference, folder = oracle.family("gemma2", tmp_path, **caps)
    tokens = batch("left")[0]
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens).logits, expected)


def test_persimmon_without_qk_norm(tmp_path: Path) -> None:
    reference, folder = oracle.family("persimmon", tmp_path, qk_layernorm=False)
    tokens = batch("left")[0]
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens).logits, expected)


def test_bloom_that_keeps_the_normed_input(tmp_path: Path) -> None:
    changes = {"apply_residual_connection_post_layernorm": True}
    reference, folder = oracle.family("bloom", tmp_path, **changes)
    tokens = batch("left")[0]
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens).logits, expected)


def test_bloom_goes_beyond_its_trained_length(tmp_path: Path) -> None:
    reference, folder = oracle.family("bloom", tmp_path, seq_length=16)
    tokens = batch("left")[0]
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder, context=29) as lm:
        assert_close(lm.forward(tokens).logits, expected)


@pytest.mark.smoke
@pytest.mark.parametrize("family", [*sorted(oracle.FAMILIES), "bloom-nonpow2"])
def test_golden_logits_and_ids(assets: Path, family: str) -> None:
    from safetensors.torch import load_file

    folder = assets / "tiny-random" / family
    golden = load_file(folder / "golden.safetensors")
    ids = golden["greedy_ids"][0].tolist()  # 8 of the prompt, 24 generated
    with load_exact(folder, chunk=7) as lm:
        assert_close(lm.forward(golden["input_ids"]).logits, golden["logits"], family)
        assert greedy(lm, ids[:8], 24) == ids[8:]
