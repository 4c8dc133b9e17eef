"""Processors against transformers' own, OpenAI's penalties, and draws against distributions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import edgelm
from edgelm.generation.processors import CountPenalty, SoFar
from edgelm.generation.sampling import Sampler, SamplingSettings

PROMPT, NEW = (3, 5, 5, 9), [7, 7, 2]


def processed(logits: torch.Tensor, **settings: Any) -> torch.Tensor:
    """What a sampler draws from."""
    own = logits.clone()
    chosen = SamplingSettings(**({"temperature": 1.0} | settings))
    for process in (*chosen.adjustments(), *chosen.filters()):
        process(own, SoFar(PROMPT, NEW))
    return own


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"typical_p": 0.6}, {"typical_p": 0.6}),
        ({"typical_p": 0.05}, {"typical_p": 0.05}),
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"repetition_penalty": 0.6}, {"repetition_penalty": 0.6}),
        ({"banned_tokens": (4, 0)}, {"bad_words_ids": [[4], [0]]}),
        ({"logit_bias": ((2, 1.5), (8, -3.0))}, {"sequence_bias": [[[2], 1.5], [[8], -3.0]]}),
        (
            {"repetition_penalty": 1.3, "logit_bias": ((5, 4.0),), "banned_tokens": (1,),
             "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.8},
            {"repetition_penalty": 1.3, "sequence_bias": [[[5], 4.0]], "bad_words_ids": [[1]],
             "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.8},
        ),
    ],
)  # fmt: skip
def test_processors_are_transformers_own(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Ten random rows: the same tokens stay, with the same logits, in the same order of steps."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    settings = transformers.GenerationConfig(**({"do_sample": True, "top_k": 0} | theirs))
    settings._eos_token_tensor = None  # what generate() prepares; the banning of words asks for it
    chain = model._get_logits_processor(settings)
    ids = torch.tensor([[*PROMPT, *NEW]])
    for _ in range(10):
        logits = torch.randn(97) * 2
        wanted = chain(ids, logits[None].clone())[0]
        found = processed(logits, **ours)
        assert torch.equal(found.isinf(), wanted.isinf())
        torch.testing.assert_close(found, wanted)
        assert not torch.equal(found, logits)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    """OpenAI's formula: mu[j] - c[j] x frequency - (c[j] > 0) x presence."""
    logits = torch.zeros(10)
    CountPenalty(0.5, 0.25)(logits, SoFar(PROMPT, NEW))
    wanted = torch.zeros(10)
    wanted[7], wanted[2] = -0.5 - 2 * 0.25, -0.75
    torch.testing.assert_close(logits, wanted)


LOGITS = torch.tensor([2.0, 0.5, -1.0, 3.0, 0.0, 1.0, -4.0, 0.2, 1.7, -0.3])
KNOWN = LOGITS.double().softmax(0)


def only(*tokens: int) -> torch.Tensor:
    kept = torch.zeros(10, dtype=torch.float64)
    kept[list(tokens)] = KNOWN[list(tokens)]
    return kept / kept.sum()


def shifted(changes: dict[int, float]) -> torch.Tensor:
    logits = LOGITS.double().clone()
    for token, change in changes.items():
        logits[token] += change
    return logits.softmax(0)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        # KNOWN: token 3 .53, 0 .20, 8 .14, 5 .07, 1 .04, 7 .03 ...
        ({"min_p": 0.2}, only(3, 0, 8)),
        # expected surprise 1.43 nats: token 0 (1.63) is nearest, then 8 (1.93), then 3 (.63)
        ({"typical_p": 0.3}, only(0, 8)),
        # in prompt or answer: 3, 5, 9, 7, 2
        ({"repetition_penalty": 2.0},
         shifted({3: -1.5, 5: -0.5, 9: -0.3, 7: -0.1, 2: -1.0})),
        ({"presence_penalty": 1.0}, shifted({7: -1.0, 2: -1.0})),
        ({"frequency_penalty": 1.0}, shifted({7: -2.0, 2: -1.0})),
        ({"logit_bias": ((6, 5.0), (3, -1.0))}, shifted({6: 5.0, 3: -1.0})),
        ({"banned_tokens": (3, 0)}, only(1, 2, 4, 5, 6, 7, 8, 9)),
    ],
)  # fmt: skip
def test_draws_follow_the_known_distribution(
    settings: dict[str, Any], wanted: torch.Tensor
) -> None:
    """Chi-squared over 3000 seeds, below Wilson and Hilferty's quantile at four deviations."""
    counts = torch.zeros(10, dtype=torch.float64)
    for seed in range(3000):
        sample = Sampler(SamplingSettings(temperature=1.0, seed=seed, **settings))
        counts[sample(LOGITS.clone(), int(LOGITS.argmax()), SoFar(PROMPT, NEW))] += 1
    real = wanted > 0
    assert not counts[~real].any(), "a token without probability was drawn"
    expected = wanted[real] * 3000
    statistic = float(((counts[real] - expected) ** 2 / expected).sum())
    freedom = int(real.sum()) - 1
    spread = 2 / (9 * freedom)
    bound = freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3
    print(f"chi-squared {statistic:.1f} with {freedom} degrees, bound {bound:.1f}")
    assert statistic < bound


@pytest.mark.parametrize(
    "wrong",
    [{"min_p": 1.5}, {"temperature": 1e-7}, {"typical_p": 0.0}, {"repetition_penalty": 0.0},
     {"seed": -1}, {"presence_penalty": math.nan}, {"frequency_penalty": math.inf},
     {"logit_bias": ((1, math.nan),)}],
)  # fmt: skip
def test_values_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(edgelm.UsageError, match="allowed"):
        SamplingSettings(**wrong)
