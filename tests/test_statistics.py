"""The figures of judge are those of the textbooks."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from mllm_pipe.judging import statistics


def table(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> list[tuple[str, str]]:
    return [("yes", "yes")] * yes_yes + [("yes", "no")] * yes_no + [("no", "yes")] * no_yes + [("no", "no")] * no_no


def test_kappa_is_agreement_beyond_chance():
    """Two readers of fifty proposals: po 0.7, pe 0.5. The other two agree on 0.6 each, at other base rates."""
    assert statistics.kappa(table(20, 5, 10, 15)) == pytest.approx(0.4)
    assert statistics.kappa(table(45, 15, 25, 15)) == pytest.approx(0.1304, abs=1e-4)
    assert statistics.kappa(table(25, 35, 5, 35)) == pytest.approx(0.2593, abs=1e-4)
    assert statistics.kappa(table(9, 0, 0, 0)) is None and statistics.kappa([]) is None
    assert statistics.agreement(table(20, 5, 10, 15)) == 0.7


def test_spearman_is_pearson_of_the_ranks():
    """IQ and hours of television of ten people: -29/165. With ties, the middle rank of each group."""
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert statistics.spearman(iq, hours) == pytest.approx(-29 / 165)
    assert statistics.spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1)
    assert statistics.spearman([1, 2, 2, 3], [10, 30, 20, 40]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert statistics.spearman([1, 1, 1], [1, 2, 3]) is None


def test_the_sign_test_is_binomial():
    assert statistics.sign_test(9, 1) == pytest.approx(22 / 1024)
    assert statistics.sign_test(1, 9) == statistics.sign_test(9, 1)
    assert statistics.sign_test(0, 0) == statistics.sign_test(3, 3) == 1.0


def test_effective_votes_are_those_of_the_design_effect():
    same = [[0.0, 1, 0, 1, 1]] * 4
    assert statistics.effective_votes(same) == pytest.approx(1)
    apart = [[0.0, 1, 0, 1], [0.0, 0, 1, 1]]
    assert statistics.effective_votes(apart) == pytest.approx(2)
    third = [[0.0, 0, 1, 1, 0, 1], [0.0, 1, 1, 1, 0, 0]]
    assert statistics.effective_votes(third) == pytest.approx(2 / (1 + 1 / 3))
    assert statistics.effective_votes([[1.0, 1], [0.0, 1]]) is None


def test_judges_that_always_say_the_same_number_have_no_correlation():
    """Ten times 0.7, added and divided by ten, is another float than 0.7."""
    assert statistics.correlation([0.7] * 10, [0.3] * 10) is None
    assert statistics.effective_votes([[0.7] * 10, [0.3] * 10]) is None


def test_one_that_says_the_opposite_makes_no_two_of_two_that_are_one():
    judge, opposite = [0.0, 1, 0, 1], [1.0, 0, 1, 0]
    assert statistics.effective_votes([judge, judge, opposite]) == pytest.approx(3 / (1 + 2 / 3))
    assert statistics.effective_votes([judge, opposite]) == pytest.approx(2)


def test_a_share_is_the_quotient_that_it_was_and_a_number_the_decimal_that_was_typed():
    assert all(statistics.share(part / whole) == Fraction(part, whole) for whole in (3, 7, 999, 9999) for part in (1, whole - 1))
    assert statistics.typed(0.1) == Fraction(1, 10) and statistics.typed(1e308) == 10**308
    assert statistics.mean([1 / 3, 2 / 3]) == 0.5


def test_bradley_terry_ranks_the_american_league_of_1987():
    """A. Agresti, "Categorical Data Analysis" (1990), §10.6: strengths beside Baltimore, and the error of Boston's."""
    wins = [
        [0, 7, 9, 7, 7, 9, 11],  # Milwaukee
        [6, 0, 7, 5, 11, 9, 9],  # Detroit
        [4, 6, 0, 7, 7, 8, 12],  # Toronto
        [6, 8, 6, 0, 6, 7, 10],  # New York
        [6, 2, 6, 7, 0, 7, 12],  # Boston
        [4, 4, 5, 6, 6, 0, 6],  # Cleveland
        [2, 4, 1, 3, 1, 7, 0],  # Baltimore
    ]
    strengths, covariance = statistics.bradley_terry(wins, prior=0)
    assert [round(one - strengths[6], 3) for one in strengths] == [1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0]
    boston = math.sqrt(covariance[4][4] + covariance[6][6] - 2 * covariance[4][6])
    assert boston == pytest.approx(0.34, abs=0.01)
    assert sum(strengths) == pytest.approx(0)


def test_a_lost_comparison_is_not_the_end():
    """Whoever lost all has a strength all the same, and the error says how little is known."""
    strengths, covariance = statistics.bradley_terry([[0, 1], [0, 0]])
    assert strengths == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert math.sqrt(covariance[0][0]) > 0.5


def test_the_bootstrap_interval_is_of_the_figure_and_the_same_again():
    pairs = table(20, 5, 10, 15)
    low, high = statistics.bootstrap(pairs, statistics.kappa)
    assert (low, high) == statistics.bootstrap(pairs, statistics.kappa)
    assert 0.1 < low < 0.4 < high < 0.7
    assert statistics.bootstrap([], statistics.kappa) is None
    assert statistics.bootstrap([("a", "a")], statistics.kappa) is None
