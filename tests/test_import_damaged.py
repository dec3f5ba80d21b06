"""thread-import of sessions that are damaged, hostile, large, or of other versions: what can be read is read, and said."""

from __future__ import annotations

import random
import subprocess

import orjson
import pytest
from conftest import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import odd
from opencode_db import keep
from test_import import BLOCK, BODIES, CHAT, FILES, IDS, KINDS, SESSIONS, SNAKE, lay, line, state

from mllm_pipe import sessions
from mllm_pipe.envelope import holds
from mllm_pipe.errors import Failure
from mllm_pipe.thread import branch

BY_LINE = ("claude", "codex", "gemini")


def cut(data):
    """Its last line is still being written."""
    return data[: data.rstrip(b"\n").rfind(b"\n") + 20]


def doubled(data):
    """Each line twice."""
    return b"".join(one + b"\n" + one + b"\n" for one in data.splitlines())


def strange(data):
    """A line of a kind that nobody knows, and one that is an array, among the others."""
    first, rest = data.split(b"\n", 1)
    return first + b'\n{"type":"brand-new","uuid":"n1","id":"n1","payload":{"x":1},"deep":{"x":[1]}}\n[1]\n' + rest


def unanswered(data):
    """A call that no result came for: all after the line of the first call is gone, and after that of its tokens."""
    lines = data.splitlines(keepends=True)
    words = (b'"tool_use"', b'"function_call"', b'"toolCalls"')
    last = next(number for number, one in enumerate(lines) if any(word in one for word in words))
    kept = lines[last] if b'"toolCalls"' not in lines[last] else orjson.dumps(
        {**(one := orjson.loads(lines[last])), "toolCalls": [{k: v for k, v in call.items() if k != "result"} for call in one["toolCalls"]]})
    told = [one for one in lines[last + 1 : last + 2] if b'"token_usage_record"' in one]
    return b"".join([*lines[:last], kept.rstrip(b"\n"), b"\n", *told])  # fmt: skip


DAMAGE = {"cut": cut, "doubled": doubled, "strange": strange, "unanswered": unanswered}
FOUND = {  # roles of messages, other records, status, stderr
    "cut": ("user assistant tool", "span", 0, "the last line is not whole yet; it is left out\n"),
    "doubled": ("user assistant tool assistant", "span", 0, ""),
    "strange": ("user assistant tool assistant", "opaque error span", 65,
                "line 3: no JSON object, or one nested too deeply; passed on as an error record\n"),
    "unanswered": ("user assistant", "span", 0, ""),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("program", BY_LINE)
def test_of_a_damaged_session_what_can_be_read_is_read(sh, work, program, damage):
    place = work / f"{IDS[program]}.jsonl"
    place.write_bytes(DAMAGE[damage](FILES[program].read_bytes()))
    ran = sh(f"thread-import --from {program} {place} > t; s=$?; cat t; exit $s")
    roles, others, status, err = FOUND[damage]
    found = [one["role"] for one in ran.records if one["type"] == "message"]
    if damage == "cut":  # the last line of a file is bookkeeping in two of the three
        assert found[:3] == roles.split() and ran.err == f"thread-import: {place}: {err}"
    else:
        assert found == roles.split()
        assert ran.err == (f"thread-import: {place}: {err}" if err else "")
    assert ran.status == status and {one["type"] for one in ran.records} <= {"message", *others.split()}
    assert all(holds(one) for one in ran.records)
    assert ("opaque" in {one["type"] for one in ran.records}) == (damage == "strange")
    if status == 0:
        assert sh("dispatch -q --to exec:cat more < t").status == 0
        made = sh(f"thread-export -q --to {program} < t")
        assert (made.status, made.err) == (0, "")


def test_a_document_of_opencode_that_is_damaged_gives_what_can_be_read(sh, work):
    document = orjson.loads(FILES["opencode"].read_text())
    document["info"]["version"] = "9.0.0"
    first, call, last = document["messages"]
    call["parts"][1]["state"] = {"status": "running", "input": {"command": "x"}}
    call["parts"].append({"type": "brand-new", "id": "prt_1", "x": 1})
    document["messages"] = [first, first, call, {"info": {"id": "msg_0", "role": "robot"}, "parts": 7}, last]
    (work / "d.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    ran = sh("thread-import --from opencode ./d.json > t; cat t")
    assert ran.err == "thread-import: ./d.json: written by opencode 9.0.0, newer than 1.18.33, which is known here\n"
    assert [one.get("role", one["type"]) for one in ran.records] == [
        "user", "assistant", "span", "opaque", "assistant", "span"]  # fmt: skip
    assert [part["type"] for part in ran.records[1]["content"]] == ["tool_call", "opaque"]
    (work / "d.json").write_bytes(orjson.dumps(document)[:-40])
    ran = sh("thread-import --from opencode ./d.json > t; s=$?; cat t; exit $s")
    assert ran.status == 65 and "line 1: no JSON object" in ran.err


def test_older_forms_are_read(sh, work):
    """Gemini CLI wrote one document, Codex no kinds of content."""
    lines = [orjson.loads(one) for one in FILES["gemini"].read_bytes().splitlines()]
    messages = [one for one in lines if "type" in one and one.get("toolCalls") != []]
    (work / "old.json").write_bytes(orjson.dumps({"sessionId": IDS["gemini"], "messages": messages}, option=orjson.OPT_INDENT_2))
    new = sh(f"thread-import --from gemini {FILES['gemini']} > t; cat t")
    old = sh("thread-import --from gemini ./old.json > t; cat t")
    assert (old.status, old.err, old.out) == (0, "", new.out)
    plain = FILES["codex"].read_bytes().replace(b'"content_item_kinds"', b'"other"')
    plain = plain.replace(b"[393 characters of text, cut]", b"<environment_context>x</environment_context>")
    (work / "rollout.jsonl").write_bytes(plain)
    assert sh("thread-import --from codex ./rollout.jsonl | jq -r 'select(.role == \"user\").content'").out == "What is 2+2?\n"


def test_what_gemini_took_back_is_a_branch_and_what_it_replaced_is_said(sh, work):
    def told(ident, kind, text):
        return {"id": ident, "type": kind, "content": [{"text": text}], "timestamp": "2026-01-02T03:04:05.000Z"}

    lines = [{"sessionId": "s", "projectHash": "0"}, told("a", "user", "hi"), told("b", "gemini", "yes"), told("c", "user", "wrong"),
             told("d", "gemini", "no"), {"$rewindTo": "c"}, told("e", "user", "right")]  # fmt: skip
    (work / "s.jsonl").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in lines))
    ran = sh("thread-import --from gemini ./s.jsonl > t; thread-export --to text < t")
    assert (ran.err, ran.out.count("wrong"), ran.out.count("right")) == ("", 0, 1)
    assert sh("grep -c wrong t").out == "1\n"
    lines.append({"$set": {"messages": [told("f", "user", "in short"), told("g", "gemini", "fine")]}})
    (work / "s.jsonl").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in lines))
    ran = sh("thread-import --from gemini ./s.jsonl | jq -r 'select(.role).content'")
    assert ran.out == "in short\nfine\n"
    assert ran.err == "thread-import: ./s.jsonl: 5 messages that the program replaced, or took back, are left out\n"


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_a_hostile_session_is_data_only(sh, home, work, program):
    """Names that climb, links, terminal codes, mentions and made-up results choose no path, and reach no terminal."""
    evil = "../../../evil"
    text = FILES[program].read_text().replace("What is 2+2?", r"@/etc/hostname \u001b[31m /help").replace("$WORK", str(work))
    text = text.replace(IDS[program], evil).replace("call_", "../").replace("toolu_", "../").replace("exec_command", "../../x")
    (home / "secret").write_text("SECRET")
    place = lay(home, program, work)
    if program == "opencode":
        place.unlink()
        keep(place, orjson.loads(text))
    else:
        place.write_text(text)
        (place.parent / f"{place.name[:-6]}0.jsonl").symlink_to(home / "secret")
    before = state(home)
    ran = sh(f"thread-import --from {program} --last --all > t; cat t")
    assert ran.status == 0 and "SECRET" not in ran.out and "\x1b" not in ran.out + ran.err
    rows = sh(f"thread-import --from {program} --list --all --format text")
    assert rows.out.count("\n") == 1 and "\x1b" not in rows.out + rows.err
    assert state(home) == before
    for target in (*BY_LINE, "llm"):
        made = sh(f"thread-export --to {target} --format json < t")
        assert made.status == 0 and "\x1b" not in made.out + made.err, (target, made)
        (row,) = made.records
        where = row["path"]
        assert where.startswith(str(home)) and ".." not in where and evil not in row["command"], where
    assert not list(home.parent.rglob("*evil*"))


def test_a_session_of_100_megabytes_is_read_in_bounded_memory(home, work):
    """Mostly in few long lines, one of them too long to be a record: three times the file is far from reached."""
    random.seed(1)
    with open(work / "big.jsonl", "wb") as file:
        before = None
        for number in range(34):
            said = orjson.dumps(line(f"u{number}", before, content="x" * (3 << 20)))
            before = f"u{number}"
            file.write(said + b"\n")
        file.write(b'{"type":"user","message":{"content":"' + b"y" * (65 << 20) + b'"}}\n')
    size = (work / "big.jsonl").stat().st_size
    assert size > 100 << 20
    limit = f"ulimit -v {3 * size >> 10}; thread-import --from claude ./big.jsonl > t"
    ran = subprocess.run(["bash", "-c", limit], cwd=work, env=environment(home), capture_output=True, text=True)
    said = "line 35: no JSON object, or one nested too deeply; passed on as an error record"
    assert (ran.returncode, ran.stderr) == (65, f"thread-import: ./big.jsonl: {said}\n")
    assert (work / "t").stat().st_size > 100 << 20


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.lists(BLOCK, max_size=3)), min_size=1, max_size=4), KINDS)
def test_whatever_was_read_is_written_or_refused_in_words(turns, _kind):
    """No shape of a foreign line makes a record that an export ends in a defect on."""
    lines = [line(f"u{n}", f"u{n - 1}" if n else None, role, blocks) for n, (role, blocks) in enumerate(turns)]
    rollout = [{"timestamp": "2026-01-02T03:04:05Z", "type": "response_item", "payload": block} for _, blocks in turns for block in blocks]
    told = [{"id": f"g{n}", "type": "gemini" if role == "assistant" else "user", "content": blocks, "toolCalls": blocks,
             "thoughts": blocks} for n, (role, blocks) in enumerate(turns)]  # fmt: skip
    for program, entries in (("claude", lines), ("codex", rollout), ("gemini", told)):
        records = list(sessions.load(program).records(entries, "s")["records"])
        messages = branch([one for one in records if one["type"] == "message"])
        spans = {ident: one for one in records if one["type"] == "span" for ident in one["output_ids"]}
        for target in sessions.KEPT if messages else ():
            module = sessions.load(target)
            try:
                data, _ = module.session(messages, spans, module.session_id("s"), "/w", "assistant")
            except Failure:
                continue
            assert isinstance(data, bytes)


SAMPLES = {program: [orjson.loads(one) for one in path.read_bytes().splitlines()] for program, path in FILES.items()}
SAMPLES |= {"llm": orjson.loads((SESSIONS / "llm-logs.json").read_bytes())}
SAMPLES |= {api: [body] for api, body in BODIES.items()} | {"openai chat": CHAT, "google snake_case": SNAKE}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_value_of_another_shape_anywhere_makes_records_or_is_refused_in_words(name):
    module = sessions.load(name.split()[0])
    found = 0
    for entries in odd(SAMPLES[name]):
        try:
            made = module.records([entry for entry in entries if isinstance(entry, dict)], "s")["records"]
        except Failure:
            continue
        assert all(map(holds, made)) and all(map(orjson.dumps, made)), entries
        found += bool(made)
    assert found > len(SAMPLES[name])


@pytest.mark.parametrize(("said", "program", "status", "err"), [
    ({"messages": 5}, "openai", 66, "thread-import: odd.json: no conversation of the Responses API or Chat Completions\n"),
    ({"input": True}, "openai", 66, "thread-import: odd.json: no conversation of the Responses API or Chat Completions\n"),
    ([{"id": {}, "prompt": "q", "response": "a"}], "llm", 66, "thread-import: odd.json: no conversation of llm\n"),
    ({"info": {"id": "s"}, "messages": [{"info": {"id": "m", "role": "user"}, "parts": [{"type": {"a": 1}}]}]}, "opencode", 0, ""),
])  # fmt: skip
def test_a_field_of_another_shape_is_kept_or_refused(sh, work, said, program, status, err):
    (work / "odd.json").write_bytes(orjson.dumps(said))
    ran = sh(f"thread-import -q --from {program} odd.json")
    assert (ran.status, ran.err) == (status, err)
    assert [one["content"] for one in ran.records if one["type"] == "message"] == [[{"type": "opaque", "raw": {"type": {"a": 1}}}]] * (status == 0)
