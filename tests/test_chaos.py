"""What a server must not do, and what then happens: by the real command, fault by fault, in all four dialects.

Each row says the exit status, the code of the error record, whether it may be billed, and how many requests the server
counted; `ok` is an answer. A second host hears nothing, nothing outlasts its deadline, and the key is seen nowhere.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import orjson
import pytest
from conftest import environment
from loopback.chaos import ANSWER, DIALECTS, KEY, SECRET, WIRE, Chaos

pytestmark = pytest.mark.xdist_group("chaos")  # all faults are played once, and looked at by each test

TAILS = {"anthropic": "", "openai": "/v1", "openai-chat": "/v1", "google": ""}
FIRST_TOKEN_S, TIMEOUT_S = 2.0, 3.0  # of what waits for it; all others have time enough, however busy the machine is

CUT, LOST = "3 cut unknown 1", "69 network unknown 1"
PROMISES = {
    "reset-at-once": LOST, "close-at-once": LOST, "half-a-status-line": LOST, "no-http": LOST,
    "huge-header": LOST, "20000-headers": LOST,
    "silence": "124 timeout unknown 1", "head-byte-by-byte": "124 timeout unknown 1",
    "head-then-silence": "124 timeout unknown 1", "head-then-pings": "124 timeout unknown 1",
    "stall-mid-body": "124 timeout unknown 1", "byte-by-byte": "124 timeout unknown 1", "504": "124 timeout unknown 1",
    "head-then-close": CUT, "head-then-reset": CUT, "empty-body": CUT, "204": CUT, "short-length": CUT, "bad-chunk": CUT,
    "chunks-cut": CUT, "chunk-half-sent": CUT, "half-gzip": CUT,
    "cut": CUT, "half-an-event": CUT, "reset-mid-body": CUT, "no-finish": CUT, "other-shape openai": CUT,
    "bad-gzip": "3 malformed unknown 1", "gzip-bomb": "3 malformed unknown 1", "gzip-bomb-of-lines": "3 malformed unknown 1",
    "gzip-bomb-of-events": "124 timeout unknown 1",
    "html-200": "3 malformed unknown 1", "html-200-as-json": "3 malformed unknown 1",
    "broken-event": "3 malformed unknown 1", "other-shape": "3 malformed unknown 1",
    "redirect-302": "3 bad_request no 1", "redirect-307": "3 bad_request no 1", "redirect-308": "3 bad_request no 1",
    "400": "3 bad_request no 1", "404": "3 bad_model no 1", "404-of-a-gateway": "3 bad_model no 1",
    "402": "77 billing no 1", "403": "77 permission no 1", "401-echo": "77 auth no 1",
    "html-502": "75 server no 2", "500": "75 server no 2", "503": "75 overloaded no 2", "529": "75 overloaded no 2",
    "429": "75 rate_limit no 2", "error-under-200": "75 server no 2",
    "error-mid-stream": "75 overloaded unknown 1", "error-mid-stream google": "75 server unknown 1",
    "retry-after-1": "0 ok 2", "retry-after-minus": "0 ok 2", "retry-after-nan": "0 ok 2", "retry-after-inf": "0 ok 2",
    "retry-after-words": "0 ok 2", "retry-after-past": "0 ok 2", "flapping": "0 ok 2",
    "retry-after-999999": "75 rate_limit no 1", "retry-after-next-year": "75 rate_limit no 1",
    "says-nothing": "3 empty yes 1",
    "content-policy": "5 filter yes 1", "content-policy anthropic": "5 refusal yes 1",
    "too-long": "3 too_large no 1", "policy-400": "5 filter no 1",
    "early-hints": "0 ok 1", "usage-is-odd": "0 ok 1", "in-pieces": "0 ok 1",
}  # fmt: skip
WAITING = ("silence", "head-byte-by-byte", "head-then-silence", "head-then-pings", "stall-mid-body", "byte-by-byte",
           "gzip-bomb-of-events")  # fmt: skip
CASES = [(fault, dialect) for fault, dialect in zip(WIRE, itertools.cycle(DIALECTS), strict=False)]
CASES += [(fault, dialect) for fault in ANSWER for dialect in DIALECTS]


class Case(NamedTuple):
    """One run of dispatch."""

    row: str
    span: dict[str, Any]
    written: str
    peak_mib: float
    waited_s: float  # for a processor


class Whole(NamedTuple):
    """All of them."""

    cases: dict[tuple[str, str], Case]
    elsewhere: bytes
    files: bytes


# By a small process of its own: the kernel counts the memory of who starts a program as the program's, too. Beside its
# peak, how long it stood in the queue for a processor, and how late a sleep was over meanwhile: a halted machine has no queue.
USED_BY = """import os, subprocess, sys, time
child, late, queued = subprocess.Popen(sys.argv[2:]).pid, 0.0, 0
while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
    asleep = time.monotonic()
    time.sleep(0.02)
    late += time.monotonic() - asleep - 0.02
if os.path.exists(f"/proc/{child}/schedstat"):
    with open(f"/proc/{child}/schedstat") as file:
        queued = int(file.read().split()[1])
_, status, used = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(f"{used.ru_maxrss / 1024} {late + queued / 1e9}")
os._exit(os.waitstatus_to_exitcode(status))"""


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Whole:
    home = tmp_path_factory.mktemp("home")

    def run(server: Chaos, fault: str, dialect: str) -> Case:
        limits = [str(FIRST_TOKEN_S), str(TIMEOUT_S)] if fault in WAITING else ["600", "600"]
        argv = ["dispatch", "--to", f"{dialect}/m", "--base-url", server.url(fault, dialect, TAILS[dialect]),
                "--key-env", "CANARY", "--max-retries", "1", "--first-token", limits[0], "--timeout", limits[1],
                "--retry-after-cap", "5", "--new", SECRET, "--format", "ndjson"]  # fmt: skip
        out, err = ((home / f"{fault}-{dialect}.{name}").open("w+b") for name in ("out", "err"))
        with out, err:
            line = [sys.executable, "-Ic", USED_BY, home / f"{out.name}.used", *argv]
            child = subprocess.run(line, env=environment(home, CANARY=KEY), stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False)
            records = [orjson.loads(line) for line in (home / out.name).read_bytes().split(b"\n") if line]
        span = next(record for record in records if record["type"] == "span")
        error = next((record for record in records if record["type"] == "error"), None)
        whole = [record for record in records if record.get("finish") in ("stop", "tool")]
        said = f"{error['code']} {error['billed']}" if error else "ok" if whole else "nothing"
        said = f"{child.returncode} {said} {server.came(fault, dialect)}"
        return Case(said, span, out.name, *map(float, (home / f"{out.name}.used").read_text().split()))

    with Chaos() as server, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda case: (case, run(server, *case)), CASES)
        cases = dict(found)
    files = b"".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())
    return Whole(cases, server.elsewhere, files)


def test_there_are_faults_enough():
    assert len(WIRE) + len(ANSWER) >= 30 and {*WIRE, *ANSWER} == {name.partition(" ")[0] for name in PROMISES}


@pytest.mark.parametrize(("fault", "dialect"), CASES)
def test_each_fault_is_what_it_is_and_is_paid_for_once(played, fault, dialect):
    assert played.cases[fault, dialect].row == PROMISES.get(f"{fault} {dialect}", PROMISES[fault])


def test_nothing_outlasts_its_deadline(played):
    """By more than a second, not counting what it waited for a processor."""
    late = {case: it.span["duration_ms"] for case, it in played.cases.items()
            if case[0] in WAITING and it.span["duration_ms"] > (TIMEOUT_S + 1 + it.waited_s) * 1000}  # fmt: skip
    assert late == {}


def test_nothing_is_held_beyond_reason(played):
    most = max(played.cases, key=lambda case: played.cases[case].peak_mib)
    assert played.cases[most].peak_mib < 200, most


def test_a_second_host_hears_nothing(played):
    assert played.elsewhere == b""


def test_no_key_is_in_any_stream_record_or_file(played):
    assert SECRET.encode() in played.files and KEY.encode() not in played.files


@pytest.mark.parametrize("silence", ["silence", "head-then-silence", "head-then-pings"])
def test_silence_ends_at_the_limit_and_the_fallback_answers(sh, batch, silence):
    """Forty at once. How soon after the limit, says tests/bench/silence.py: that takes a machine with nothing else to do."""
    batch(40)
    with Chaos() as server:
        url = server.url(silence, "openai-chat", "/v1")
        ran = sh(f"dispatch -j 40 --to vllm/m --base-url {url} --first-token 3 --fallback echo < in > out; cat out")
        assert (ran.status, ran.err, server.came(silence, "openai-chat", 40), server.asked.total()) == (0, "", 40, 40)
    spans = [record for record in ran.records if record["type"] == "span"]
    assert {(span["runtime"], span["attempts"][0]["code"]) for span in spans} == {("echo", "timeout")}
    assert max(span["attempts"][0]["duration_ms"] for span in spans) < 300_000, "not at --timeout, which is 600 s"
