"""What becomes of a dispatch to each of the four agent programs when something goes wrong, through the shell.

A row is a dispatch of its own to a server that does what the row says. By themselves the programs end such runs with
0, 1, 144, 145, 173 or 244, after minutes, or never.
"""

from __future__ import annotations

import os
import shutil
import socket

import orjson
import pytest
from loopback import serve
from programs import KEYS, MODELS, SENT
from test_growing import records
from test_swap import EVERYTHING, PDF, PNG

DIALECTS = {"claude": "anthropic", "codex": "responses", "gemini": "google", "opencode": "chat"}
PROMPT = "-x --help"

# What the server does: the status; of the error record code and billed; the most requests that it gets.
TABLE = {
    "ok": (0, None, None, 1),
    "429x1": (0, None, None, 2),  # busy once, and asked again, by the program or by us
    "length": (5, "length", "yes", 1),
    "refusal": (5, "refusal", "yes", 1),
    "400": (3, "bad_request", "no", 1),
    "401": (77, "auth", "no", 2),
    "403": (77, "permission", "no", 1),
    "404": (3, "bad_model", "no", 2),
    "413": (3, "too_large", "no", 1),
    "429": (75, "rate_limit", "no", 4),
    "500": (75, "server", "no", 4),
    "503": (75, "overloaded", "no", 4),
    "529": (75, "overloaded", "no", 4),
    "gone": (69, "network", "no", 0),
    "cut": (3, "cut", "unknown", 1),
    "reset": (3, "cut", "unknown", 1),
    "empty": (3, "empty", "yes", 2),
    "html": (3, "malformed", "unknown", 1),
    "hang": (124, "timeout", "unknown", 1),
    "stall": (124, "timeout", "unknown", 1),
    "keyless": (77, "auth", "no", 0),
}
# What a program does not tell apart; claude has a cut answer continued, and may be ended too late on a busy machine.
OTHERWISE = {
    ("claude", "length"): (5, "length", "yes", 2),
    ("codex", "refusal"): (5, "filter", "yes", 1),
    ("gemini", "refusal"): (5, "filter", "yes", 1),
    ("opencode", "refusal"): (5, "filter", "yes", 1),
    ("codex", "500"): (75, "overloaded", "no", 4),
    ("codex", "html"): (3, "cut", "unknown", 1),
    ("opencode", "html"): (3, "cut", "unknown", 1),
    ("gemini", "gone"): (69, "network", "unknown", 0),
}


def found(name):
    path = shutil.which(name, path=os.environ.get("MLLM_TEST_PROGRAMS", "") + os.pathsep + os.environ["PATH"])
    if not path:
        pytest.skip(f"{name} is not on PATH, nor in $MLLM_TEST_PROGRAMS")
    return f'PATH="${{PATH%%:*}}:{os.path.dirname(path)}:$PATH"'


SAID = [("user", "See these."), ("assistant", "I see."), ("user", "And?"), ("assistant", "I will not."),
        ("user", "Then this."), ("assistant", '{"n":1}'), ("user", "Go on."), ("user", "Never mind.")]  # fmt: skip


@pytest.mark.parametrize("name", DIALECTS)
def test_a_thread_that_has_everything_arrives_and_goes_on(sh, work, name):
    records(work, *EVERYTHING)
    with serve(DIALECTS[name]) as server:
        url = server.url("ok", "" if name in ("claude", "gemini") else "/v1")
        line = f"dispatch -q --to {name}:{MODELS[name]} --base-url {url} --key-env {KEYS[name]} < t | jq -c .finish?"
        ran = sh(f"{found(name)}; {line}", **{KEYS[name]: "k"})
        sent = SENT[name](server.calls()[0]["body"])
    assert (ran.status, '"stop"' in ran.out, ran.err) == (0, True, "")
    texts = iter([(role, what) for role, kind, what in sent if kind == "text" and role != "system"])
    # Each of them, in this order; opencode puts two texts of a turn into one.
    assert all(any(said == (role, what[-len(said[1]):]) for role, what in texts) for said in SAID), sent
    calls = [what[0] for _, kind, what in sent if kind == "call"]
    assert calls == [what[0] for _, kind, what in sent if kind == "result"] and len(set(calls)) == len(calls) == 6
    images = [what for _, kind, what in sent if kind == "image"] + [PNG for _, kind, what in sent
                                                                   if kind == "result" and PNG in str(what)]  # fmt: skip
    assert sorted(images) == sorted([PNG, PNG] + [PDF["data"]] * (name != "codex"))


@pytest.mark.parametrize("name", DIALECTS)
def test_every_failure_is_told_as_what_it_is(sh, work, name):
    path = found(name)
    with serve(DIALECTS[name]) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for row in TABLE:
            url = server.url(row) if row != "gone" else f"http://127.0.0.1:{unused.getsockname()[1]}"
            url += "" if name in ("claude", "gemini") else "/v1"
            key = KEYS[name] if row != "keyless" else "NO_SUCH_KEY"
            limits = f"--max-retries 1 --max-tokens 999 --timeout {6 if row in ('hang', 'stall') else 60}"
            (work / row).write_text(
                f"dispatch -q --to {name}:{MODELS[name]} --base-url {url} --key-env {key} {limits} --new -- '{PROMPT}' "
                f">{row}.out 2>{row}.err; echo $? >{row}.status"
            )
        line = f'{path}; printf "%s\\n" {" ".join(TABLE)} | xargs -P 2 -n 1 bash'
        assert sh(line, **{KEYS[name]: "sk-canary-key"}) == (0, "", "")
        rows = {}
        for row in TABLE:
            out, err = (work / f"{row}.out").read_bytes(), (work / f"{row}.err").read_text()
            records = [orjson.loads(record) for record in out.splitlines()]
            error = next((record for record in records if record["type"] == "error"), {"code": None, "billed": None})
            most = OTHERWISE.get((name, row), TABLE[row])[3]
            assert len(server.calls(row)) <= most, row
            rows[row] = (int((work / f"{row}.status").read_text()), error["code"], error["billed"], most)
            assert err.count("\n") == (rows[row][0] != 0) and b"canary" not in out + err.encode(), row
            assert [record["content"] for record in records if record.get("role") == "user"] == [PROMPT]
            if row == "cut":
                assert error.get("content") == (None if name == "codex" else "half an ans")  # codex tells no pieces
        (sent,) = server.calls("ok")
        assert SENT[name](sent["body"])[-1] == ["user", "text", PROMPT]
    assert rows == TABLE | {row: values for (who, row), values in OTHERWISE.items() if who == name}
