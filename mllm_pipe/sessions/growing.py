"""Records of a long session: kept as their lines, which take a fraction of the memory that the records do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from mllm_pipe.envelope import line_of

Json = dict[str, Any]
OPEN = 256  # of the newest records: they may still grow, and stay as they are


class Frozen:
    """Records as their lines; read as records."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[Json]:
        return map(orjson.loads, self.lines)

    def __len__(self) -> int:
        return len(self.lines)


class Growing:
    """Records in their order, of which an old one may still be changed (`again`)."""

    def __init__(self) -> None:
        self._kept: list[Json | bytes] = []
        self._about: list[tuple[str, str]] = []  # id and time of each

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, made: Json) -> None:
        """Take one more."""
        self._kept.append(made)
        self._about.append((made["id"], ""))
        old = len(self._kept) - OPEN
        if old > 0:
            self._freeze(old - 1)

    def again(self, index: int) -> Json:
        """A record that was taken, to be changed."""
        one = self._kept[index]
        if isinstance(one, bytes):
            one = self._kept[index] = orjson.loads(one)
        return one

    def lines(self) -> Iterator[tuple[bytes, str, str]]:
        """(line, id, time or "") of each; each is given away, and kept no longer."""
        for index in range(len(self._kept)):
            self._freeze(index)
            line = self._kept[index]
            assert isinstance(line, bytes)
            self._kept[index] = b""
            yield line, *self._about[index]

    def _freeze(self, index: int) -> None:
        one = self._kept[index]
        if not isinstance(one, bytes):
            self._about[index] = (self._about[index][0], one.get("at", ""))
            self._kept[index] = line_of(one)[:-1]  # a copy: what orjson gives has room for four times as much


def frozen(records: Any) -> list[bytes]:
    """The lines of records; a list of them is emptied, so that both are not kept at once."""
    if isinstance(records, Frozen):
        return records.lines
    records.reverse()
    return [line_of(records.pop())[:-1] for _ in range(len(records))]
