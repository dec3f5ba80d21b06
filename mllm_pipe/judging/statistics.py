"""Agreement, rank, votes and ranking as numbers: pure functions, each with the source of its formula.

What cannot be known from the data (no variance, nothing to compare) is None, never 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from random import Random
from typing import TypeVar

Item = TypeVar("Item")
Pair = tuple[Hashable, Hashable]


def typed(number: float) -> Fraction:
    """A number as the decimal that somebody typed: 0.1 is 1/10, and not the binary number next to it."""
    return Fraction(str(number))


def share(number: float) -> Fraction:
    """A share of 0 to 1 as the quotient of whole numbers that it is a float of: 0.3333333333333333 is 1/3.

    Denominators up to a million are told apart surely, which are those of a scale of up to 10,000 steps and of means.
    """
    return Fraction(number).limit_denominator(1_000_000)


def mean(numbers: Sequence[float]) -> float:
    """The mean of some shares, in fractions."""
    return float(sum(map(share, numbers), Fraction(0)) / len(numbers))


def agreement(pairs: Sequence[Pair]) -> float | None:
    """The share of pairs whose two labels are the same."""
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None


def kappa(pairs: Sequence[Pair]) -> float | None:
    """Cohen's kappa: the agreement beyond what two raters of these base rates would have by chance.

    J. Cohen, "A coefficient of agreement for nominal scales", Educ. Psychol. Meas. 20 (1960): (po - pe) / (1 - pe).
    None where chance alone would agree always: both gave one and the same label throughout.
    """
    count = len(pairs)
    if not count:
        return None
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(first[label] * second[label] for label in first) / count**2
    seen = sum(one == other for one, other in pairs) / count
    return None if by_chance >= 1 else (seen - by_chance) / (1 - by_chance)


def bootstrap(items: Sequence[Item], figure: Callable[[Sequence[Item]], float | None], seed: int = 0,
              times: int = 1000, level: float = 0.95) -> tuple[float, float] | None:  # fmt: skip
    """The percentile interval of a figure of the items, drawn again with replacement.

    B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), §13.3. Draws without a figure are left out;
    None if there are none with one.
    """
    if not items:
        return None
    random = Random(seed)
    drawn = (figure(random.choices(items, k=len(items))) for _ in range(times))
    found = sorted(value for value in drawn if value is not None)
    if not found:
        return None
    tail = (1 - level) / 2
    return found[math.floor(tail * (len(found) - 1))], found[math.ceil((1 - tail) * (len(found) - 1))]


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their middle rank: Pearson's r of the ranks.

    C. Spearman (1904); with ties as M. G. Kendall, "Rank Correlation Methods" (1948), chapter 3. None without variance.
    """
    return correlation(_ranks(one), _ranks(other))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end < len(order) and values[order[end]] == values[order[begin]]:
            end += 1
        for place in order[begin:end]:
            ranks[place] = (begin + end + 1) / 2
        begin = end
    return ranks


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's r; None without variance."""
    count = len(one)
    if count < 2 or min(one) == max(one) or min(other) == max(other):
        return None  # a sum of equal floats, divided again, may be another float
    mean, mean_other = sum(one) / count, sum(other) / count
    across = sum((x - mean) * (y - mean_other) for x, y in zip(one, other, strict=True))
    spread = sum((x - mean) ** 2 for x in one) * sum((y - mean_other) ** 2 for y in other)
    return across / math.sqrt(spread) if spread > 0 else None


def effective_votes(votes: Sequence[Sequence[float]]) -> float | None:
    """How many independent votes so many correlated ones are worth: n / (1 + (n - 1) r), r their mean correlation.

    votes: of each voter one number an item, the same items for all. The design effect of L. Kish, "Survey Sampling"
    (1965), §5.4. At least 1 and at most n: judges that err against each other are no more than independent, so that a
    correlation below 0 counts as 0, pair by pair, and hides no two that are one. A pair without variance has no
    correlation and is left out; None if all are.
    """
    count = len(votes)
    found = [r for place in range(count) for other in range(place)
             if (r := correlation(votes[place], votes[other])) is not None]  # fmt: skip
    if not found:
        return None
    mean_r = sum(max(0.0, r) for r in found) / len(found)
    return count / (1 + (count - 1) * mean_r)


def sign_test(better: int, worse: int) -> float:
    """The two-sided p of so many changes one way and the other, if both were as likely: exact binomial.

    On changed pairs of yes and no, this is the exact form of Q. McNemar, "Note on the sampling error of the difference
    between correlated proportions", Psychometrika 12 (1947). 1 if nothing changed.
    """
    count, fewer = better + worse, min(better, worse)
    tail: float = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    return min(1.0, 2 * tail)


PRIOR = 0.5  # half a win and half a loss of each against each: nobody is beaten for ever by one lost comparison


def bradley_terry(
    wins: Sequence[Sequence[float]], prior: float = PRIOR
) -> tuple[list[float], list[list[float]]]:
    """(strengths as log-odds with mean 0, the covariance of them) by who won how often against whom.

    wins[i][j]: how often i beat j; half each for a tie. P(i beats j) = 1 / (1 + exp(s_j - s_i)). R. Bradley and
    M. Terry, "Rank analysis of incomplete block designs", Biometrika 39 (1952); the iteration is that of D. Hunter,
    "MM algorithms for generalized Bradley-Terry models", Ann. Statist. 32 (2004), §2, the prior added to each pair.
    """
    count = len(wins)
    won = [[0.0 if i == j else wins[i][j] + prior for j in range(count)] for i in range(count)]
    strength = [1.0] * count
    for _ in range(10_000):
        renewed = [
            sum(won[i]) / sum((won[i][j] + won[j][i]) / (strength[i] + strength[j]) for j in range(count) if j != i)
            for i in range(count)
        ]
        scale = math.exp(sum(math.log(value) for value in renewed) / count)
        renewed = [value / scale for value in renewed]
        change = max(abs(value - before) for value, before in zip(renewed, strength, strict=True))
        strength = renewed
        if change < 1e-12:
            break
    information = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(count):
            if i != j:
                chance = strength[i] / (strength[i] + strength[j])
                weight = (won[i][j] + won[j][i]) * chance * (1 - chance)
                information[i][i] += weight
                information[i][j] -= weight
    return [math.log(value) for value in strength], _pseudo_inverse(information)


def _pseudo_inverse(laplacian: list[list[float]]) -> list[list[float]]:
    """The Moore-Penrose inverse of a matrix whose rows add up to 0, by Gauss-Jordan: (L + J/n)^-1 - J/n."""
    count = len(laplacian)
    rows = [[value + 1 / count for value in row] + [float(i == j) for j in range(count)]
            for i, row in enumerate(laplacian)]  # fmt: skip
    for place in range(count):
        pivot = max(range(place, count), key=lambda row: abs(rows[row][place]))
        rows[place], rows[pivot] = rows[pivot], rows[place]
        rows[place] = [value / rows[place][place] for value in rows[place]]
        for row in range(count):
            if row != place and rows[row][place]:
                factor = rows[row][place]
                rows[row] = [value - factor * above for value, above in zip(rows[row], rows[place], strict=True)]
    return [[value - 1 / count for value in row[count:]] for row in rows]


def normal_cdf(value: float) -> float:
    """The standard normal distribution up to a value."""
    return (1 + math.erf(value / math.sqrt(2))) / 2
