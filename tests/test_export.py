"""thread-export: a thread as a session that the program itself goes on with; none that is there is changed."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from test_import import FILES, IDS, lay, write

from mllm_pipe import sessions

FILES_OF = ("claude", "codex", "gemini")  # opencode is in test_export_programs: only it can write its sessions
RESUME = {"claude": "claude --resume", "codex": "codex resume", "gemini": "gemini --resume"}


@pytest.mark.parametrize("program", FILES_OF)
def test_import_export_import_is_byte_stable(sh, home, program):
    first = sh(f"thread-import --from {program} {FILES[program]} > t; cat t").out
    ran = sh(f"thread-export --to {program} --format json < t")
    (made,) = ran.records
    assert (ran.status, made["session"], made["command"]) == (0, IDS[program], f"{RESUME[program]} {IDS[program]}")
    assert Path(made["path"]).is_relative_to(home) and Path(made["path"]).stat().st_mode & 0o777 == 0o600
    again = sh(f"thread-import --from {program} --last > u; cat u")
    assert (again.status, again.err, again.out) == (0, "", first)


def test_what_of_codex_has_no_id_or_no_known_form_is_byte_stable(sh, work):
    """Older versions gave reasoning no id; one and the same may stand there twice."""
    think = {"type": "reasoning", "summary": [], "encrypted_content": "e"}
    ask = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]}
    answer = {"type": "message", "role": "assistant", "content": ["x", 5, {"text": 6}, {"type": "output_text", "text": "a"}]}
    used = ("token_usage_record", {"usage": {"input_tokens": 1}})
    lines = [("session_meta", {"id": IDS["codex"]}), ("turn_context", {"model": "m"}), ("world_state", {})]
    for items in ([ask, think, answer], [ask, think, {"foo": 1}, {"type": 5}, {"type": "web_search_call", "id": "ws_1"}]):
        lines += [*(("response_item", one) for one in items), used]
    stamp = "2026-01-02T03:04:05.000Z"
    write(work / "r.jsonl", [{"timestamp": stamp, "type": kind, "payload": payload} for kind, payload in lines])
    first = sh("thread-import --from codex ./r.jsonl > t; cat t").out
    (made,) = sh("thread-export -q --to codex --format json < t").records
    again = sh(f"thread-import --from codex {made['path']} > u; cat u")
    assert first.count('"encrypted_content"') == 2 and again == (0, first, "")
    assert sh("thread-export -q --to codex --format json < u").records == [made]


def test_a_part_that_only_claims_to_be_of_codex_is_no_defect(sh, work):
    call = {"type": "tool_call", "name": "f", "arguments": {}}
    raws = ["x", None, {}, {"type": 5}, {"type": "message"}, {"type": "custom_tool_call"}]
    parts = [call | {"id": str(number), "raw": raw} for number, raw in enumerate(raws)]
    parts += [{"type": "opaque", "raw": raw} for raw in raws]
    write(work / "m", [{"role": "assistant", "origin": {"api": "codex", "model": "m"}, "content": parts}])
    ran = sh("thread-append - --thread t < m | thread-export -q --to codex >/dev/null; "
             "thread-import --from codex --last | jq -s 'map(select(.role)|.content|length)'")  # fmt: skip
    assert (ran.status, ran.err, orjson.loads(ran.out)) == (0, "", [12, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("program", FILES_OF)
def test_no_session_is_overwritten(sh, home, work, program):
    place = lay(home, program, work)
    before = place.read_bytes()
    line = f"thread-import --from {program} --last --all | thread-export --to {program} --format json"
    (made,) = sh(line).records
    assert place.read_bytes() == before and made["path"] != str(place)
    (again,) = sh(f"thread-import --from {program} {place} | thread-export --to {program} --format json").records
    assert again == made, "the very same session is there already"
    Path(made["path"]).write_bytes(Path(made["path"]).read_bytes() + b"{}\n")
    (third,) = sh(f"thread-import --from {program} {place} | thread-export --to {program} --format json").records
    assert third["path"] not in (made["path"], str(place))
    assert Path(made["path"]).read_bytes().endswith(b"{}\n")


@pytest.mark.parametrize("program", FILES_OF)
def test_an_id_that_is_taken_on_any_day_and_in_any_directory_is_not_given_again(sh, work, program):
    export = f"thread-export -q --to {program} --format json"
    (made,) = sh(f"thread-append --new --thread t Hello > t; {export} < t").records
    (work / "sub").mkdir()
    if program == "codex":
        old = Path(made["path"]).parents[3] / "2020/01/01" / f"rollout-2020-01-01T00-00-00-{made['session']}.jsonl"
        old.parent.mkdir(parents=True)
        made["path"] = str(Path(made["path"]).rename(old))
    name = made["session"]
    ran = sh(f"cd sub; thread-import --from {program} {name} | dispatch -q --to echo Go > u; {export} < u; {export} < u")
    longer, again = ran.records
    assert (longer, ran.err) == (again, "") and longer["session"] != name and longer["path"] != made["path"]
    told = "jq -r 'select(.role).content'"
    assert sh(f"thread-import --from {program} {name} | {told}") == (0, "Hello\n", "")
    assert sh(f"thread-import --from {program} {longer['session']} | {told}") == (0, "Hello\nGo\nHello\nGo\n", "")
    assert sh(f"{export} < t").records == [made], "the very same session is there already"


@pytest.mark.parametrize("program", FILES_OF)
def test_threads_of_one_name_that_are_exported_at_once_are_sessions_of_their_own(sh, home, program):
    one = f"thread-append --new --thread t $i | thread-export -q --to {program} --format json > $i.out"
    ran = sh(f"for i in 1 2 3; do {one} & done; wait; cat ?.out | jq -r .session | sort -u | wc -l")
    assert ran == (0, "3\n", "") and len(list(home.rglob("*.jsonl"))) == 3


def test_stdout_is_the_command_that_goes_on(sh, home, work):
    (work / "a dir").mkdir()
    ran = sh("thread-append --new --thread t hello | thread-export -q --to claude --cwd 'a dir'")
    (path,) = home.rglob("*.jsonl")
    assert (ran.status, ran.out, ran.err) == (0, f"cd '{work}/a dir' && claude --resume {path.stem}\n", "")


def test_a_failed_thread_is_not_exported_and_losses_are_said(sh, home):
    ran = sh("thread-append --new --thread t hi | dispatch -q --to exec:false | thread-export --to codex")
    assert (ran.status, ran.out) == (3, "") and not list(home.rglob("rollout*"))
    assert "thread t: it failed before it came here" in ran.err
    call = '{"type":"tool_call","id":"c","name":"Read","arguments":{}}'
    ran = sh(f"""echo '{{"role":"assistant","content":[{call}]}}' | thread-append - --thread t | thread-export --to codex""")
    assert ran.status == 0 and "result of tool_call c" in ran.err and "synthesised" in ran.err


FAILED = """{"id":"q","role":"user","content":"q"}
{"id":"a","role":"assistant","content":[{"type":"tool_call","id":"c","name":"Read","arguments":{}}]}
{"id":"r","role":"tool","content":[{"type":"tool_result","call_id":"c","content":"denied","is_error":true}]}
"""


def test_that_a_tool_failed_is_told_also_where_the_program_has_no_mark_for_it(sh, work):
    (work / "bare").write_text(FAILED)
    ran = sh("thread-append - --thread t < bare | thread-export --to codex >/dev/null; "
             "thread-import --from codex --last | jq -r 'select(.role==\"tool\").content[0]|.is_error,.content'")  # fmt: skip
    assert ran.out == 'null\n{"error":"denied"}\n'
    assert ran.err.startswith("thread-export: thread t: is_error of tool_result c of message r: downgraded, sent as JSON text\n")


def test_of_another_agents_call_that_failed_the_quotation_says_so(sh, work):
    (work / "bare").write_text(FAILED.replace('"assistant"', '"assistant","author":{"agent":"other"}'))
    ran = sh("thread-append - --thread t < bare | thread-export --to openai -m m | jq -r '.input[0].content[].text'")
    assert "[error of c: denied]" in ran.out.splitlines()


@pytest.mark.parametrize("line", ["thread-export --to claude >/dev/null", "thread-export --to openai -m m >/dev/null",
                                  "dispatch --strict --dry-run --to exec:cat"])  # fmt: skip
def test_of_another_agents_turn_what_no_quotation_tells_is_said_to_be_dropped(sh, work, line):
    (work / "bare").write_text('{"id":"a","role":"assistant","author":{"agent":"other"},"content":'
                               '[{"type":"text","text":"a"},{"type":"weird","foo":3},{"type":"reasoning","text":"b"}]}\n')  # fmt: skip
    ran = sh(f"thread-append - --thread t < bare | {line}")
    assert (ran.status == 3, ran.err.count("weird of message a"), ran.err.count("reasoning")) == ("--strict" in line, 1, 0)


ANSWERS = r"""{"role":"user","content":"q"}
{"id":"a","role":"assistant","content":"one","finish":"length","author":{"model":"m","provider":"p","runtime":"r"}}
{"id":"b","role":"assistant","content":"two","finish":"stop","author":{"model":"m","provider":null,"runtime":"r"}}
{"v":1,"type":"span","thread":"t","id":"s","parent_run_id":"r","op":"dispatch","slot":"response","started_at":"2026-01-02T03:04:05.000Z","duration_ms":1,"status":"ok","usage":{"input_tokens":1},"cost_usd":null,"cost_source":null,"output_ids":["a"]}
"""  # noqa: E501


@pytest.mark.parametrize(("program", "lost"), [
    ("claude", "model, usage, finish of 2 answers"), ("codex", "model, usage, finish of 2 answers"),
    ("gemini", "model, usage, finish of 2 answers"), ("llm", "finish of 1 answer")])  # fmt: skip
def test_what_a_session_has_no_place_for_beside_the_turns_is_told_once(sh, work, program, lost):
    (work / "bare").write_text(ANSWERS)
    ran = sh(f"thread-append - --thread t < bare | thread-export --to {program} >/dev/null")
    told, path = ran.err.splitlines()
    said = f"{lost}: dropped, a session of {program} has no place for that"
    assert (ran.status, told) == (0, f"thread-export: thread t: {said}") and path.startswith("thread-export: thread t: /")


@pytest.mark.parametrize("program", FILES_OF)
def test_of_its_own_answers_a_session_loses_nothing_beside_the_turns(sh, program):
    ran = sh(f"thread-import --from {program} {FILES[program]} | thread-export --to {program} >/dev/null")
    assert (ran.status, len(ran.err.splitlines())) == (0, 1)


def test_what_the_system_was_told_comes_back_from_codex(sh):
    ran = sh("thread-append --new --thread s --system 'Answer in French only.' Hi > t; thread-export -q --to codex < t; "
             "thread-import --from codex --last > u; thread-export -q --to codex < u; "
             "jq -c 'select(.role)|[.role,.content]' u")  # fmt: skip
    first, again, *told = ran.out.splitlines()
    assert (told, first, ran.err) == (['["system","Answer in French only."]', '["user","Hi"]'], again, "")


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_a_thread_of_which_nothing_has_a_place_is_no_session(sh, home, program):
    part = '{"type":"reasoning","text":"hm"}'
    ran = sh(f"""echo '{{"role":"assistant","content":[{part}]}}' | thread-append - --thread t | thread-export -q --to {program}""")
    said = f"thread t: nothing of it has a place in a session of {program}, and none is made"
    assert ran == (66, "", f"thread-export: {said}\n") and not list(home.rglob("*.jsonl"))


@pytest.mark.parametrize(("line", "status", "err"), [
    ("thread-export --to codex", 2, "no thread to export; pipe one in, or: thread-export --to claude < FILE"),
    (": | thread-export --to codex", 2, "stdin is empty: did the command before fail?"),
])  # fmt: skip
def test_nothing_to_export_is_said(sh, line, status, err):
    assert sh(line) == (status, "", f"thread-export: {err}\n")


HOSTILE = r"""{"role":"user","content":"<script>x</script> \u001b[31m"}
{"role":"assistant","author":{"agent":"a*b"},"content":[{"type":"text","text":"See."},{"type":"tool_call","id":"c","name":"Read","arguments":{"f":"````"}}]}
{"role":"tool","content":[{"type":"tool_result","call_id":"c","content":"```\n# no heading\n```"}]}
"""  # fmt: skip
PAGES = {
    "text": r"""t

== user
<script>x</script> \u001b[31m

== a*b
See.
  [calls Read] {
  [calls Read]   "f": "````"
  [calls Read] }

== tool
  [result] ```
  [result] # no heading
  [result] ```
""",
    "markdown": r"""# t

## user

> <script>x</script> \u001b[31m

## a\*b

> See.

*calls Read*

`````
{
  "f": "````"
}
`````

## tool

*result*

````
```
# no heading
```
````
""",
}


@pytest.mark.parametrize("form", PAGES)
def test_a_page_for_people_is_safe_to_show(sh, work, form):
    (work / "bare").write_text(HOSTILE)
    ran = sh(f"thread-append - --thread t < bare | thread-export --to {form}")
    assert (ran.status, ran.out, ran.err) == (0, PAGES[form], "")


def test_in_a_page_of_text_no_text_speaks_for_another(sh, work):
    (work / "bare").write_text(
        r"""{"role":"user","content":"Hi.\n== assistant\nI agree.\n  [calls Read] {}\n == no head"}
{"role":"assistant","content":[{"type":"tool_call","id":"c","name":"f\n== user","arguments":{}}]}
""")  # fmt: skip
    ran = sh(r"thread-append - --thread $'t\n== user\nYes.' < bare | thread-export --to text")
    assert ran == (0, r"""t == user Yes.

== user
Hi.
 == assistant
I agree.
   [calls Read] {}
 == no head

== assistant
  [calls f == user] {}
""", "")  # fmt: skip


def test_in_a_page_of_markdown_what_a_text_begins_ends_with_it(sh, work):
    (work / "bare").write_text(
        r"""{"role":"user","content":"Hi.\n\n## assistant\n\nassistant\n---\n> I agree.\n```\nno end"}
{"role":"assistant","content":[{"type":"text","text":"Yes.\n"},{"type":"text","text":"1. one"}]}
""")  # fmt: skip
    ran = sh("thread-append - --thread t < bare | thread-export --to markdown")
    assert ran == (0, """# t

## user

> Hi.
>
> ## assistant
>
> assistant
> ---
> > I agree.
> ```
> no end

## assistant

> Yes.

> 1. one
""", "")  # fmt: skip


def test_a_page_shows_of_each_part_what_it_says_and_twice_nothing(sh, work):
    (work / "bare").write_text(
        r"""{"role":"assistant","content":[{"type":"text","text":"{\"a\":1}"},{"type":"data","value":{"a":1}}]}
{"role":"assistant","content":[{"type":"data","value":[1]},{"type":"weird","foo":3},{"type":"opaque","raw":{"b":2}}]}
{"role":"assistant","content":[{"type":"tool_call","id":"c","name":"f","arguments":{},"arguments_raw":"{a"},{"type":"empty"}]}
""")  # fmt: skip
    ran = sh("thread-append - --thread t < bare | thread-export --to text")
    assert ran == (0, """t

== assistant
{"a":1}

== assistant
  [data] [
  [data]   1
  [data] ]
  [weird] {
  [weird]   "foo": 3
  [weird] }
  [opaque] {
  [opaque]   "b": 2
  [opaque] }

== assistant
  [calls f] {a
  [empty] 
""", "")  # fmt: skip


def test_a_page_of_html_is_escaped(sh, work):
    (work / "bare").write_text(HOSTILE)
    ran = sh("thread-append - --thread t < bare | thread-export --to html")
    assert (ran.status, ran.err) == (0, "")
    assert "<script>" not in ran.out and "<pre>&lt;script&gt;x&lt;/script&gt; \\u001b[31m</pre>" in ran.out
    assert "<details><summary>result</summary><pre>```\n# no heading\n```</pre></details>" in ran.out
