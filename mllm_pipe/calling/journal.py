"""The journal: before a call one line, after it one more with what it made, so that a paid answer is never lost.

$XDG_STATE_HOME/mllm-pipe/journal.jsonl, mode 0600. MLLM_JOURNAL=off keeps none, spans keeps no text, full is default.

    {"v": 1, "type": "intent", "id": run_id, "key": ..., "at": ..., "parent_run_id", "thread", "op", "runtime", "model",
     "process"}
    {"v": 1, "type": "outcome", "id": run_id, "key": ..., "at": ..., "status", "records": [...]}

Each try of a call has an intent, with the same id, and all of them one outcome: its status is ok, error (surely not
paid for), unknown, or taken (from an earlier run, nothing was sent). An intent says the `process` that asks
(mllm_pipe.calling.living), and may say the `worst` that the call can cost (mllm_pipe.calling.budget). Where no record
of an outcome is a message, `result` is what was answered. `cut` has what had come of tries that failed before another
was made: it may have to be paid for, and stands nowhere else.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import orjson

from mllm_pipe import places
from mllm_pipe.calling import living
from mllm_pipe.envelope import Record, line_of, timestamp
from mllm_pipe.errors import Missing, Usage, WriteFailed
from mllm_pipe.lines import digest
from mllm_pipe.signals import held
from mllm_pipe.storage import Appender
from mllm_pipe.waiting import Turn

_OPTIONS_OF_TARGET = ("runtime", "kind", "model", "argv", "path", "base_url", "max_tokens")
# Only where they are set: made elsewhere, or allowed more, it is another answer.
_WHERE_SET = ("cwd", "allow", "options", "protocol")
_PLACES = {"anthropic": "ANTHROPIC_BASE_URL", "claude": "ANTHROPIC_BASE_URL", "openai": "OPENAI_BASE_URL",
           "openai-chat": "OPENAI_BASE_URL", "codex": "OPENAI_BASE_URL", "google": "GOOGLE_GEMINI_BASE_URL",
           "gemini": "GOOGLE_GEMINI_BASE_URL"}  # fmt: skip


# How each line begins: for those who look through many without parsing the answers in them.
HEAD = re.compile(rb'\{"v":1,"type":"(intent|outcome)","id":"([^"\\]+)","key":"([^"\\]+)","at":"([^"\\]+)"'
                  rb'(?:,"status":"([a-z]+)")?')  # fmt: skip


def path() -> str:
    """Where the journal lies."""
    return os.path.join(places.state(), "journal.jsonl")


def opened() -> int:
    """A descriptor of the journal, for reading. Missing if there is none yet; WriteFailed if it cannot be read."""
    try:
        descriptor = os.open(path(), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise WriteFailed(f"{path()} cannot be read: it is no regular file")
        return descriptor
    except FileNotFoundError:
        raise Missing(f"there is no journal yet ({path()}); dispatch and judge write it") from None
    except OSError as error:
        raise WriteFailed(f"{path()} cannot be read: {error.strerror}") from None


def mode() -> str:
    """off, spans or full, by $MLLM_JOURNAL. Usage if it is none of them."""
    value = os.environ.get("MLLM_JOURNAL") or "full"
    if value not in ("off", "spans", "full"):
        raise Usage(f"MLLM_JOURNAL is {value!r}; it takes off, spans or full")
    return value


def key_of(target: dict[str, Any], request: dict[str, Any], run: str) -> str:
    """The key by which equal requests are known: a digest of target, model, options, system and view; no ids, no times.

    The second equal request of a run, and each further one, has its number after it: it wants an answer of its own.
    """
    place = os.environ.get(_PLACES.get(target["kind"], ""), "")
    who = {name: target.get(name) for name in _OPTIONS_OF_TARGET}
    who |= {name: target[name] for name in _WHERE_SET if target.get(name)}
    asked = {
        "target": who | ({"base_url": place} if place and not who["base_url"] else {}),
        "request": {name: value for name, value in request.items() if name != "turns"},
        "turns": [{"role": turn["role"], "parts": turn["parts"]} for turn in request["turns"]],
    }
    key = digest(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
    with _counting:
        number = _asked[run, key] = _asked.get((run, key), -1) + 1
    return f"{key}#{number}" if number else key


_asked: dict[tuple[str, str], int] = {}  # how often this process has asked
_counting = Lock()


def intend(run_id: str, key: str, about: Record, admit: Callable[[Appender], bool] | None = None) -> bool:
    """Write that a call is about to be sent. WriteFailed: then it must not be sent.

    admit: asked under the lock of the journal, before anything is written; False if it says no.
    """
    if _unwritten:  # an outcome needs more room than an intent: what is asked now may be lost as that one was
        raise WriteFailed(_unwritten[0])
    by = {"process": living.ours()} if mode() != "off" else {}
    return _write({"v": 1, "type": "intent", "id": run_id, "key": key, "at": timestamp()} | about | by, admit)


def conclude(
    run_id: str,
    key: str,
    status: str,
    records: list[Record],
    result: dict[str, Any] | None = None,
    cut: Sequence[dict[str, Any]] = (),
) -> None:
    """Write how it ended, the records that it made, what was answered where these do not say it, and what had come of
    earlier tries that were cut off.

    WriteFailed if that cannot be.
    """
    kept: Record = {}
    if mode() == "full":
        kept = ({"result": result} if result else {}) | ({"cut": cut} if cut else {})
    if mode() == "spans":
        records = [record for record in records if record["type"] == "span"]
    outcome = {"v": 1, "type": "outcome", "id": run_id, "key": key, "at": timestamp()}
    try:
        _write(outcome | {"status": status, "records": records} | kept)
    except WriteFailed as failure:
        _unwritten.append(str(failure))
        raise


class _Line:
    """A line that waits to be written, and how that went."""

    __slots__ = ("data", "done", "failure")

    def __init__(self, data: bytes) -> None:
        self.data, self.done = data, False
        self.failure: WriteFailed | Usage | None = None


def _write(entry: Record, admit: Callable[[Appender], bool] | None = None) -> bool:
    """The lines of threads that come at the same time go out in one write: whose turn it is takes all that wait."""
    if mode() == "off":
        return True
    line = _Line(line_of(entry))
    if not admit:
        _waiting.append(line)
    with held, _writing:  # a signal would break it off for all whose lines are in it
        if admit:
            return _written([line], admit)
        if not line.done:
            lines = _waiting[:]
            del _waiting[: len(lines)]
            _written(lines)
    if line.failure:
        raise line.failure
    return True


def _written(lines: list[_Line], admit: Callable[[Appender], bool] | None = None) -> bool:
    """Write them all, or none, and say how it went to each; False if `admit` says no."""
    failure: WriteFailed | Usage | None = WriteFailed("the journal cannot be written: it was broken off")
    try:
        with _appender() as appender:
            if admit and not admit(appender):
                return False
            appender.append(b"".join([line.data for line in lines]))
        failure = None
        return True
    except WriteFailed as failed:
        failure = WriteFailed(f"the journal cannot be written: {failed}; MLLM_JOURNAL=off goes without")
        raise failure from None
    except Usage as failed:
        failure = failed
        raise
    finally:
        for line in lines:
            line.done, line.failure = True, failure


_waiting: list[_Line] = []  # who adds to it waits for `_writing`; who holds that takes from it
_open: list[Appender] = []  # for the whole process
_unwritten: list[str] = []  # why outcomes of this process are not in the journal
_writing = Turn()


def _appender() -> Appender:
    if not _open:
        _open.append(Appender(path(), make_folder=True))
    return _open[0]
