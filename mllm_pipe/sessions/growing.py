"""A long session's records: kept as their lines, which take a fraction of the memory that the records do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from mllm_pipe.envelope import line_of
from mllm_pipe.sessions import span

Json = dict[str, Any]
OPEN = 256  # of the newest messages: they may still grow, and stay as they are
EVERY = -1  # the tree of a record that belongs to whichever is read


class Frozen:
    """Records as their lines; read as records."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[Json]:
        return map(orjson.loads, self.lines)

    def __len__(self) -> int:
        return len(self.lines)


class Growing:
    """Messages in their order, each by its number, of which an old one may still be changed (`again`), and what stands
    between them. Each hangs from an earlier one or from none; those that hang together are a tree."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._spans: list[bytes] = []  # of each, b"" for none
        self._trees: list[int] = []  # of each: the number of the message that it all hangs from
        self._above: list[int | None] = []
        self._idents: list[str] = []
        self._times: list[str | None] = []
        self._newest: dict[int, int] = {}  # by tree
        self._replies: dict[int, str] = {}  # ids of what was not said just before, by message
        self._open: dict[int, tuple[Json, Json | None]] = {}  # messages as such, with their usage

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, made: Json, above: int | None, usage: Json | None) -> int:
        """Take a message that hangs from another one, or from none, and give its number; usage: of an answer, None if
        it told none."""
        number = len(self._lines)
        reply = ""
        if above is None:
            tree = number
        else:
            tree = self._trees[above]
            if above != self._newest[tree]:
                reply = self._idents[above]
        self._newest[tree] = number
        line = b""
        if made["role"] == "assistant":
            self._open[number] = made, usage
            if reply:
                self._replies[number] = reply
        else:
            if reply:
                made["reply_to"] = reply
            line = line_of(made)[:-1]  # a copy: what orjson gives has room for four times as much
        self._put(line, tree, above, made)
        if number - OPEN in self._open:
            self._freeze(number - OPEN, *self._open.pop(number - OPEN))
        return number

    def beside(self, made: Json, above: int | None = None) -> None:
        """Take a record that is no message; above: one of the tree that it is about, None if it is about none."""
        self._put(line_of(made)[:-1], EVERY if above is None else self._trees[above], None, made)

    def again(self, number: int, usage: Json | None) -> Json:
        """A message that was taken, to be changed; usage: what it tells now, None if nothing."""
        made, told = self._open.get(number) or self._thawed(number)
        self._open[number] = made, usage or told
        return made

    def ids_to(self, number: int | None) -> list[str]:
        """The ids of the messages from the first of a tree to this one."""
        line = []
        while number is not None:
            line.append(self._idents[number])
            number = self._above[number]
        return line[::-1]

    def whole(self, last: int | None, until: int | None) -> tuple[Frozen, int]:
        """(the records of the tree of this message, with spans, how many messages of others are left out)

        until: the number of the first message that is left out with all after it, if there is one.
        """
        for number in sorted(self._open):
            self._freeze(number, *self._open[number])
        here = EVERY if last is None else self._trees[last]
        out: list[bytes] = []
        left_out = 0
        for number, (tree, line, about) in enumerate(zip(self._trees, self._lines, self._spans, strict=True)):
            if until is not None and number >= until and tree != EVERY:
                continue
            if tree in (here, EVERY):
                out.append(line)
                if about:
                    out.append(about)
            elif line.startswith(b'{"v":1,"type":"message"'):
                left_out += 1
        return Frozen(out), left_out

    def _put(self, line: bytes, tree: int, above: int | None, made: Json) -> None:
        self._lines.append(line)
        self._spans.append(b"")
        self._trees.append(tree)
        self._above.append(above)
        self._idents.append(made["id"])
        self._times.append(made.get("at"))

    def _freeze(self, number: int, made: Json, usage: Json | None) -> None:
        """Make an answer its line, and that of its span."""
        if number in self._replies:
            made["reply_to"] = self._replies[number]
        self._times[number] = made.get("at")  # that of an answer's last line
        if usage is not None:
            above = self._above[number]
            made["run_id"] = f"span-{made['id']}"
            asked_at = None if above is None else self._times[above]
            self._spans[number] = line_of(span(made, asked_at, usage))[:-1]
        self._lines[number] = line_of(made)[:-1]

    def _thawed(self, number: int) -> tuple[Json, Json | None]:
        made, about = orjson.loads(self._lines[number]), self._spans[number]
        usage = orjson.loads(about)["usage"] if about else None
        return {name: value for name, value in made.items() if name not in ("reply_to", "run_id")}, usage


def frozen(records: Any) -> list[bytes]:
    """The lines of records; a list of them is emptied, so that both are not kept at once."""
    if isinstance(records, Frozen):
        return records.lines
    records.reverse()
    return [line_of(records.pop())[:-1] for _ in range(len(records))]
