"""Statistics: equal to reference implementations, and intervals that cover what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from edgelm.evaluation.statistics.clusters import Estimate, blocks_of, clustered_mean, numbered
from edgelm.evaluation.statistics.pairs import PairedScore, Pairs, holm, mcnemar, paired_scores
from edgelm.evaluation.statistics.perplexities import perplexity, perplexity_difference
from edgelm.evaluation.statistics.proportions import wilson

TABLES = 100
RUNS = 1000  # of a simulated experiment: the share of intervals is known to 0.7 %
COVERED = (0.93, 0.97)


def test_tables_are_those_of_statsmodels() -> None:
    """McNemar's test, Holm's correction and Wilson's interval of 100 random tables."""
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(0)
    found, expected = [], []
    for table in range(TABLES):
        both, lost, gained, neither = generator.integers(0, (500, 40, 40, 500)[table % 4] + 1, 4)
        found.append(mcnemar(int(gained), int(lost)))
        expected.append(tables.mcnemar([[both, lost], [gained, neither]], exact=True).pvalue)
        right, count = int(both), int(both + neither + 1)
        low, high = proportion.proportion_confint(right, count, method="wilson")
        assert wilson(right, count) == pytest.approx((low, high), abs=1e-12)
    assert found == pytest.approx(expected, rel=1e-9)
    for start in range(0, TABLES, 10):
        own = found[start : start + 10]
        corrected = multitest.multipletests(own, method="holm")[1]
        assert holm(own) == pytest.approx(list(corrected), rel=1e-9)


def test_clustered_errors_are_those_of_a_regression() -> None:
    """On a constant, with statsmodels' cluster-robust errors; intervals with its t."""
    api = pytest.importorskip("statsmodels.api")
    generator = np.random.default_rng(1)
    for _ in range(TABLES):
        clusters = numbered(generator.integers(0, 12, 80).tolist())
        values = generator.normal(size=80) + generator.normal(size=12)[clusters]
        theirs = api.OLS(values, np.ones(80)).fit(
            cov_type="cluster", cov_kwds={"groups": np.asarray(clusters)}, use_t=True
        )
        ours = clustered_mean(values, clusters)
        assert ours.value == pytest.approx(theirs.params[0])
        assert ours.stderr == pytest.approx(theirs.bse[0])
        assert ours.interval() == pytest.approx(tuple(theirs.conf_int()[0]))


def test_an_interval_without_passages_is_agrestis_and_mins() -> None:
    """Their formula, with t in place of the normal quantile and a sample's variance."""
    generator = np.random.default_rng(2)
    for _ in range(TABLES):
        before, after = generator.random((2, 90)) < generator.random((2, 1))
        score = scored(before, after)
        more, n = int((after & ~before).sum()), len(before) + 2
        less = int((before & ~after).sum())
        middle = (more - less) / n
        variance = ((more + less + 1) / n - middle**2) / (n - 1)
        reach = stats.t.ppf(0.975, n - 1) * math.sqrt(variance)
        assert (score.gained, score.lost) == (more, less)
        assert score.difference == pytest.approx(after.mean() - before.mean())
        assert (score.low, score.high) == pytest.approx((middle - reach, middle + reach))


def scored(
    before: np.ndarray, after: np.ndarray, passages: list[int] | None = None, margin: float = 0.01
) -> PairedScore:
    return paired_scores({"task": Pairs(before.tolist(), after.tolist(), passages)}, margin)["task"]


def covered(
    truth: float, interval: Callable[[np.random.Generator], tuple[float, float] | None]
) -> None:
    """Check that intervals of simulated experiments cover the truth as often as they say."""
    generator, hits = np.random.default_rng(3), 0
    for _ in range(RUNS):
        found = interval(generator)
        assert found is not None
        hits += found[0] <= truth <= found[1]
    share = hits / RUNS
    print(f"{share:.1%} of the intervals cover {truth}")
    assert COVERED[0] <= share <= COVERED[1]


@pytest.mark.parametrize(
    ("items", "gained", "lost"), [(100, 0.05, 0.08), (200, 0.03, 0.03), (1000, 0.01, 0.02)]
)
def test_differences_of_accuracy_are_covered(items: int, gained: float, lost: float) -> None:
    def interval(generator: np.random.Generator) -> tuple[float, float]:
        flips = generator.random(items)
        before = np.where(flips < gained, 0, np.where(flips < gained + lost, 1, flips < 0.6))
        after = np.where(flips < gained, 1, np.where(flips < gained + lost, 0, flips < 0.6))
        score = scored(before.astype(bool), after.astype(bool))
        return score.low, score.high

    covered(gained - lost, interval)


def test_differences_by_passage_are_covered() -> None:
    """Five questions to a passage that flip together; as single items the interval fails."""
    passages = np.repeat(np.arange(50), 5).tolist()
    widths = {True: 0.0, False: 0.0}

    def interval(generator: np.random.Generator) -> tuple[float, float]:
        kind = generator.choice([-1, 0, 1], p=[0.15, 0.75, 0.1], size=50)
        change = np.where(generator.random(250) < 0.7, np.repeat(kind, 5), 0)
        score = scored(change < 1, change > -1, passages)
        for known in widths:
            own = score if known else scored(change < 1, change > -1)
            widths[known] += own.high - own.low
        return score.low, score.high

    covered(0.7 * (0.1 - 0.15), interval)
    assert widths[True] > 1.5 * widths[False]


def test_perplexities_are_covered() -> None:
    """Tokens of a window are alike, windows of a block too; the pairs cancel most of it."""
    windows, tokens = 240, 16
    blocks = np.repeat(blocks_of([windows]), tokens).tolist()
    shift = 0.02

    def losses(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        level, noise = np.zeros(windows), generator.normal(size=windows)
        for window in range(windows):
            level[window] = 0.4 * level[window - 1] * (window > 0) + 0.1 * noise[window]
        hard = np.repeat(level, tokens) + 3 + 0.3 * generator.normal(size=windows * tokens)
        added = np.repeat(0.5 * level, tokens) + 0.1 * generator.normal(size=windows * tokens)
        return hard + shift + added, hard

    covered(
        math.exp(3) * (math.exp(shift) - 1),
        lambda generator: perplexity_difference(*losses(generator), blocks).interval(),
    )
    covered(
        math.exp(3 + shift),
        lambda generator: perplexity(losses(generator)[0], blocks).interval(),
    )


@pytest.mark.parametrize("count", [20, 40])
def test_shares_of_small_samples_are_covered(count: int) -> None:
    """Exactly, on the average of shares: with so few outcomes single shares are off by more."""
    intervals = [wilson(right, count) for right in range(count + 1)]
    covered_shares = [
        sum(
            math.comb(count, right) * share**right * (1 - share) ** (count - right)
            for right, (low, high) in enumerate(intervals)
            if low <= share <= high
        )
        for share in np.linspace(0.05, 0.95, 181)
    ]
    print(f"{np.mean(covered_shares):.1%} of the intervals cover")
    assert COVERED[0] <= np.mean(covered_shares) <= COVERED[1]
    assert wilson(count, count) == (
        pytest.approx(count / (count + 3.8415), rel=1e-4),
        pytest.approx(1.0),
    )


def test_blocks_are_neighbours_within_a_text() -> None:
    assert blocks_of([3, 2]) == [0, 1, 2, 3, 4]
    assert blocks_of([1]) == [0] and clustered_mean([1.0, 3.0], [0, 0]) == Estimate(2.0, None, 1)
    many = blocks_of([61, 30])  # four windows to a block, the last of a text shorter
    assert many[:5] == [0, 0, 0, 0, 1] and many[60] == 15 and many[61] == 16
    assert Estimate(2.0, None, 1).interval() is None


def test_verdicts_and_what_a_sample_can_show() -> None:
    """No flips in few items prove little, in many enough; a loss beyond the margin is one."""
    same = np.ones(20, dtype=bool)
    few, many = scored(same, same), scored(np.ones(2000, bool), np.ones(2000, bool))
    assert few.verdict == "undecided" and few.detectable > 0.1 and few.low < -0.01
    assert many.verdict == "not worse" and 0 < many.detectable < 0.01
    assert scored(same, same, margin=0.2).verdict == "not worse"
    worse = scored(np.ones(400, bool), np.arange(400) >= 40)
    assert worse.verdict == "worse" and worse.lost == 40 and worse.p < 1e-9
    both = paired_scores(
        {"a": Pairs([True] * 8, [False] * 8), "b": Pairs([True] * 8, [True] * 8)}, 0.01
    )
    assert both["a"].p_holm == 2 * both["a"].p and both["b"].p_holm == 1.0


def test_the_detectable_difference_is_seen_in_four_of_five_samples() -> None:
    generator, seen = np.random.default_rng(4), 0
    n, flips = 400, 0.1
    wanted = scored(np.arange(n) % 20 != 0, np.arange(n) % 20 != 1).detectable
    for _ in range(RUNS):
        own = generator.random(n)
        gained, lost = own < (flips - wanted) / 2, own > 1 - (flips + wanted) / 2
        score = scored(~gained, ~lost)
        seen += score.high < 0
    print(f"a difference of {wanted:.2%} was seen in {seen / RUNS:.0%}")
    assert 0.72 < seen / RUNS < 0.88
