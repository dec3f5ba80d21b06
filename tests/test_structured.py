"""Structured output, tools and other wishes, on the offline runtimes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from test_dispatch import calls, thread

from mllm_pipe import structured
from mllm_pipe.errors import Usage

CALL = {"role": "assistant", "finish": "tool", "content": [
    {"type": "text", "text": "Let me see."},
    {"type": "tool_call", "id": "c1", "name": "add", "arguments": {"a": 2, "b": 3}},
    {"type": "tool_call", "id": "c2", "name": "add", "arguments": {"a": 1, "b": 1}}]}  # fmt: skip


def tape(work: Path, *answers: dict) -> None:
    (work / "tape").write_bytes(b"".join(orjson.dumps(answer) + b"\n" for answer in answers))


def text(content: str) -> dict:
    return {"role": "assistant", "content": content}


# -- structured output


def test_an_answer_that_holds_to_the_schema_has_its_value(sh):
    ran = sh("dispatch --to echo --schema 'name, age int' --new who | cat")
    assert ran.status == 0
    assert ran.records[2]["content"] == [
        {"type": "text", "text": '{"name":"echo","age":1}'}, {"type": "data", "value": {"name": "echo", "age": 1}}]  # fmt: skip
    assert sh("dispatch --to echo --schema 'name, age int' --new who --text").out == '{"name":"echo","age":1}\n'


def test_a_schema_that_allows_everything_still_asks_for_json(sh):
    line = "dispatch -q --schema '{}' --new who --to "
    assert sh(f"{line} 'exec:echo 5' | jq -c '.content | arrays | last'") == (0, '{"type":"data","value":5}\n', "")
    ran = sh(f"{line} 'exec:echo not json' --text")
    assert (ran.status, ran.out) == (5, "") and "twice it did not hold to the schema: it is no JSON" in ran.err


def test_a_mismatch_is_asked_once_more_and_then_status_5(sh, work, home):
    tape(work, text('{"n":"x"}'), text('```json\n{"n":1}\n```'), text("nothing"), text("still nothing"))
    mended = sh("dispatch --to replay:tape --schema 'n int' --new q | cat")
    assert mended.kinds() == "begin user span assistant span ok end"
    assert mended.records[3]["content"][1] == {"type": "data", "value": {"n": 1}}
    tape(work, text("nothing"), text("still nothing"))
    ran = sh("dispatch --to replay:tape --schema 'n int' --new q | cat; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.kinds()) == (5, "begin user span span error failed end")
    assert ran.err.endswith("replay: twice it did not hold to the schema: it is no JSON (unexpected character, "
                            "expected a JSON value)\n") or "twice it did not hold to the schema: it is no JSON" in ran.err  # fmt: skip
    assert ran.records[4]["content"] == "still nothing", "what was paid for is not lost"
    assert calls(home) == 4


def test_an_answer_that_says_two_things_by_one_name_holds_to_no_schema(sh, work):
    tape(work, text('{"n":1,"n":2}'), text('{"n":1,"n":2}'))
    ran = sh("dispatch -q --to replay:tape --schema 'n int' --new --text q")
    assert (ran.status, ran.out) == (5, "")
    assert ran.err.endswith(" replay: twice it did not hold to the schema: 'n' comes twice in one object\n")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_answer_cannot_keep_its_schema_busy_nor_end_the_command_by_its_depth(sh, work, home, jobs):
    (work / "pattern.json").write_text('{"type":"string","pattern":"^(a+)+$"}')
    tape(work, text(f'"{"a" * 40}!"'))
    line = f"dispatch -q -j {jobs} --to replay:tape"
    ran = sh(f"thread-append --new --thread t q | {line} --timeout 2 --schema ./pattern.json | cat; exit ${{PIPESTATUS[1]}}")
    said = "to hold the answer to its schema took longer than 2 s; --timeout sets the limit"
    assert (ran.status, ran.kinds()) == (124, "begin user span error failed end")
    assert ran.err == f"dispatch: thread t: replay: {said}\n"
    assert [ran.records[3][name] for name in ("message", "billed", "content")] == [said, "yes", f'"{"a" * 40}!"']
    tape(work, text("[" * 130 + "]" * 130), text("[" * 130 + "]" * 130))
    ran = sh(f"thread-append --new --thread t q | {line} --schema '{{\"items\":{{\"$ref\":\"#\"}}}}' > out")
    assert ran == (5, "", "dispatch: thread t: replay: twice it did not hold to the schema: it is nested deeper than 120 levels\n")


@pytest.mark.parametrize("ref", ["#/nope", "#"])
def test_a_schema_that_refers_to_nothing_is_refused_before_anything_is_asked(sh, home, ref):
    ran = sh(f"dispatch -q --to echo --new --schema '{{\"$ref\":\"{ref}\"}}' q")
    why = "refers to #/nope, which is nowhere in it" if len(ref) > 1 else "refers to itself without end: a $ref comes back to where it stands"
    assert ran == (2, "", f"dispatch: --schema: it {why}\n") and calls(home) == 0


WORDS = ("Answer with JSON alone, which holds to this JSON Schema:\n"
         '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}')  # fmt: skip


@pytest.mark.parametrize("to, place, fielded", [
    ("anthropic/m", ".body.system, .body.output_config.format.schema", True),
    ("openai/m", ".body.instructions, .body.text.format.schema", True),
    ("google/m", ".body.systemInstruction.parts[0].text, .body.generationConfig.responseJsonSchema", True),
    ("groq/m", ".body.messages[0].content, .body.response_format.json_schema.schema", True),
    ("codex", ".files.system, .files.schema", True),
    ("gemini", ".files.system, "
               ".files.settings.modelConfigs.customOverrides[0].modelConfig.generateContentConfig.responseJsonSchema", True),
    ("claude", ".files.system, null", False),
    ("opencode:p/m", ".files.system, null", False),
    ("deepseek/m", ".body.messages[0].content, .body.response_format.json_schema.schema", False),
])  # fmt: skip
def test_whoever_has_no_field_for_a_schema_is_told_of_it_in_words(sh, to, place, fielded):
    keys = dict.fromkeys(["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY", "DEEPSEEK_API_KEY"], "k")
    ran = sh(f"dispatch --dry-run --new --to {to} -s 'Be kind.' --schema 'n int' q | jq -c '{place}'", **keys)
    wanted = orjson.loads(WORDS.splitlines()[1])
    assert (ran.records, ran.err) == (["Be kind.", wanted] if fielded else [f"Be kind.\n\n{WORDS}", None], "")


def test_a_program_is_told_of_the_schema_too_and_again_when_it_did_not_hold_to_it(sh, work):
    (work / "bot").write_text('#!/bin/sh\ncat >> told; test -e again && echo \'{"n":1}\' || { touch again; echo no; }\n')
    (work / "bot").chmod(0o755)
    ran = sh("dispatch -q --to exec:./bot --schema 'n int' --new q | cat; cat told")
    said = [orjson.loads(line) for line in ran.out.splitlines() if line.startswith('{"v"')]
    assert (ran.status, [record["losses"] for record in said if record["type"] == "span"]) == (0, 2 * [[
        {"what": "schema", "action": "moved", "why": "told in the system text: there is no field for it"}]])  # fmt: skip
    assert (work / "told").read_text().count(WORDS) == 1 + 2
    strict = sh("dispatch --strict --to exec:./bot --schema 'n int' --new q >/dev/null")
    assert strict.status == 3 and strict.err.endswith(
        "exec: --strict: schema would be moved: told in the system text: there is no field for it\n")  # fmt: skip


def test_the_second_command_sees_the_value_once(sh):
    ran = sh("dispatch --to echo --schema 'n int' --new q | dispatch --to exec:cat --text more")
    assert ran.out.count('{"n":1}') == 1


@pytest.mark.parametrize(
    ("spec", "properties"),
    [
        ("name, age int", {"name": {"type": "string"}, "age": {"type": "integer"}}),
        ("score float: from 0 to 1", {"score": {"type": "number", "description": "from 0 to 1"}}),
        ("name: full, with commas\nok bool", {"name": {"type": "string", "description": "full, with commas"}, "ok": {"type": "boolean"}}),
        ('{"type":"object","properties":{"x":{}}}', {"x": {}}),
    ],
)  # fmt: skip
def test_a_schema_is_json_or_the_short_form(spec, properties):
    assert structured.schema_of(spec)["properties"] == properties


@pytest.mark.parametrize("spec", ["", "two words here", '{"type": 5}', "{broken", "[1]"])
def test_what_is_no_schema_is_refused(spec):
    with pytest.raises(Usage):
        structured.schema_of(spec)


# -- tools


def adder(work):
    """A tool, and the program that answers its calls and leaves a file "ran"."""
    (work / "add.json").write_text('{"name":"add","description":"adds","input_schema":{"type":"object"}}')
    (work / "add").write_text("#!/bin/sh\ntouch ran; jq -c '.arguments.a + .arguments.b'\n")
    (work / "add").chmod(0o755)


def test_calls_are_answered_by_a_program_until_there_is_an_answer(sh, work, home):
    tape(work, CALL, text("It is 5 and 2."))
    adder(work)
    ran = sh("dispatch --to replay:tape --tool add.json --run-tools exec:./add --new sum | tee s | trace; cat s")
    run, *stream = ran.records
    assert [record.get("role") or record["type"] for record in stream] == [
        "begin", "tools", "user", "assistant", "span", "span", "span", "tool", "assistant", "span", "handoff", "end"]  # fmt: skip
    assert stream[7]["content"] == [
        {"type": "tool_result", "call_id": "c1", "name": "add", "content": "5"},
        {"type": "tool_result", "call_id": "c2", "name": "add", "content": "2"}]  # fmt: skip
    assert [stage["op"] for stage in run["stages"]] == ["dispatch", "tool", "tool", "dispatch"]
    assert calls(home) == 2


def test_a_tool_that_fails_is_told_to_the_model(sh, work):
    tape(work, CALL, text("I see."))
    ran = sh("dispatch --to replay:tape --run-tools 'exec:sh -c \"echo no such thing >&2; exit 3\"' --new q")
    results = next(record for record in ran.records if record.get("role") == "tool")["content"]
    assert results[0] | {"call_id": ""} == {
        "type": "tool_result", "call_id": "", "name": "add", "content": "no such thing", "is_error": True}  # fmt: skip


def test_calls_without_end_stop_at_the_limit(sh, work, home):
    tape(work, *[CALL] * 5)
    ran = sh("dispatch --to replay:tape --run-tools exec:cat --max-turns 3 --new q > out")
    assert (ran.status, calls(home)) == (4, 3)
    assert ran.err.endswith("replay: it still calls tools after 3 turns; --max-turns sets the limit\n")


def test_calls_that_a_thread_ends_with_are_answered_by_who_comes_next(sh, work, home):
    tape(work, CALL, text("It is 5 and 2."))
    adder(work)
    asked = sh("dispatch --to replay:tape --tool add.json --new sum > t; dispatch --to replay:tape < t | tail -n 2; exit ${PIPESTATUS[0]}")
    assert (asked.status, asked.kinds()) == (2, "failed end")
    assert asked.err.endswith("nothing to answer: it ends with calls of tools; give a PROMPT, or --run-tools exec:CMD answers them\n")
    assert sh("dispatch --to exec:cat --run-tools exec:./add --dry-run < t; test ! -e ran").status == 0
    ran = sh("dispatch -q --to exec:cat --run-tools exec:./add < t | cat")
    assert [record["role"] for record in ran.records if record["type"] == "message"] == ["user", "assistant", "tool", "assistant"]
    assert [record["op"] for record in ran.records if record["type"] == "span"] == ["dispatch", "tool", "tool", "dispatch"]
    assert "[result of c1: 5]" in ran.records[-4]["content"] and "[result of c2: 2]" in ran.records[-4]["content"]


def test_a_call_is_forced_once_and_then_there_is_an_answer(sh, work, home):
    tape(work, CALL, text("It is 5 and 2."))
    (work / "add.json").write_text('{"name":"add","parameters":{"type":"object"}}')
    ran = sh("dispatch -q --to replay:tape --tool add.json --tool-choice required --run-tools 'exec:echo 5' --new q")
    losses = [[loss["what"] for loss in record.get("losses", [])] for record in ran.records if record.get("op") == "dispatch"]
    assert (ran.status, losses) == (0, [["tool add", "tool_choice"], ["tool add"]])


def test_whoever_comes_next_may_answer_the_calls(sh, work):
    """A filter of the user's adds the result; the next dispatch goes on, and has the tools too."""
    tape(work, CALL)
    (work / "add.json").write_text('[{"name":"add","parameters":{"type":"object"}}]')
    answer = ("jq -c 'if .type == \"handoff\" then ({v:1,type:\"message\",thread:.thread,id:\"r\",role:\"tool\",content:["
              "{type:\"tool_result\",call_id:\"c1\",content:\"5\"},{type:\"tool_result\",call_id:\"c2\",content:\"2\"}]}, .) "
              "else . end'")  # fmt: skip
    ran = sh(f"dispatch --to replay:tape --tool add.json --new sum | {answer} | dispatch --to exec:cat | cat")
    assert ran.status == 0, ran.err
    said = [record for record in ran.records if record.get("role") == "assistant"][-1]["content"]
    assert '[called add with {"a":2,"b":3}]' in said and "[result of c1: 5]" in said
    shown = sh(f"dispatch --to replay:tape --tool add.json --new sum | {answer} | "
               "dispatch --to openai-chat/m --base-url http://127.0.0.1:9/v1 --dry-run", OPENAI_API_KEY="k")  # fmt: skip
    assert shown.records[0]["body"]["tools"][0]["function"]["name"] == "add"


@pytest.mark.parametrize(
    ("content", "err"),
    [
        ("{", "--tool t.json: no JSON"),
        ("5", "--tool t.json: a tool is an object with a name and parameters"),
        ('{"parameters":{}}', "--tool t.json: a tool wants a name without blanks (a plain JSON Schema: a title)"),
        ('{"name":"x","parameters":5}', "--tool t.json: the parameters of x are no JSON Schema"),
    ],
)
def test_what_is_no_tool_is_refused(sh, work, content, err):
    (work / "t.json").write_text(content)
    ran = sh("dispatch --to echo --tool t.json --new x")
    assert ran.status == 2 and ran.err.startswith(f"dispatch: {err}")


# -- other wishes


def test_last_sends_less_and_says_so(sh, work):
    thread(work, ("user", "one"), ("assistant", "two"), ("user", "three"))
    ran = sh("dispatch --to exec:cat --last 1 < t")
    assert ran.records[4]["content"] == "three"
    assert ran.records[5]["losses"] == [{"what": "2 older messages", "action": "dropped", "why": "--last 1"}]


def test_last_keeps_system_text_pins_and_the_calls_of_its_results(sh, work):
    """What a summary may not swallow is not left out either."""
    call = {"type": "tool_call", "id": "c1", "name": "add", "arguments": {}}
    turns = [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "pinned"), ("user", "three"),
             ("assistant", [call]), ("tool", [{"type": "tool_result", "call_id": "c1", "content": "5"}])]  # fmt: skip
    records = [{"v": 1, "type": "message", "thread": "t", "id": f"m{n}", "role": role, "content": content}
               for n, (role, content) in enumerate(turns)]  # fmt: skip
    records[3]["meta"] = {"pinned": True}
    (work / "t").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    shown = "jq -c '.body.instructions, (.body.input[] | .content[0].text? // .name // .output), .losses[].what'"
    ran = sh(f"dispatch --dry-run --to openai/m --last 1 < t | {shown}", OPENAI_API_KEY="k")
    assert ran.records == ["Be brief.", "pinned", "add", "5", "3 older messages"]
    ran = sh(f"dispatch --dry-run --to openai/m --last 2 more < t | {shown}", OPENAI_API_KEY="k")
    assert ran.records == ["Be brief.", "pinned", "add", "5", "more", "3 older messages"]


def test_an_attachment_goes_with_the_prompt(sh, work):
    (work / "a.txt").write_text("hello")
    ran = sh("dispatch --to exec:cat --new 'look at this' -a a.txt -a https://example.com/b.png | cat")
    content = ran.records[1]["content"]
    assert [part["type"] for part in content] == ["text", "file", "file"]
    assert content[2] == {"type": "file", "media_type": "image/png", "url": "https://example.com/b.png"}


@pytest.mark.parametrize("line", ["dispatch --to echo --new q", "thread-append --new q"])
def test_a_url_that_does_not_say_what_it_is_is_told_before_anything_is_sent(sh, home, line):
    ran = sh(f"{line} -a 'https://example.com/photo?id=3'")
    said = "https://example.com/photo?id=3: its name does not say what it is, and it is not fetched; attach it as a file\n"
    assert (ran.status, ran.out, ran.err) == (2, "", f"{line.split()[0]}: {said}")


# -- the window


def long_thread(work: Path, *, pinned: bool = False) -> None:
    thread(work, ("system", "be brief"), *[(role, f"{role} {n} " + "word " * 200) for n in range(4) for role in ("user", "assistant")],
           ("user", "the question"))  # fmt: skip
    if pinned:
        lines = (work / "t").read_text().splitlines()
        lines[1] = lines[1][:-1] + ',"meta":{"pinned":true}}'
        (work / "t").write_text("\n".join(lines) + "\n")


def configure(home: Path, **more: str) -> None:
    folder = home / ".config/mllm-pipe"
    folder.mkdir(parents=True, exist_ok=True)
    slots = "".join(f"{name} = {orjson.dumps(spec).decode()}\n" for name, spec in more.items())
    (folder / "mllm.toml").write_text(f'[agents.me]\nruntime = "exec:cat"\n[agents.me.models]\n{slots}')


def test_what_does_not_fit_is_refused_with_the_way_out(sh, work, home):
    long_thread(work)
    ran = sh("dispatch --to exec:cat --window 1000 < t")
    assert (ran.status, calls(home)) == (2, 0)
    assert "and the window of exec is 1000; send less with --last N" in ran.err
    assert sh("dispatch --to exec:cat --window 1000 --last 2 < t >/dev/null").status == 0
    assert sh("dispatch --to exec:cat --window 100000 < t >/dev/null").status == 0


@pytest.mark.parametrize("to, model", [
    ("anthropic/claude-haiku-4-5", "claude-haiku-4-5"), ("claude:claude-haiku-4-5", "claude-haiku-4-5"),
    ("opencode:anthropic/claude-haiku-4-5", "anthropic/claude-haiku-4-5"), ("mine", "claude-haiku-4-5"),
])  # fmt: skip
def test_the_window_is_that_of_the_model_whatever_it_is_called_here(sh, home, work, to, model):
    """And tools fill it too."""
    (home / ".config/mllm-pipe").mkdir(parents=True)
    (home / ".config/mllm-pipe/mllm.toml").write_text('[runtimes.mine]\nkind = "anthropic"\nmodel = "claude-haiku-4-5"\n')
    (work / "big.json").write_text(orjson.dumps({"name": "f", "description": "x" * 800_000}).decode())
    ran = sh(f"dispatch --to {to} --tool big.json --new q >/dev/null", ANTHROPIC_API_KEY="k")
    assert ran.status == 2 and f"tokens, and the window of {model} is 200000; send less" in ran.err


def test_the_same_tool_twice_is_one_and_two_of_one_name_are_refused(sh, work):
    (work / "a.json").write_text('{"name":"f","parameters":{"type":"object"}}')
    (work / "b.json").write_text('{"name":"f","description":"another","parameters":{"type":"object"}}')
    ask = "dispatch --to openai/m --dry-run --new q --tool a.json"
    assert len(sh(f"{ask} --tool a.json", OPENAI_API_KEY="k").records[0]["body"]["tools"]) == 1
    ran = sh(f"{ask} --tool b.json", OPENAI_API_KEY="k")
    assert (ran.status, ran.err) == (2, "dispatch: --tool: two tools are called f, and differ\n")


def test_older_turns_are_summarized_once_and_pins_and_system_stay(sh, work, home):
    long_thread(work, pinned=True)
    configure(home, summarizer="exec:echo in short")
    first = sh("dispatch --to me --window 1400 < t | thread-append s | cat")
    assert first.status == 0
    assert first.kinds().split()[-6:] == ["summarize" if False else "span", "summary", "assistant", "span", "ok", "end"]
    summary = next(record for record in first.records if record["type"] == "summary")
    assert summary["content"] == "in short" and "m1" not in summary["covers"] and "m2" not in summary["covers"]
    answer = [record for record in first.records if record.get("role") == "assistant"][-1]["content"]
    assert "be brief" in answer and "user 0 word" in answer and "in short" in answer and "the question" in answer
    assert "assistant 0 word" not in answer
    assert [record.get("slot") for record in first.records if record["type"] == "span"] == ["summarizer", "response"]
    again = sh("thread-append s 'and now' | dispatch --to me --window 100000 --text")
    assert "in short" in again.out and "assistant 0 word" not in again.out, "the same summary from then on"


def test_a_summary_of_a_summary_takes_its_place_at_once_and_for_ever(sh, work, home):
    long_thread(work)
    configure(home, summarizer="exec:echo in short")
    sh("dispatch --to me --window 1400 < t | thread-append s >/dev/null")
    sh(f"thread-append s '{'more ' * 600}' | dispatch --to me --window 1400 | thread-append s >/dev/null")
    again = sh("thread-append s 'and now' | dispatch --to me --window 100000 --text")
    asked = sh("jq -c 'select(.author.agent == \"me\")' s").records  # cat says what it was asked
    assert sh("grep -c '\"type\":\"summary\"' s").out == "2\n"
    assert [record["content"].count("in short") for record in asked] == [1, 1]
    assert again.out.startswith(asked[-1]["content"])


def test_a_summarizer_that_fails_fails_the_thread(sh, work, home):
    long_thread(work)
    configure(home, summarizer="exec:false")
    ran = sh("dispatch --to me --window 1400 < t | tail -n 2; exit ${PIPESTATUS[0]}")
    assert ran.status == 3 and ran.records[0]["status"] == "failed"


def test_an_option_that_a_runtime_does_not_take_is_listed_and_strict_refuses_it(sh, home):
    ran = sh("dispatch --to echo -o temperature 0.5 --new q | cat")
    assert ran.records[3]["losses"] == [{"what": "option temperature", "action": "dropped", "why": "echo takes none"}]
    ran = sh("dispatch --to echo -o temperature 0.5 --strict --new q | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == 3 and ran.kinds() == "begin user span error failed end"
    assert ran.err.endswith("echo: --strict: option temperature would be dropped: echo takes none\n")


def test_a_limit_below_what_the_api_takes_is_raised_and_listed_also_where_the_call_fails(sh):
    ran = sh("dispatch -q --to openai/m --base-url http://127.0.0.1:1 --max-retries 0 --max-tokens 5 --new q 2>&1 | cat",
             OPENAI_API_KEY="k")  # fmt: skip
    (span,) = [orjson.loads(line) for line in ran.out.splitlines() if '"type":"span"' in line]
    assert (span["status"], span["losses"]) == ("error", [
        {"what": "max_tokens", "action": "downgraded", "why": "fewer than 16 are refused"}])  # fmt: skip


@pytest.mark.parametrize("to, place, sent, lost", [
    ("claude:claude-opus-4-8", '.argv[] | select(startswith("--effort"))', ["--effort=low"],
     ["seed", "temperature", "verbosity"]),
    ("codex:gpt-5.5", '.argv[] | select(test("effort|verbosity"))', ['model_reasoning_effort="low"', 'model_verbosity="high"'],
     ["seed", "temperature"]),
    ("gemini:m", ".files.settings.modelConfigs.customOverrides[].modelConfig.generateContentConfig",
     [{"thinkingConfig": {"thinkingLevel": "LOW"}, "seed": 7, "temperature": 0.5}], ["verbosity"]),
    ("opencode:p/m", ".argv[0]", ["opencode"],
     ["option effort", "option seed", "option temperature", "option verbosity"]),
])  # fmt: skip
def test_options_reach_the_agent_programs_as_far_as_they_have_them(sh, to, place, sent, lost):
    line = f"dispatch --dry-run --new --to {to} -o effort low -o seed 7 -o temperature 0.5 -o verbosity high q"
    ran = sh(f"{line} | jq -c '({place}), [.losses[].what]'", OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k", GEMINI_API_KEY="k")
    assert (ran.status, ran.records, ran.err) == (0, [*sent, lost], "")


def test_an_effort_that_a_program_lacks_is_the_nearest(sh):
    ran = sh("dispatch --dry-run --new --to claude -o effort none q | jq -c '.argv[-1], .losses[0].why'", ANTHROPIC_API_KEY="k")
    assert ran == (0, '"--effort=low"\n"the model has no none; low is the nearest"\n', "")
    ran = sh("dispatch --new --to claude -o efort low q", ANTHROPIC_API_KEY="k")
    assert (ran.status, ran.err) == (2, "dispatch: option efort: claude has no such option; did you mean effort?\n")


@pytest.mark.parametrize("limit", ["--max-tokens 9", "-o max_tokens 9"])
def test_a_limit_that_is_dropped_lowers_no_budget(sh, limit):
    for to in ("codex:gpt-5", "exec:cat", "claude:claude-opus-4-8" if limit[1] == "o" else "codex"):
        ran = sh(f"dispatch -q --to {to} {limit} --max-tokens-total 5000 --new q > /dev/null", OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k")
        assert ran.status == 4 and "budget" in ran.err


@pytest.mark.parametrize("to", ["codex:gpt-5", "exec:cat", "echo"])
def test_a_limit_that_a_runtime_does_not_hold_is_listed_and_counts_for_no_budget(sh, to):
    who = to.partition(":")[0]
    ran = sh(f"dispatch --strict --to {to} --max-tokens 9 --new q > /dev/null", OPENAI_API_KEY="k")
    assert ran.status == 3 and ran.err.endswith(f"{who}: --strict: max_tokens would be dropped: {who} takes none\n")
    if who != "echo":  # which is free
        ran = sh(f"dispatch --to {to} --max-tokens 9 --max-tokens-total 5000 --new q > /dev/null", OPENAI_API_KEY="k")
        assert ran.status == 4 and "budget" in ran.err


def test_what_a_program_is_not_sent_is_listed_and_strict_refuses_it(sh, work):
    (work / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    ran = sh("dispatch -q --to exec:cat -a a.png --new q | cat")
    assert ran.records[3]["losses"] == [{
        "what": f"file a.png of message {ran.records[1]['id']}", "action": "downgraded",
        "why": "only its name is told: a program is sent text"}]  # fmt: skip
    ran = sh("dispatch --strict --to exec:cat -a a.png --new q > /dev/null")
    assert ran.status == 3 and "exec: --strict: file a.png of message" in ran.err
    assert sh("dispatch -q --strict --to exec:cat -s s --new q > /dev/null").status == 0


@pytest.mark.parametrize("options, err", [
    ("-o tempreature 1", "option tempreature: anthropic has no such option; did you mean temperature?"),
    ("-o temperature hot", "option temperature: 'hot' is not a number"),
    ("-o seed 1.5", "option seed: 1.5 is not a whole number"),
    ("-o max_tokens 0", "option max_tokens: 0 is not a whole number"),
    ("-o top_k 9223372036854775808", "option top_k: 9223372036854775808 is not a whole number"),
    ("--tool deep", "--tool deep: the parameters of x are nested deeper than 120 levels"),
    ("--max-tokens 1000000001", "Invalid value for '--max-tokens': 1000000001 is not in the range 1<=x<=1000000000; see dispatch --help"),
])  # fmt: skip
def test_a_wrong_option_is_told_once_before_anything_is_asked(sh, home, work, options, err):
    """Of fallbacks too, and before stdin is read: a thread that was sent is one too many."""
    (work / "t").write_text("".join(f'{{"role":"user","content":"{n}"}}\n' for n in range(3)))
    (work / "deep").write_text('{"name":"x","parameters":' + '{"not":' * 120 + "{}" + "}" * 121)
    for target in ("--to anthropic/m", "--to echo --fallback anthropic/m", "--to echo --to anthropic/m"):
        ran = sh(f"dispatch {target} {options} < t")
        assert (ran.status, ran.out, ran.err) == (2, "", f"dispatch: {err}\n")
    assert not (home / ".local/state/mllm-pipe/journal.jsonl").exists()


@pytest.mark.parametrize("schema", ["{}", '{"proprties": {"a": {"type": "string"}}}'])
def test_a_schema_asks_what_it_says_and_no_more(sh, work, schema):
    for value in ("5", "null", '{"a":5}'):
        (work / "said").write_text(value)
        assert sh(f"dispatch -q --to 'exec:cat said' --schema '{schema}' --new x --text") == (0, f"{value}\n", "")


def test_an_option_that_no_request_could_hold_is_told_before_anything_is_asked(sh, home):
    """An option that only some server knows is passed on, whatever it is."""
    line = "dispatch --to openai-chat/m --base-url http://127.0.0.1:9 --new x --dry-run -o far"
    said = "jq -c .body.far"
    assert sh(f"{line} '{'[' * 120 + ']' * 120}' | {said}") == (0, "[" * 120 + "]" * 120 + "\n", "")
    assert sh(f"{line} '{'[' * 121 + ']' * 121}'") == (2, "", "dispatch: option far: it is nested deeper than 120 levels\n")
