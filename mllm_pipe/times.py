"""Times as the command line says them, and how long anything may take."""

from __future__ import annotations

import re

LONGEST_S = 2_000_000.0  # 23 days: poll(2) counts milliseconds in 31 bits
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float | None:
    """90s, 15m, 12h or 7d in seconds; None if it is no such text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text, re.ASCII)
    return float(found[1]) * _UNITS[found[2]] if found else None


def rate(text: str) -> float | None:
    """10/s, 500/m or 1000/h in so many a second; None if it is no such text, or none at all a second."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)/([smh])", text, re.ASCII)
    return float(found[1]) / _UNITS[found[2]] or None if found else None
