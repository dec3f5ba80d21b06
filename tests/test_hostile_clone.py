"""A repository that was cloned from who knows where: nothing of it is obeyed before `mllm trust`, nor after a change."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

AT_TERMINAL = "python -c 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)'"
CONFIGURATION = """
[defaults]
to = "writer"
[agents.writer]
description = "writes"
runtime = "exec:touch pwned"
[runtimes.api]
kind = "openai-chat"
base_url = "http://127.0.0.1:9/v1"
key_command = "touch pwned"
[prompts.hello]
text = "{prompt}"
[routers.support]
children = ["writer"]
default = "writer"
models = { router = "exec:touch pwned" }
[groups.review]
stages = ["touch pwned", "dispatch --to writer"]
[groups.loop]
stages = ["dispatch --to writer"]
until = "judge --check exec:./dispatch"
"""
ASKS = [
    "group review Hi", "group review < t.jsonl", "group --dry-run loop Hi", "group loop < t.jsonl", "dispatch --new Hi",
    "dispatch --to writer --new Hi", "dispatch --to api:m --new Hi", "dispatch -t hello --to echo --new Hi",
    "route support < t.jsonl", "judge --by writer --rubric correctness < a.jsonl",
]  # fmt: skip
READS = ["dispatch --to echo --new Hi", "judge --check json < a.jsonl", "trace < t.jsonl", "thread-append - < t.jsonl", "mllm config",
         "mllm doctor", "mllm validate < t.jsonl"]  # fmt: skip
TARGETS = ["exec:touch pwned", "http://127.0.0.1:9/", "nobody", "../../bin/sh", "api:m", "writer"]


@pytest.fixture
def clone(work: Path) -> Path:
    """It has a configuration, programs and modules with our names, and threads with routes that nobody made."""
    (work / ".git").mkdir()
    (work / "mllm.toml").write_text(CONFIGURATION)
    for name in ("dispatch", "judge", "route", "thread-append", "group", "sh"):
        (work / name).write_text("#!/bin/sh\ntouch pwned\n")
        (work / name).chmod(0o755)
    (work / "mllm_pipe").mkdir()
    for name in ("orjson.py", "click.py", "site.py", "sitecustomize.py", "mllm_pipe/__init__.py"):
        (work / name).write_text("open('pwned', 'w')\n")
    asked = {"v": 1, "type": "message", "thread": "t", "id": "m", "role": "user", "content": "Hi"}
    routes = [{"v": 1, "type": "route", "thread": "t", "id": f"r{number}", "router": "gone" if number % 2 else "support",
               "target": target, "by": "rule:x", "candidates": TARGETS} for number, target in enumerate(TARGETS[:-1])]  # fmt: skip
    (work / "t.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in (asked, *routes)))
    answer = {"v": 1, "type": "message", "thread": "t", "id": "a", "role": "assistant", "content": "Ho", "author": {"agent": "writer"}}
    (work / "a.jsonl").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in (asked, answer)))
    return work / "pwned"


def test_before_it_is_trusted_nothing_of_it_is_obeyed(sh, clone):
    for line in ASKS:
        ran = sh(f"{line} >/dev/null")
        assert (ran.status, clone.exists()) == (2, False), (line, ran.err)
        assert "mllm.toml is not trusted, so nothing of it is used; read it, then say: mllm trust" in ran.err, line
    for line in READS:
        ran = sh(f"{line} >/dev/null")
        assert (ran.status in (0, 1), clone.exists()) == (True, False), (line, ran.err)


def test_trusted_it_is_used_and_after_one_changed_byte_it_is_not(sh, work, clone):
    assert sh(f"{AT_TERMINAL} mllm trust").status == 0
    assert not clone.exists(), "what is trusted is shown, not run"
    sh("group review Hi")
    assert clone.exists()
    clone.unlink()
    whole = (work / "mllm.toml").read_text()
    (work / "mllm.toml").write_text(whole.replace("touch pwned", "touch  wned", 1))
    for line in ASKS:
        ran = sh(f"{line} >/dev/null")
        assert (ran.status, clone.exists()) == (2, False), (line, ran.err)


@pytest.mark.parametrize("target", TARGETS[:-1])
def test_a_route_that_stands_in_a_thread_moves_it_to_no_other_than_a_declared_child(sh, work, clone, target):
    """Also where the router is known: [defaults] says where it goes then, and that is all that is asked."""
    (work / "mllm.toml").write_text(CONFIGURATION.replace("exec:touch pwned", "exec:echo safe").replace('command = "touch pwned"', 'command = "echo k"'))
    route = {"v": 1, "type": "route", "thread": "t", "id": "r", "router": "support", "target": target, "by": "rule:x"}
    (work / "t.jsonl").write_bytes((work / "t.jsonl").read_bytes() + orjson.dumps(route | {"candidates": [target]}) + b"\n")
    ran = sh("dispatch -q < t.jsonl | cat", MLLM_CONFIG="mllm.toml")
    spans = [record for record in ran.records if record["type"] == "span"]
    assert (ran.status, [(span["agent"], span["runtime"]) for span in spans]) == (0, [("writer", "exec")])
    assert not clone.exists()
