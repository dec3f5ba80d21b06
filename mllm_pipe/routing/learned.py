"""A learned router."""

from __future__ import annotations

from typing import Any


def load(path: str, above: float | None, target: str | None) -> Any:
    raise NotImplementedError
