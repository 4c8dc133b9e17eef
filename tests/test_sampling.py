"""Samplers against their definitions, and numbers that depend on nothing but their counter."""

from __future__ import annotations

import math

import pytest
import torch

import edgelm
from edgelm.generation.processors import MinP, SoFar, Temperature, TopK, TopP, Typical
from edgelm.generation.sampling import Sampler, SamplingSettings, uniform
from quant import native

LOGITS = torch.tensor([2.0, 0.5, -1.0, 3.0, 0.0, 1.0, -4.0])


needs_library = pytest.mark.skipif(
    native.missing() is not None, reason=f"no native library: {native.missing()}"
)


def draw(settings: SamplingSettings, count: int, natively: bool) -> torch.Tensor:
    sample = Sampler(settings)
    chosen = sample._draw_natively if natively else sample._draw
    drawn = [chosen(LOGITS.clone(), SoFar(new=[0] * index)) for index in range(count)]
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
@pytest.mark.parametrize("natively", [False, pytest.param(True, marks=needs_library)])
def test_drawn_tokens_follow_the_definition(
    settings: dict[str, float], filtered: torch.Tensor, natively: bool
) -> None:
    counts = draw(SamplingSettings(seed=5, **settings), 4000, natively)
    statistic, freedom = chi_squared(counts, filtered.double().softmax(0))
    # Wilson and Hilferty's quantile at four standard deviations.
    spread = 2 / (9 * freedom)
    bound = freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3
    print(f"chi-squared {statistic:.1f} with {freedom} degrees, bound {bound:.1f}")
    assert statistic < bound


@needs_library
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5, "top_k": 40},
        {"top_k": 1},
        {"top_p": 0.9},
        {"top_p": 1e-9},
        {"temperature": 0.8, "min_p": 0.02},
        {"temperature": 1.4, "top_k": 300, "top_p": 0.7, "min_p": 0.001},
    ],
)
@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0])
def test_native_draws_are_the_definitions(settings: dict[str, float], spread: float) -> None:
    """The same ids from the same numbers; weights agree to 1e-6, so a draw at an edge may differ.

    Logits are coarse, so that many are equal where a filter cuts; some are banned.
    """
    sample = Sampler(SamplingSettings(**({"temperature": 1.0} | settings)))
    generator = torch.Generator().manual_seed(7)
    differ = 0
    for index in range(200):
        logits = (torch.randn(3001, generator=generator) * spread * 8).round() / 8
        logits[torch.randperm(3001, generator=generator)[:40]] = -math.inf
        so_far = SoFar(new=[0] * index)
        differ += sample._draw(logits.clone(), so_far) != sample._draw_natively(logits, so_far)
    print(f"{differ} of 200 draws differ")
    assert differ <= 1


@needs_library
def test_nothing_is_drawn_where_all_is_banned() -> None:
    sample = Sampler(SamplingSettings(temperature=1.0, top_k=2, top_p=0.5))
    for draw_one in (sample._draw, sample._draw_natively):
        assert draw_one(torch.full((50,), -math.inf), SoFar()) == -1
    with pytest.raises(edgelm.UsageError, match="Every token is banned"):
        sample(torch.full((50,), -math.inf), 0, SoFar())


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
