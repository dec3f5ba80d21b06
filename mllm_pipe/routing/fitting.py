"""Fitting a learned router: logistic regression, to the optimum, by L-BFGS; calibrated on folds that it did not see.

The only module that needs numpy (the extra `learn`). A label is a number from 0 to 1: of two agents 1 where only the
strong one was right, 0 where only the weak one was, 0.5 where both or neither: so the score orders prompts by what is
gained by asking the strong one. Of several targets, 1 for the one that was right.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from typing import Any

from mllm_pipe.errors import Usage
from mllm_pipe.routing.features import BUCKETS, structure_of, words_of
from mllm_pipe.routing.learned import KIND, STRUCTURE_SHARE, Model, packed

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more threads only spin at products of this size
try:
    import numpy as np
except ModuleNotFoundError:
    raise Usage("--fit needs numpy, deciding does not; in the checkout: pip install '.[learn]'") from None

FOLDS = 5
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3)  # of the squared weights, beside the mean loss; the best is chosen on folds
LEAST = 20  # rows
Floats = Any  # numpy.ndarray of float64


class Matrix:
    """Rows of features: words, weighed and of length 1, and structure; and what they were weighed with."""

    def __init__(self, texts: list[str], like: Matrix | None = None) -> None:
        """like: another one, whose weights count, so that nothing is learned of these texts."""
        rows = [words_of(text) for text in texts]
        sizes = [len(row) for row in rows]
        buckets = np.fromiter((bucket for row in rows for bucket in row), np.int64, sum(sizes))
        values = np.fromiter((value for row in rows for value in row.values()), np.float64, sum(sizes))
        row_of = np.repeat(np.arange(len(rows)), sizes)
        structure = np.array([structure_of(text) for text in texts])
        if like is None:
            seen = np.bincount(buckets, minlength=BUCKETS)
            self.idf = (np.log((1 + len(rows)) / (1 + seen)) + 1) * (seen > 1)  # a word of one text tells nothing
            self.idf = self.idf.astype(np.float32).astype(np.float64)
            self.used = np.flatnonzero(self.idf)  # the buckets that have a weight: the vectors are of these alone
            self.mean, self.scale = structure.mean(0), np.maximum(structure.std(0), 1e-6)
        else:
            self.idf, self.used, self.mean, self.scale = like.idf, like.used, like.mean, like.scale
        known = self.idf[buckets] > 0
        self.row_of, values = row_of[known], (values * self.idf[buckets])[known]
        self.places = np.searchsorted(self.used, buckets[known])
        lengths = np.sqrt(np.bincount(self.row_of, values * values, minlength=len(rows)))
        self.values = values / np.where(lengths > 0, lengths, 1.0)[self.row_of]
        self.structure = STRUCTURE_SHARE * (structure - self.mean) / self.scale
        self.count = len(rows)

    def times(self, weights: Floats) -> Floats:
        """X w, of weights for the buckets used, the structure and the constant."""
        size = len(self.used)
        words = np.bincount(self.row_of, self.values * weights[:size][self.places], minlength=self.count)
        found: Floats = words + self.structure @ weights[size:-1] + weights[-1]
        return found

    def transposed_times(self, residuals: Floats) -> Floats:
        """X' r."""
        words = np.bincount(self.places, self.values * residuals[self.row_of], minlength=len(self.used))
        return np.concatenate([words, self.structure.T @ residuals, [residuals.sum()]])


def logistic(matrix: Matrix, labels: Floats, penalty: float, start: Floats | None = None) -> Floats:
    """The weights that minimise mean log loss + penalty / 2 |w|^2 (but for the constant), which is strictly convex."""
    held = np.append(np.full(len(matrix.used) + len(matrix.mean), penalty), 0.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        x = matrix.times(weights)
        value = np.mean(np.logaddexp(0.0, x) - labels * x) + 0.5 * np.sum(held * weights * weights)
        residuals = (_sigmoid(x) - labels) / len(labels)
        return float(value), matrix.transposed_times(residuals) + held * weights

    return _minimum(loss, np.zeros(len(held)) if start is None else start)


def _minimum(loss: Callable[[Floats], tuple[float, Floats]], x: Floats, memory: int = 10, most: int = 300) -> Floats:
    """The minimum of a convex function by L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5), with
    backtracking; the end is where the gradient is a hundred-thousandth of what it was, or next to nothing."""
    value, gradient = loss(x)
    first = float(np.linalg.norm(gradient)) or 1.0
    pairs: list[tuple[Floats, Floats, float]] = []
    for _ in range(most):
        if np.linalg.norm(gradient) <= max(1e-5 * first, 1e-9):
            break
        direction = -_two_loops(gradient, pairs)
        slope = float(gradient @ direction)
        step = 1.0 if pairs else min(1.0, 1.0 / first)
        while True:
            next_x = x + step * direction
            next_value, next_gradient = loss(next_x)
            if next_value <= value + 1e-4 * step * slope or step < 1e-10:
                break
            step *= 0.5
        s, y = next_x - x, next_gradient - gradient
        curvature = float(s @ y)
        if curvature > 1e-12:
            pairs = [*pairs[-memory + 1 :], (s, y, 1.0 / curvature)]
        x, value, gradient = next_x, next_value, next_gradient
    return x


def _two_loops(gradient: Floats, pairs: list[tuple[Floats, Floats, float]]) -> Floats:
    q, shares = gradient.copy(), []
    for s, y, rho in reversed(pairs):
        share = rho * float(s @ q)
        q -= share * y
        shares.append(share)
    if pairs:
        s, y, rho = pairs[-1]
        q *= 1.0 / (rho * float(y @ y))
    for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
        q += (share - rho * float(y @ q)) * s
    return q


def _sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -500, 500)))


def _folds(texts: list[str]) -> Floats:
    """The fold of each row: shuffled, and the same each time. Equal prompts are in one fold, or it would be seen."""
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    of_number = np.random.default_rng(0).permutation(len(number)) % FOLDS
    return of_number[[number[text] for text in texts]]


def unseen(texts: list[str], labels: Floats) -> tuple[float, Floats]:
    """(the penalty with the least loss on folds that were not fitted on, each row's score then)."""
    fold = _folds(texts)
    scores = {penalty: np.zeros(len(texts)) for penalty in PENALTIES}
    for one in range(fold.max() + 1):
        there = fold != one
        matrix = Matrix([text for text, is_there in zip(texts, there, strict=True) if is_there])
        others = Matrix([text for text, is_there in zip(texts, there, strict=True) if not is_there], matrix)
        weights = None
        for penalty in sorted(PENALTIES, reverse=True):
            weights = logistic(matrix, labels[there], penalty, weights)
            scores[penalty][~there] = others.times(weights)
    losses = {penalty: np.mean(np.logaddexp(0.0, x) - labels * x) for penalty, x in scores.items()}
    best = min(PENALTIES, key=losses.__getitem__)
    return best, scores[best]


def _scaled(scores: Floats, labels: Floats) -> tuple[float, float]:
    """Platt's a and b, of scores that were not fitted on: 1 / (1 + exp(-(a x + b))) is how often the label is 1.

    As in Platt (1999), labels are moved a little inwards, by what the count of them leaves open, so that no probability
    is 1 because a log was short.
    """
    right = labels.sum()
    least, most = 1 / (len(labels) - right + 2), (right + 1) / (right + 2)
    labels = least + labels * (most - least)

    def loss(ab: Floats) -> tuple[float, Floats]:
        x = ab[0] * scores + ab[1]
        residuals = (_sigmoid(x) - labels) / len(labels)
        value = np.mean(np.logaddexp(0.0, x) - labels * x) + 5e-7 * float(ab @ ab)
        return float(value), np.array([residuals @ scores, residuals.sum()]) + 1e-6 * ab

    a, b = _minimum(loss, np.array([1.0, 0.0]))
    return max(0.0, float(a)), float(b)


def fit(
    texts: list[str], labels: dict[str, list[float]], strong_share: float | None
) -> tuple[Model, list[list[float]]]:
    """(the model as a file has it, each row's probability of each class by folds that did not see it).

    labels: {class: a number from 0 to 1 for each text}. strong_share: how many of such prompts the class `strong` is
    to be chosen for; None where there are several classes. Usage if there is too little to learn from.
    """
    if len(texts) < LEAST:
        raise Usage(f"{len(texts)} rows with a label; --fit needs at least {LEAST}")
    if len(set(texts)) < FOLDS:
        raise Usage(f"{len(set(texts))} different prompts; --fit needs at least {FOLDS}")
    for name, values in labels.items():
        if len(set(values)) < 2:
            raise Usage(f"nothing to learn of {name}: all rows say the same")
    whole = Matrix(texts)
    model: Model = {"kind": KIND, "version": 1, "classes": list(labels), "weights": [], "structure_weights": [],
                    "bias": [], "scale": []}  # fmt: skip
    shares = []
    for values in labels.values():
        wanted = np.array(values, np.float64)
        penalty, scores = unseen(texts, wanted)
        weights = logistic(whole, wanted, penalty)
        a, b = _scaled(scores, wanted)
        of_buckets = np.zeros(BUCKETS)
        of_buckets[whole.used] = weights[: len(whole.used)]
        model["weights"].append(packed(array("f", of_buckets.tolist())))
        model["structure_weights"].append([round(float(weight), 7) for weight in weights[len(whole.used) : -1]])
        model["bias"].append(round(float(weights[-1]), 7))
        model["scale"].append([round(a, 6), round(b, 6)])
        shares.append(_sigmoid(a * scores + b))
    of_class = np.array(shares)
    if len(labels) > 1:
        of_class = of_class / of_class.sum(0)
    model["threshold"] = 0.5 if strong_share is None else _threshold(of_class[0], strong_share)
    model["idf"] = packed(array("f", whole.idf.tolist()))
    model["structure"] = [[round(float(mean), 6), round(float(scale), 6)]
                          for mean, scale in zip(whole.mean, whole.scale, strict=True)]  # fmt: skip
    return model, of_class.T.tolist()


def _threshold(probabilities: Floats, share: float) -> float:
    """The probability that so large a share of the rows reaches."""
    if share in (0, 1):
        return 1.0 - share  # also for a prompt beyond all of the log
    return round(float(np.quantile(probabilities, 1.0 - share)), 6)
