"""A swap as the shell sees it: a thread with everything in it, what each target is sent of it, and what is lost."""

from __future__ import annotations

from base64 import b64decode
from hashlib import sha256

import pytest
from test_growing import records

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
KEYS = dict.fromkeys(["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY"], "k")
IMAGE = {"type": "file", "media_type": "image/png", "data": PNG, "name": "p.png"}
PDF = {"type": "file", "media_type": "application/pdf", "data": "JVBERi0xLjQK", "name": "d.pdf"}


def text(said):
    return {"type": "text", "text": said}


def call(ident, name, **arguments):
    return {"type": "tool_call", "id": ident, "name": name, "arguments": arguments}


def result(ident, content, **more):
    return {"type": "tool_result", "call_id": ident, "content": content, **more}


# Claude's answer with reasoning and parallel calls, of which one fails, one shows a picture and one is not answered;
# somebody's refusal; a call with an id that was there, system text before its result, and a call in the air.
EVERYTHING = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": [text("See these."), IMAGE, PDF]},
    {"role": "assistant",
     "origin": {"api": "anthropic", "endpoint": "api.anthropic.com", "model": "claude-opus-5-5", "prefix": "0" * 64},
     "content": [{"type": "reasoning", "text": "hm", "raw": {"type": "thinking", "thinking": "hm", "signature": "c2ln"}},
                 text("I see."), call("toolu_1", "files.read", p="a"), call("toolu_2", "files_read", p="b"),
                 call("toolu_3", "x" * 70) | {"arguments_raw": "{broken"}]},
    {"role": "tool", "content": [result("toolu_2", [text("body"), IMAGE]), result("toolu_1", "gone", is_error=True)]},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": [{"type": "refusal", "text": "I will not."}]},
    {"role": "user", "content": "Then this."},
    {"role": "assistant", "content": [call("toolu_1", "again"), call("call.9", "other", q=1)]},
    {"role": "system", "content": "Be brief."},
    {"role": "tool", "content": [result("toolu_1", "r"), result("call.9", [{"type": "data", "value": {"x": 1}},
                                                                          {"type": "opaque", "raw": {"type": "novel"}}])]},
    {"role": "assistant", "content": [{"type": "data", "value": {"n": 1}},
                                      {"type": "opaque", "raw": {"type": "server_tool_use", "id": "s"}}]},
    {"role": "user", "content": "Go on."},
    {"role": "assistant", "content": [call("call_z", "unanswered")]},
    {"role": "user", "content": "Never mind."},
]  # fmt: skip
LOST = {
    "anthropic/claude-opus-5-5": """
        renamed name of tool_call toolu_1 of message m2
        downgraded arguments of tool_call toolu_3 of message m2
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        renamed id of tool_call toolu_1 of message m7
        renamed id of tool_call call.9 of message m7
        dropped opaque of tool_result call.9 of message m9
        downgraded system text of message m8
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12
        dropped reasoning of message m2""",
    "openai/m": """
        dropped reasoning of message m2
        renamed name of tool_call toolu_1 of message m2
        renamed name of tool_call toolu_3 of message m2
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        renamed id of tool_call toolu_1 of message m7
        dropped opaque of tool_result call.9 of message m9
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12
        downgraded is_error of tool_result toolu_1 of message m3""",
    "openai-chat/m": """
        dropped reasoning of message m2
        renamed name of tool_call toolu_1 of message m2
        renamed name of tool_call toolu_3 of message m2
        moved files of tool_result toolu_2 of message m3
        synthesised result of tool_call toolu_3 of message m2
        renamed id of tool_call toolu_1 of message m7
        dropped opaque of tool_result call.9 of message m9
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12
        downgraded is_error of tool_result toolu_1 of message m3""",
    "google/gemini-3.8-flash": """
        dropped reasoning of message m2
        downgraded arguments of tool_call toolu_3 of message m2
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        renamed id of tool_call toolu_1 of message m7
        dropped opaque of tool_result call.9 of message m9
        downgraded system text of message m8
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12""",
    "claude": """
        renamed id of tool_call toolu_1 of message m7
        dropped reasoning of message m2
        renamed name of tool_call toolu_1 of message m2
        renamed name of tool_call toolu_3 of message m2
        downgraded arguments of tool_call toolu_3 of message m2
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        renamed id of tool_call call.9 of message m7
        dropped opaque of tool_result call.9 of message m9
        downgraded system text of message m8
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12""",
    "codex": """
        dropped file d.pdf of message m1
        renamed id of tool_call toolu_1 of message m7
        dropped reasoning of message m2
        renamed name of tool_call toolu_1 of message m2
        renamed name of tool_call toolu_3 of message m2
        moved files of tool_result toolu_2 of message m3
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        renamed id of tool_call call.9 of message m7
        dropped opaque of tool_result call.9 of message m9
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12
        downgraded is_error of tool_result toolu_1 of message m3
        synthesised text of message m7
        moved system text of message m8""",
    "gemini": """
        renamed id of tool_call toolu_1 of message m7
        dropped reasoning of message m2
        downgraded arguments of tool_call toolu_3 of message m2
        moved files of tool_result toolu_2 of message m3
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        dropped opaque of tool_result call.9 of message m9
        downgraded system text of message m8
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12""",
    "opencode:p/m": """
        renamed id of tool_call toolu_1 of message m7
        dropped reasoning of message m2
        renamed name of tool_call toolu_1 of message m2
        renamed name of tool_call toolu_3 of message m2
        downgraded arguments of tool_call toolu_3 of message m2
        moved files of tool_result toolu_2 of message m3
        synthesised result of tool_call toolu_3 of message m2
        downgraded refusal of message m5
        renamed id of tool_call call.9 of message m7
        dropped opaque of tool_result call.9 of message m9
        downgraded system text of message m8
        dropped opaque of message m10
        synthesised result of tool_call call_z of message m12
        moved file of message m1
        synthesised text of message m7""",
}


@pytest.mark.parametrize("to", ["openai/m", "codex", "exec:cat"])
def test_a_loss_names_the_message_that_it_stood_in_where_several_are_one_turn(sh, work, to):
    odd = {"type": "odd", "x": 1}
    records(work, {"role": "user", "content": [text("one"), odd]}, {"role": "user", "content": "two"},
            {"role": "tool", "content": [result("none", "r")]}, {"role": "user", "content": "three"})  # fmt: skip
    ran = sh(f"dispatch --dry-run --to {to} < t | jq -r '.losses[].what' | sort", **KEYS)
    assert ran == (0, "odd of message m0\ntool_result none of message m2\n", "")


@pytest.mark.parametrize("to", LOST)
def test_what_a_swap_loses_of_a_thread_that_has_everything_is_told_before_it(sh, work, to):
    records(work, *EVERYTHING)
    ran = sh(f"dispatch --dry-run --to {to} < t | jq -r '.losses[] | .action + \" \" + .what'", **KEYS)
    lost = [line.strip() for line in LOST[to].splitlines()[1:]]
    assert ran == (0, "".join(line + "\n" for line in lost), "")
    strict = sh(f"dispatch --dry-run --strict --to {to} < t > shown; test ! -s shown", **KEYS)
    action, what = lost[0].split(" ", 1)
    assert f": --strict: {what} would be {action}: " in strict.err and strict.err.endswith(f", and {len(lost) - 1} more\n")


# One field of each turn on the wire: whose it is, and what; made-up text would stand out.
WIRE = {
    "anthropic/claude-opus-5-5": ".body.messages[] | .role as $r | .content[] | [$r, .text // .name // .tool_use_id // .type]",
    "openai/m": ".body.input[] | [.role // .type, (.content | strings // .[0].text) // .name // .call_id]",
    "google/gemini-3.8-flash": ".body.contents[] | .role as $r | .parts[] | "
                               "[$r, .text // .functionCall.name // .functionResponse.name // .inlineData.mimeType]",
}  # fmt: skip


def test_system_text_between_a_call_and_its_result_makes_up_no_turn(sh, work):
    """The result goes to its call, and nothing stands for the turn that it was taken out of."""
    records(work, *EVERYTHING[6:10])
    sent = {to: sh(f"dispatch --dry-run --to {to} < t | jq -c '{place}'", **KEYS).records for to, place in WIRE.items()}
    told = "<system>\nBe brief.\n</system>"
    assert sent == {
        "anthropic/claude-opus-5-5": [
            ["user", "Then this."], ["assistant", "again"], ["assistant", "other"], ["user", "toolu_1"],
            ["user", "c_rebufusuk673jaenybkdqajg"], ["user", told]],
        "openai/m": [
            ["user", "Then this."], ["function_call", "again"], ["function_call", "other"],
            ["function_call_output", "toolu_1"], ["function_call_output", "call.9"], ["system", "Be brief."]],
        "google/gemini-3.8-flash": [
            ["user", "Then this."], ["model", "again"], ["model", "other"], ["user", "again"], ["user", "other"],
            ["user", told]],
    }  # fmt: skip


# Where a target says the bytes of a PDF, or that it has no place for it: by data or path, and by URL.
PLACES = {
    "anthropic/m": (".body.messages[0].content[1].source.data", ".body.messages[0].content[1].source.url"),
    "openai/m": (".body.input[0].content[1].file_data", ".body.input[0].content[1].file_url"),
    "openai-chat/m": (".body.messages[0].content[1].file.file_data", None),
    "google/m": (".body.contents[0].parts[1].inlineData.data", ".body.contents[0].parts[1].fileData.fileUri"),
    "claude": (".stdin | fromjson | .message.content[1].source.data", None),
    "codex": (None, None),
    "gemini": ('.files.session | split("\n")[1] | fromjson | .content[2].inlineData.data', None),
    "opencode:p/m": (".files.import.messages[0].parts[0].url", None),
}


@pytest.mark.parametrize("to", PLACES)
def test_a_pdf_goes_by_path_url_or_data_or_stops_the_call(sh, work, to):
    (work / "d.pdf").write_bytes(b64decode(PDF["data"]))
    digest = sha256(b64decode(PDF["data"])).hexdigest()
    who, (by_data, by_url) = to.partition("/")[0].partition(":")[0], PLACES[to]
    for place, file, said in (
        (by_data, PDF, PDF["data"]),
        (by_data, {"path": f"{work}/d.pdf", "sha256": digest}, PDF["data"]),
        (by_url, {"url": "https://example.com/d.pdf"}, "https://example.com/d.pdf"),
    ):
        file = {"type": "file", "media_type": "application/pdf", **file}
        records(work, {"role": "user", "content": [text("Read this."), file]})
        ran = sh(f"dispatch --dry-run --to {to} < t | jq -r '{place or '.'}'", **KEYS)
        name = file.get("url", "d.pdf")
        refused = "" if place else f"dispatch: thread t: {who}: {who} takes no application/pdf ({name})\n"
        assert (ran.status, said in ran.out, ran.err) == (0, place is not None, refused)


def test_a_dry_run_says_nothing_of_losses_where_there_are_none(sh, work):
    records(work, {"role": "user", "content": "q"})
    assert sh("dispatch --dry-run --strict --to openai/m < t | jq -c keys", **KEYS) == (
        0, '["body","headers","thread","url"]\n', "")  # fmt: skip


@pytest.mark.parametrize("choice, anthropic, openai, chat, google", [
    ("auto", '{"type":"auto"}', '"auto"', '"auto"', '{"mode":"AUTO"}'),
    ("none", '{"type":"none"}', '"none"', '"none"', '{"mode":"NONE"}'),
    ("required", '{"type":"any"}', '"required"', '"required"', '{"mode":"ANY"}'),
    ("add", '{"type":"tool","name":"add"}', '{"type":"function","name":"add"}',
     '{"type":"function","function":{"name":"add"}}', '{"mode":"ANY","allowedFunctionNames":["add"]}'),
])  # fmt: skip
def test_a_tool_is_forced_in_the_words_of_each_api(sh, work, choice, anthropic, openai, chat, google):
    (work / "add.json").write_text('{"name":"add","parameters":{"type":"object"}}')
    ask = f"dispatch --dry-run --new --tool add.json --tool-choice {choice} q --to"
    line = (f"for to in anthropic/claude-opus-4-8 openai/m openai-chat/m google/m; do {ask} $to | "
            "jq -c '.body.tool_choice // .body.toolConfig.functionCallingConfig'; done")  # fmt: skip
    assert sh(line, **KEYS) == (0, f"{anthropic}\n{openai}\n{chat}\n{google}\n", "")


@pytest.mark.parametrize("to, place, sent, lost", [
    ("anthropic/claude-opus-5-5", ".body.output_config.effort, .body.temperature, .body.stop_sequences", ["max", None, ["X"]],
     ["dropped temperature: the model takes no sampling parameters", "dropped seed: anthropic has no such option"]),
    ("openai/gpt-5.5", ".body.reasoning.effort, .body.temperature, .body.stop", ["max", None, None],
     ["dropped temperature: a reasoning model takes it with effort none only",
      "dropped seed: openai has no such option", "dropped stop: openai has no such option"]),
    ("openai-chat/m", ".body.reasoning_effort, .body.temperature, .body.stop", ["max", 0.5, ["X"]], []),
    ("google/gemini-2.5-flash", ".body.generationConfig | .thinkingConfig.thinkingBudget, .temperature, .stopSequences",
     [24576, 0.5, ["X"]], ["downgraded effort: the model has no max; high is the nearest"]),
])  # fmt: skip
def test_an_option_goes_where_each_model_has_it_and_what_it_refuses_is_listed(sh, to, place, sent, lost):
    options = "-o effort max -o temperature 0.5 -o seed 7 -o stop X"
    shown = f'jq -c \'[{place}], [.losses[]? | .action + " " + .what + ": " + .why]\''
    ran = sh(f"dispatch --dry-run --new --to {to} {options} q | {shown}", **KEYS)
    assert (ran.status, ran.records, ran.err) == (0, [sent, lost], "")


def test_an_answer_may_be_as_long_as_the_model_can_where_nobody_says_less(sh):
    line = "for m in claude-haiku-4-5 claude-opus-5-5 unheard-of; do dispatch --dry-run --new --to anthropic/$m q; done"
    assert sh(f"{line} | jq .body.max_tokens", **KEYS) == (0, "64000\n128000\n32000\n", "")
    assert sh(f"{line.replace('q;', 'q --max-tokens 9;')} | jq .body.max_tokens", **KEYS) == (0, "9\n9\n9\n", "")


def test_what_cannot_be_forced_is_told(sh, work):
    (work / "add.json").write_text('{"name":"add","parameters":{"type":"object"}}')
    lost = "jq -c '.losses[] | [.what, .action, .why]'"
    ran = sh(f"dispatch --dry-run --new --tool add.json --tool-choice add q --to anthropic/claude-opus-5-5 | {lost}", **KEYS)
    assert ran.records == [["tool_choice", "downgraded", "auto: the model cannot be made to call a tool"]]
    ran = sh(f"dispatch --dry-run --new --tool add.json --tool-choice add q --to claude | {lost}", **KEYS)
    assert ran.records == [["tool add", "dropped", "claude takes none"], ["tool_choice", "dropped", "claude takes none"]]
    ran = sh("dispatch -q --new --tool add.json --tool-choice ad q --to openai/m >/dev/null", **KEYS)
    assert ran.status == 2 and ran.err.endswith("--tool-choice ad: no such tool; say auto, none, required or one of add\n")
    ran = sh("dispatch -q --new --tool-choice auto q --to openai/m >/dev/null", **KEYS)
    assert ran.status == 2 and ran.err.endswith("--tool-choice auto: no tools are declared; say --tool FILE\n")
