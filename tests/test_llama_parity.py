"""Llama against transformers in float32: logits, ids, hidden states, attentions, loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from oracle import assert_close, load_exact

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 24,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 24,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + 0.9 * i for i in range(8)],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 40,
    },
}

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one key head": {"num_key_value_heads": 1},
    "all key heads": {"num_key_value_heads": 6},
    "no biases": {"attention_bias": False, "mlp_bias": False},
    "tied": {"tie_word_embeddings": True},
    "wide head": {"head_dim": 32},
}


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, oracle.LLAMA["vocab_size"], shape, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tmp_path: Path, variant: str) -> None:
    reference, folder = oracle.llama(tmp_path, **VARIANTS[variant])
    tokens = ids(2, 33)
    with torch.no_grad():
        expected = reference(tokens)
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens).logits, expected.logits)


@pytest.mark.parametrize("length", [20, 60])
@pytest.mark.parametrize("rope", ROPES)
def test_ropes(tmp_path: Path, rope: str, length: int) -> None:
    """Below and beyond the original length; the context is the input's, as decision 11 says."""
    limit = 32 if rope == "dynamic" else 96
    parameters = ROPES[rope] | {"rope_theta": 100.0}
    reference, folder = oracle.llama(
        tmp_path, rope_parameters=parameters, max_position_embeddings=max(limit, length)
    )
    if rope == "dynamic":  # trained for 32, run at 60
        reference, folder = _with_trained_length(reference, folder, limit)
    tokens = ids(1, length)
    with torch.no_grad():
        expected = reference(tokens).logits
    with load_exact(folder, context=length) as lm:
        assert_close(lm.forward(tokens).logits, expected)


def _with_trained_length(reference: Any, folder: Path, limit: int) -> tuple[Any, Path]:
    """The same weights with a trained length of ``limit``."""
    from transformers import LlamaForCausalLM

    reference.config.max_position_embeddings = limit
    reference.save_pretrained(folder)
    again = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return again, folder


def test_greedy_ids(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path)
    tokens = ids(1, 9)
    expected = reference.generate(
        tokens, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 9:]
    with load_exact(folder) as lm:
        got = list(greedy(lm, tokens[0].tolist(), 40))
    assert got == expected.tolist()


def greedy(lm: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy ids without stopping, from logits alone: such a folder has no tokenizer."""
    cache = lm.new_cache(rows=1)
    logits = lm.forward(torch.tensor([prompt]), cache=cache, logits_to_keep=1).logits
    found = []
    for _ in range(count):
        found.append(int(logits[0, -1].argmax()))
        logits = lm.forward(torch.tensor([[found[-1]]]), cache=cache).logits
    return found


def test_one_piece_chunks_and_single_tokens_agree(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path)
    tokens = ids(1, 50)
    with torch.no_grad():
        expected = reference(tokens).logits
    for chunk in (7, 1, 64):
        with load_exact(folder, chunk=chunk) as lm:
            assert_close(lm.forward(tokens).logits, expected, f"chunks of {chunk}")
            cache = lm.new_cache(rows=1)
            pieces = [
                lm.forward(piece, cache=cache).logits for piece in tokens.split([13, 1, 1, 35], 1)
            ]
            assert_close(torch.cat(pieces, 1), expected, f"calls of 13, 1, 1, 35 by {chunk}")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows(tmp_path: Path, side: str) -> None:
    """Each row's real positions equal transformers' with the same mask and true positions."""
    reference, folder = oracle.llama(tmp_path)
    tokens, mask = ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    for row, padding in enumerate((0, 7, 13)):
        mask[row, slice(0, padding) if side == "left" else slice(20 - padding, None)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = reference(
            tokens, attention_mask=mask, position_ids=positions,
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
    real = mask.bool()
    with load_exact(folder, chunk=8) as lm:
        out = lm.forward(
            tokens, attention_mask=mask, output_hidden_states=True, output_attentions=True
        )
        assert_close(out.logits[real], expected.logits[real])
        assert not out.logits[~real].any()
        for layer, (ours, theirs) in enumerate(
            zip(out.hidden_states, expected.hidden_states, strict=True)
        ):
            assert_close(ours[real], theirs[real], f"hidden state {layer}")
        for layer, (ours, theirs) in enumerate(
            zip(out.attentions, expected.attentions, strict=True)
        ):
            ours, theirs = ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real]
            assert_close(ours, theirs, f"attention {layer}")
        alone = lm.forward(tokens[2:, 13:] if side == "left" else tokens[2:, :7])
        row = out.logits[2, 13:] if side == "left" else out.logits[2, :7]
        assert_close(row, alone.logits[0], "the row alone")


def test_position_ids_and_embeddings(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path)
    tokens, positions = ids(2, 12), torch.arange(12)[None] * 3 + 5
    embeddings = reference.get_input_embeddings()(tokens).detach() * 1.1
    with torch.no_grad():
        moved = reference(tokens, position_ids=positions.expand(2, -1)).logits
        embedded = reference(inputs_embeds=embeddings).logits
    with load_exact(folder) as lm:
        assert_close(lm.forward(tokens, position_ids=positions).logits, moved, "positions")
        assert_close(lm.forward(inputs_embeds=embeddings).logits, embedded, "embeddings")


def test_logits_to_keep(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path)
    tokens, index = ids(2, 15), torch.tensor([2, 9, 3, 14])
    with torch.no_grad():
        last = reference(tokens, logits_to_keep=4).logits
        chosen = reference(tokens, logits_to_keep=index).logits
    with load_exact(folder, chunk=6) as lm:
        assert_close(lm.forward(tokens, logits_to_keep=4).logits, last, "last 4")
        assert_close(lm.forward(tokens, logits_to_keep=index).logits, chosen, "index")


def test_loss_with_ignored_labels(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path)
    tokens = ids(2, 18)
    labels = tokens.clone()
    labels[0, :5] = -100
    labels[1, 11:] = -100
    with torch.no_grad():
        expected = float(reference(tokens, labels=labels).loss)
    with load_exact(folder) as lm:
        got = float(lm.forward(tokens, labels=labels).loss)
    print(f"loss {got:.7f}, transformers {expected:.7f}")
    assert got == pytest.approx(expected, rel=1e-5)


def test_base_model_from_both_kinds_of_checkpoint(tmp_path: Path) -> None:
    """A bare decoder is read from a causal-LM folder and from one without the prefix."""
    reference, folder = oracle.llama(tmp_path / "lm")
    reference.model.save_pretrained(tmp_path / "base")
    tokens = ids(2, 10)
    with torch.no_grad():
        expected = reference.model(tokens).last_hidden_state
    for path in (folder, tmp_path / "base"):
        with load_exact(path, task="base") as lm:
            out = lm.forward(tokens)
            assert out.logits is None
            assert_close(out.last_hidden_state, expected, str(path.name))


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    reference, folder = oracle.llama(tmp_path, tie_word_embeddings=True)
    tokens = ids(1, 30)
    with torch.no_grad():
        expected = reference(tokens).logits
        theirs = reference.to(torch.bfloat16)(tokens).logits.float()
    import edgelm

    with edgelm.load(folder, quant="none", dtype="bfloat16") as lm:
        ours = lm.forward(tokens).logits
    error, allowed = oracle.share_of_range(ours, expected), oracle.share_of_range(theirs, expected)
    print(f"bfloat16: {error:.1e} of the range, transformers {allowed:.1e}")
    assert error < 2 * allowed
