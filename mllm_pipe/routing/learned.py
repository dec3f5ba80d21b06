"""A learned router, as it decides: logistic regression over mllm_pipe.routing.features, read from what --fit wrote.

Nothing but the standard library: it loads in some milliseconds. The file is JSON:

    {"kind": "mllm-pipe router", "version": 1, "classes": ["strong"] or the targets, "threshold": from which
     probability the strong one is chosen, "idf": numbers, "weights": [numbers, ...] by class, "structure": [[mean,
     scale], ...], "structure_weights": [[...], ...] by class, "bias": [...], "scale": [[a, b], ...] by class: the
     probability is 1 / (1 + exp(-(a x + b))), "fitted": what it was fitted on, for people}

    numbers: float32, little-endian, one for each bucket; zlib, base64
"""

from __future__ import annotations

import math
import os
import sys
from array import array
from base64 import b64decode, b64encode
from typing import Any
from zlib import compress, decompress, error

import orjson

from mllm_pipe.errors import Missing, Usage
from mllm_pipe.files import whole
from mllm_pipe.routing.features import BUCKETS, STRUCTURE, structure_of, words_of

KIND = "mllm-pipe router"
STRUCTURE_SHARE = 0.15  # how much a number of the structure counts beside the words of a text, which have length 1

Model = dict[str, Any]


class Learned:
    """A learned router as a rule: of which file, and from which probability it is sure enough."""

    def __init__(self, model: Model, above: float, path: str) -> None:
        self.model, self.above, self.name = model, above, os.path.basename(path)

    def chosen(self, text: str, target: str | None, children: list[str]) -> tuple[str | None, float, str]:
        """(the target or None, how probable it is, why). target: of the rule, which one of outcomes leads to."""
        shares = probabilities(self.model, text)
        best = max(range(len(shares)), key=shares.__getitem__)
        share, sure = round(shares[best], 4), shares[best] >= self.above
        name = target or self.model["classes"][best]
        said = f"{self.model['classes'][best]} at {share:.2f}"
        if not sure:
            return None, share, f"{said}, below {self.above:.2f} ({self.name})"
        if name not in children:
            return None, share, f"{said}, no child of the router ({self.name})"
        return name, share, f"{said}, from {self.above:.2f} on ({self.name})"


def load(path: str, above: float | None = None) -> Learned:
    """The learned router in a file. Usage if it cannot be read, or is none."""
    try:
        model = orjson.loads(whole(path))
    except Missing as fault:
        raise Usage(f"{fault}; route --fit LOG -o FILE makes one") from None
    except orjson.JSONDecodeError as fault:
        raise Usage(f"{path}: no JSON: {fault.msg}") from None
    if not isinstance(model, dict) or model.get("kind") != KIND or model.get("version") != 1:
        raise Usage(f"{path}: no learned router of this version; route --fit LOG -o FILE makes one")
    try:
        sizes = {len(model[name]) for name in ("classes", "weights", "structure_weights", "bias", "scale")}
        names, threshold = [name for name in model["classes"] if type(name) is str], float(model["threshold"])
        if names != model["classes"] or not names or len(set(names)) < len(names) or not 0 <= threshold <= 1:
            return _refuse(path)
        if len(sizes) != 1 or len(model["structure"]) != len(STRUCTURE):
            return _refuse(path)
        model |= {"idf": numbers(model["idf"]), "weights": [numbers(one) for one in model["weights"]]}
        if not all(map(math.isfinite, probabilities(model, "x"))):
            return _refuse(path)
        return Learned(model, threshold if above is None else above, path)
    except (KeyError, TypeError, ValueError, ArithmeticError, error):
        return _refuse(path)


def _refuse(path: str) -> Learned:
    raise Usage(f"{path}: no whole learned router; route --fit LOG -o FILE makes one anew")


def is_binary(model: Model) -> bool:
    """True if it tells a strong agent's share from a weak one's, False if it tells targets apart."""
    return bool(model["classes"] == ["strong"])


def probabilities(model: Model, text: str) -> list[float]:
    """The calibrated probability of each class; of several they add up to 1."""
    idf = model["idf"]
    words = [(bucket, count * idf[bucket]) for bucket, count in words_of(text).items()]
    length = math.sqrt(sum([value * value for _, value in words])) or 1.0
    structure = [STRUCTURE_SHARE * (value - mean) / scale
                 for value, (mean, scale) in zip(structure_of(text), model["structure"], strict=True)]  # fmt: skip
    shares = []
    for weights, of_structure, bias, (a, b) in zip(
        model["weights"], model["structure_weights"], model["bias"], model["scale"], strict=True
    ):
        x = bias + sum([weights[bucket] * value for bucket, value in words]) / length
        x += sum([weight * value for weight, value in zip(of_structure, structure, strict=True)])
        x = max(min(a * x + b, 500.0), -500.0)  # in this order, what is no number stays none, and is never sure
        shares.append(1.0 / (1.0 + math.exp(-x)))
    total = sum(shares) if len(shares) > 1 else 1.0
    return [share / total for share in shares]


def numbers(text: str) -> array[float]:
    """Numbers of a file. ValueError, or what decoding raises, if they are none."""
    found = array("f", decompress(b64decode(text)))
    if sys.byteorder == "big":
        found.byteswap()
    if len(found) != BUCKETS:
        raise ValueError(len(found))
    return found


def packed(numbers: array[float]) -> str:
    """Numbers as a file has them."""
    found = array("f", numbers)
    if sys.byteorder == "big":
        found.byteswap()
    return b64encode(compress(found.tobytes(), 9)).decode()
