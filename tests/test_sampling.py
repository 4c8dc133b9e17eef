"""Samplers against their definitions, and numbers that depend on nothing but their counter."""

from __future__ import annotations

import math

import pytest
import torch

import edgelm
from edgelm.processors import MinP, SoFar, Temperature, TopK, TopP, Typical
from edgelm.sampling import Sampler, SamplingSettings, uniform

LOGITS = torch.tensor([2.0, 0.5, -1.0, 3.0, 0.0, 1.0, -4.0])


def draw(settings: SamplingSettings, count: int) -> torch.Tensor:
    sample = Sampler(settings)
    drawn = [sample(LOGITS.clone(), 3, SoFar(new=[0] * index)) for index in range(count)]
    return torch.bincount(torch.tensor(drawn), minlength=len(LOGITS))


def chi_squared(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    expected = probabilities * counts.sum()
    assert not counts[probabilities == 0].any(), "a token without probability was drawn"
    real = probabilities > 0
    statistic = ((counts - expected)[real] ** 2 / expected[real]).sum()
    return float(statistic), int(real.sum()) - 1


@pytest.mark.parametrize(
    ("settings", "filtered"),
    [
        ({"temperature": 1.0}, LOGITS),
        ({"temperature": 0.5}, LOGITS / 0.5),
        ({"temperature": 2.0, "top_k": 3}, torch.where(LOGITS >= 1.0, LOGITS, -math.inf) / 2),
        # softmax: token 3 .63, 0 .23, 5 .085: the third crosses .9
        ({"temperature": 1.0, "top_p": 0.9}, torch.where(LOGITS >= 1.0, LOGITS, -math.inf)),
    ],
)
def test_drawn_tokens_follow_the_definition(
    settings: dict[str, float], filtered: torch.Tensor
) -> None:
    counts = draw(SamplingSettings(seed=5, **settings), 4000)
    statistic, freedom = chi_squared(counts, filtered.double().softmax(0))
    # Wilson and Hilferty's quantile at four standard deviations.
    spread = 2 / (9 * freedom)
    bound = freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3
    print(f"chi-squared {statistic:.1f} with {freedom} degrees, bound {bound:.1f}")
    assert statistic < bound


def test_greedy_takes_the_largest() -> None:
    assert Sampler(SamplingSettings())(LOGITS.clone(), 3, SoFar()) == 3


def test_processors_change_the_buffer_they_are_given() -> None:
    for process in (Temperature(0.5), TopK(2), TopP(0.5), MinP(0.5), Typical(0.5)):
        logits = LOGITS.clone()
        address = logits.data_ptr()
        assert process(logits, SoFar()) is None
        assert logits.data_ptr() == address and not torch.equal(logits, LOGITS)


def test_top_k_and_top_p_keep_at_least_one() -> None:
    for process in (TopK(1), TopP(1e-9), MinP(1.0)):
        logits = LOGITS.clone()
        process(logits, SoFar())
        assert torch.isfinite(logits).nonzero().tolist() == [[3]]


def test_random_numbers_depend_on_their_counter_alone() -> None:
    first = [uniform(7, index) for index in range(50)]
    assert [uniform(7, index) for index in reversed(range(50))] == first[::-1]
    assert len(set(first)) == 50 and all(0 <= number < 1 for number in first)
    assert uniform(7, 3) != uniform(8, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1},
     {"top_k": -2}, {"seed": -1}, {"seed": 1 << 64}],
)  # fmt: skip
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(edgelm.UsageError, match="allowed"):
        SamplingSettings(**wrong)
