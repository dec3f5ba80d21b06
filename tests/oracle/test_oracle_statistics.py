"""The figures of judge beside those of scipy."""

from __future__ import annotations

import math
import random

import pytest

from mllm_pipe.judging import statistics

numpy = pytest.importorskip("numpy")
optimize, stats = pytest.importorskip("scipy.optimize"), pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("seed", range(20))
def test_spearman_is_scipys_with_ties(seed):
    draw = random.Random(seed)
    one, other = ([draw.randint(0, 6) for _ in range(40)] for _ in range(2))
    assert statistics.spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert statistics.correlation(one, other) == pytest.approx(stats.pearsonr(one, other).statistic)


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (1, 9), (3, 3), (40, 60), (500, 420), (0, 30)])
def test_the_sign_test_is_scipys_binomial_test(better, worse):
    assert statistics.sign_test(better, worse) == pytest.approx(stats.binomtest(better, better + worse).pvalue)


def test_the_bootstrap_interval_is_scipys_percentile_interval():
    draw = random.Random(3)
    values = [draw.gauss(10, 2) for _ in range(80)]
    ours = statistics.bootstrap(values, lambda drawn: sum(drawn) / len(drawn), times=4000)
    theirs = stats.bootstrap((values,), numpy.mean, n_resamples=4000, method="percentile", random_state=1).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.06)


@pytest.mark.parametrize("seed", range(5))
def test_bradley_terry_is_the_most_likely_of_all(seed):
    """The same likelihood, by a general optimiser; and the covariance is the inverse of its curvature."""
    draw = random.Random(seed)
    wins = [[0 if i == j else draw.randint(0, 8) for j in range(5)] for i in range(5)]
    won = [[0 if i == j else wins[i][j] + statistics.PRIOR for j in range(5)] for i in range(5)]

    def loss(free):
        strength = [*free, -sum(free)]
        return sum(won[i][j] * math.log1p(math.exp(strength[j] - strength[i])) for i in range(5) for j in range(5))

    found = optimize.minimize(loss, [0.0] * 4, method="BFGS", options={"gtol": 1e-9})
    strengths, covariance = statistics.bradley_terry(wins)
    assert strengths == pytest.approx([*found.x, -sum(found.x)], abs=1e-4)
    chance = [[1 / (1 + math.exp(strengths[j] - strengths[i])) for j in range(5)] for i in range(5)]
    weight = numpy.array([[0 if i == j else (won[i][j] + won[j][i]) * chance[i][j] * chance[j][i] for j in range(5)] for i in range(5)])
    information = numpy.diag(weight.sum(axis=1)) - weight
    assert numpy.array(covariance) == pytest.approx(numpy.linalg.pinv(information), abs=1e-9)


def test_the_normal_distribution_is_scipys():
    assert [statistics.normal_cdf(x) for x in (-2.0, 0.0, 1.5)] == pytest.approx(stats.norm.cdf([-2.0, 0.0, 1.5]))
