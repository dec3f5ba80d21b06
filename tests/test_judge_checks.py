"""judge --check: what each rule holds to, how several count together, and what keeps a hostile text from hanging it."""

from __future__ import annotations

import re
import time

import orjson
import pytest
from test_dispatch import calls, thread

from mllm_pipe.judging import jsonpath, likeness

CHECKS = [
    ("contains:bc", "abcd", 0), ("contains:zz", "abcd", 1),
    ("equals:a b", " a b\n", 0), ("equals:a b", "a  b", 1),
    ("starts:ab", "\nabcd", 0), ("starts:bc", "abcd", 1),
    ("starts: ab", "\nabcd", 0), ("starts: bc", "abcd", 1),
    ("regex:^a.*d$", "abcd", 0), ("regex:^b", "abcd", 1),
    ("json", '{"a":1}', 0), ("json", "{a:1}", 1), ("json", '{"a":NaN}', 1),
    ("schema:s.json", '{"n":1}', 0), ("schema:s.json", '{"n":"x"}', 1), ("schema:s.json", "no json", 1),
    ("jsonpath:$.n", '{"n":null}', 0), ("jsonpath:$.n", '{"m":1}', 1), ("jsonpath:$.n", "no json", 1),
    ("jsonpath:$.n[-1].k=\"v\"", '{"n":[1,{"k":"v"}]}', 0), ("jsonpath:$.n=1", '{"n":1.0}', 0),
    ("jsonpath:$.n=1", '{"n":true}', 1), ("jsonpath:$.l[*].x=2", '{"l":[{"x":1},{"x":2}]}', 0),
    ("jsonpath:$[\"a b\"]={\"c\":[1]}", '{"a b":{"c":[1]}}', 0), ("jsonpath:$.*=3", '{"a":[3]}', 1),
    ("similar:0.57:sitting", "kitten", 0), ("similar:0.58:sitting", "kitten", 1),
    ("rouge:0.75:police killed the gunman", "police kill the gunman", 0),
    ("rouge:0.76:police killed the gunman", "Police kill the gunman!", 1),
    ("exec:grep -q bc", "abcd", 0), ("exec:grep -q zz", "abcd", 1),
    ("max-chars:4", "abcd", 0), ("max-chars:3", "abcd", 1),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "answer", "status"), CHECKS)
def test_checks_need_no_model(sh, work, home, rule, answer, status):
    (work / "s.json").write_text('{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}')
    thread(work, ("user", "q"), ("assistant", answer))
    ran = sh(f"judge --check '{rule}' < t")
    assert (ran.status, ran.err) == (status, "")
    assert ran.records[3]["criteria"][0]["name"] == rule and ran.records[3]["pass"] is (status == 0)
    assert calls(home) == 0


def test_all_checks_must_hold(sh, work):
    thread(work, ("user", "q"), ("assistant", "abc"))
    ran = sh("judge --check contains:a --check contains:z --format text < t")
    assert ran == (1, "fail  0.50  thread t\n      1.00  contains:a: it is there\n      0.00  contains:z: it is not there\n", "")


@pytest.mark.parametrize(
    ("flags", "score", "status"),
    [
        ("--need all", 0.75, 1), ("--need any", 0.75, 0), ("--need 0.75", 0.75, 0), ("--need 0.76", 0.75, 1),
        ("--need any --check contains:y", 0.6, 0),
    ],
)  # fmt: skip
def test_checks_have_weights_and_as_many_must_hold_as_are_needed(sh, work, flags, score, status):
    thread(work, ("user", "q"), ("assistant", "abc"))
    ran = sh(f"judge --check 3*contains:a --check contains:z {flags} < t")
    assert (ran.status, ran.records[3]["score"], ran.err) == (status, score, "")
    assert [(one["name"], one["weight"]) for one in ran.records[3]["criteria"]][:2] == [("contains:a", 3.0), ("contains:z", 1.0)]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("--check 0.1*max-cost:1 --check 0.2*contains:a --check 0.3*contains:b", [None, None]),
        ("--check 0.1*contains:a --check 0.2*contains:b --check 0.7*contains:z --need 0.3", [True, 0.3]),
        ("--check 0.1*contains:a --check 0.6*contains:b --check 0.3*contains:z --need 0.7", [True, 0.7]),
        ("--check 0.1*contains:z --check 0.2*max-cost:1 --need any", [None, None]),
        ("--check 1000000000*contains:a --check 0.000000001*contains:z", [False, 1.0]),
    ],
)
def test_weights_are_summed_as_they_were_typed(sh, work, flags, found):
    thread(work, ("user", "q"), ("assistant", "abc"))
    judged = sh(f"judge -q {flags} < t").records[3]
    assert [judged["pass"], judged["score"]] == found


def test_none_of_them_is_not_any(sh, work):
    thread(work, ("user", "q"), ("assistant", "abc"))
    assert sh("judge --check contains:y --check contains:z --need any < t").status == 1


def test_a_reference_is_one_text_or_one_for_each_thread(sh, work):
    thread(work, ("user", "q"), ("assistant", "Paris"))
    (work / "gold").write_text("Paris\n")
    assert sh("judge --check equals --check similar:1 --check rouge:1 --reference gold < t").status == 0
    (work / "gold.jsonl").write_text('{"thread":"t","reference":"Rome"}\n')
    assert sh("judge --check equals --reference gold.jsonl < t").status == 1
    (work / "gold.jsonl").write_text('{"thread":"u","reference":"Rome"}\n')
    ran = sh("judge --check equals --reference gold.jsonl < t")
    assert (ran.status, ran.err) == (6, "judge: thread t: --reference gold.jsonl has no line for it: nothing to hold the "
                                        "answer against\n")  # fmt: skip
    ran = sh("judge --check equals < t")
    assert (ran.status, ran.err) == (2, "judge: thread t: a --check has nothing to compare with: say it after a colon, "
                                        "or give --reference FILE\n")  # fmt: skip


def test_cost_and_time_are_those_of_the_calls_that_made_the_answer(sh):
    line = "dispatch -q --to echo --new q | judge"
    assert sh(f"{line} --check max-cost:0 --check max-latency:1m >/dev/null").status == 0
    assert sh(f"{line} --check max-latency:0ms >/dev/null").status == 1


def test_a_cost_that_nobody_knows_is_no_verdict(sh):
    ran = sh("dispatch -q --to exec:cat --new q | judge --check max-cost:1 | jq -c 'select(.type==\"verdict\")|[.pass,.score]'; exit ${PIPESTATUS[1]}")
    assert ran.out == "[null,null]\n"
    assert ran.err.endswith("max-cost:1: what it cost is unknown\n") and ran.status == 6


def test_the_cost_and_the_time_of_a_turn_are_unknown_where_those_of_a_part_are(sh, work):
    call = {"type": "tool_call", "id": "c", "name": "clock", "arguments": {}}
    result = {"type": "tool_result", "call_id": "c", "content": "noon"}
    common = {"v": 1, "thread": "t", "type": "message"}
    turn = [common | {"id": "q", "role": "user", "content": "q"},
            common | {"id": "a", "role": "assistant", "content": [call], "run_id": "r1"},
            common | {"id": "b", "role": "tool", "content": [result]},
            common | {"id": "c", "role": "assistant", "content": "noon", "run_id": "r2"}]  # fmt: skip
    spans = [{"v": 1, "type": "span", "thread": "t", "id": run, "op": "dispatch", "status": "ok", "cost_usd": 0.001,
              "started_at": "2026-11-22T20:13:43Z", "duration_ms": 1} for run in ("r1", "r2")]  # fmt: skip
    (work / "part").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in [*turn, spans[0]]))
    (work / "whole").write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in [*turn, *spans]))
    found = [one["reason"] for one in sh("judge --check max-cost:1 --check max-latency:1m < whole").records[7]["criteria"]]
    assert found == ["0.002000 USD", "2 ms"]
    ran = sh("judge --check max-cost:1 --check max-latency:1m < part > out")
    assert ran == (6, "", "judge: thread t: max-cost:1: what it cost is unknown; max-latency:1m: how long it took is unknown\n")


def test_a_tool_was_called_in_the_turn_that_the_answer_ends(sh, work):
    call = {"type": "tool_call", "id": "c", "name": "clock", "arguments": {}}
    result = {"type": "tool_result", "call_id": "c", "content": "noon"}
    thread(work, ("user", "q"), ("assistant", [call]), ("tool", [result]), ("assistant", "It is noon."))
    assert sh("judge --check tool-called:clock < t").status == 0
    ran = sh("judge --check tool-called:calendar --format text < t")
    assert (ran.status, ran.out) == (1, "fail  0.00  thread t\n      0.00  tool-called:calendar: it called clock\n")
    thread(work, ("user", "q"), ("assistant", [call]), ("tool", [result]), ("assistant", "noon"), ("user", "sure?"), ("assistant", "yes"))
    assert sh("judge --check tool-called:clock < t").status == 1


def test_a_cascade_asks_the_model_only_where_the_checks_pass(sh, work, home):
    thread(work, ("user", "q"), ("assistant", "abc"))
    line = "judge --cascade --by echo --rubric correctness --check contains"
    assert sh(f"{line}:z < t").status == 1 and calls(home) == 0
    ran = sh(f"{line}:a < t")
    assert (ran.status, calls(home)) == (0, 1)
    assert [record["author"]["agent"] for record in ran.records if record["type"] == "verdict"] == ["check", "judge"]


@pytest.mark.parametrize(
    ("rule", "err"),
    [
        ("similar:2:x", "say a share from 0 to 1, and perhaps :TEXT after it"),
        ("similar:0.5:", "say a share from 0 to 1, and perhaps :TEXT after it"),
        ("rouge:x", "x is no number"),
        ("starts:  ", "say starts:TEXT, with more than blanks"),
        ("jsonpath:a", "a path begins with $"),
        ("jsonpath:$..a", "no step at '..a'; there are .name ['name'] [0] [-1] .* [*], and = before a value"),
        ("jsonpath:$[?@.a]", "no step at '[?@.a]'; there are .name ['name'] [0] [-1] .* [*], and = before a value"),
        ("jsonpath:$.a=x", "'x' is no JSON; a text has quotes: =\"text\""),
        ("max-cost:-1", "-1 is no number"),
        ("max-latency:2", "no time; say 500ms, 2s or 1m"),
    ],
)
def test_a_rule_that_is_none_is_refused(sh, work, rule, err):
    thread(work, ("user", "q"), ("assistant", "a"))
    assert sh(f"judge --check '{rule}' < t") == (2, "", f"judge: --check {rule}: {err}\n")


@pytest.mark.parametrize(
    ("flags", "err"),
    [
        ("--check contains", "--check 'contains': say contains:TEXT"),
        ("--check 0*json", "--check '0*json': a weight is more than 0"),
        ("--check 1000000001*json", "--check '1000000001*json': a weight is at most 1e+09"),
        ("--check json --need 2", "--need 2: say all, any, or a share of the weights above 0 and up to 1"),
        ("--check json --cascade", "--cascade needs both: --check RULE, and --rubric with --by"),
        ("--check json --by echo", "--by is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json --pass-at 0.9", "--pass-at is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json -n 3", "-n is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json --scale 0-9", "--scale is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json --combine mean", "--combine is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json --forbid-self", "--forbid-self is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json -m gpt", "--model is for a judge: say by what, with --rubric; a --check asks nobody"),
        ("--check json --one-order", "--one-order is for comparisons: --pairwise, or --against FILE"),
        ("--check json --seed 0", "--seed is for comparisons: --pairwise, or --against FILE"),
        ("--check equals --reference none", "--reference none: No such file or directory"),
        ("--check equals --reference bad.jsonl", '--reference bad.jsonl: line 1: no {"thread": TEXT, "reference": TEXT}'),
    ],
)
def test_flags_of_checks_that_make_no_sense_are_refused(sh, work, flags, err):
    thread(work, ("user", "q"), ("assistant", "a"))
    (work / "bad.jsonl").write_text('{"thread":"t"}\n')
    ran = sh(f"judge {flags} < t")
    assert (ran.out, ran.err) == ("", f"judge: {err}\n") and ran.status in (2, 66)


def test_a_check_asks_nobody_whoever_might_judge(sh, work, home):
    (work / "mllm.toml").write_text('[agents.w]\nruntime = "echo"\nmodels = { evaluator = "echo" }\n')
    thread(work, ("user", "q"), ("agent:w", "a"))
    assert sh("judge --check contains:a < t > out", MLLM_BY="echo", MLLM_CONFIG="mllm.toml") == (0, "", "")
    assert calls(home) == 0


def test_a_text_that_keeps_a_check_busy_is_cut_off(sh, work):
    thread(work, ("user", "q"), ("assistant", "a" * 40 + "!"))
    ran = sh("judge --timeout 0.3 --check 'regex:(a+)+$' < t > out")
    assert (ran.status, ran.err) == (124, "judge: thread t: a --check took longer than 0.3 s; --timeout sets the limit\n")
    (work / "t").write_bytes(b"")
    thread(work, ("user", "q"), ("assistant", "ab" * 400_000))
    (work / "long").write_text("ba" * 400_000)
    ran = sh("judge --timeout 0.3 --check similar:0.5 --reference long < t > out")
    assert (ran.status, ran.err) == (124, "judge: thread t: a --check took longer than 0.3 s; --timeout sets the limit\n")


def test_the_limit_is_of_one_search_and_not_of_all(sh, work):
    thread(work, ("user", "q"), ("assistant", "a" * 17 + "!"))
    searches = "--check 'regex:(a+)+$' " * 60
    began = time.process_time()
    assert re.search("(a+)+$", "a" * 17 + "!") is None
    took = time.process_time() - began
    assert sh(f"judge --timeout {20 * took} {searches} < t > out") == (1, "", "")


LATE = "to hold the answer to its schema took longer than 0.3 s; --timeout sets the limit\n"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_text_that_keeps_a_schema_busy_is_cut_off(sh, work, jobs):
    """A pattern goes back and forth; things that are all different, each beside each; a choice of two on every level."""
    (work / "pattern").write_text('{"type":"string","pattern":"^(a+)+$"}')
    (work / "unique").write_text('{"uniqueItems":true}')
    (work / "twice").write_text('{"items":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}')
    answers = {"pattern": f'"{"a" * 40}!"', "unique": orjson.dumps([{"n": n} for n in range(9000)]).decode(),
               "twice": "[" * 40 + "]" * 40}  # fmt: skip
    for name, answer in answers.items():
        (work / "t").write_bytes(b"")
        thread(work, ("user", "q"), ("assistant", answer))
        ran = sh(f"judge -j {jobs} --timeout 0.3 --check schema:{name} < t > out")
        assert (ran.status, ran.err) == (124, f"judge: thread t: {LATE}")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_answer_that_is_nested_too_deeply_is_no_verdict_and_stops_no_other(sh, work, jobs):
    (work / "rec").write_text('{"type":"array","items":{"$ref":"#"}}')
    chain = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(20)}
    (work / "long").write_bytes(orjson.dumps({"items": {"$ref": "#/$defs/0"}, "$defs": chain | {"20": {"$ref": "#"}}}))
    lines = [orjson.dumps({"v": 1, "type": "message", "thread": name, "id": name, "role": "assistant", "content": text})
             for name, text in (("deep", nested(300)), ("fine", nested(9)))]  # fmt: skip
    (work / "t").write_bytes(b"\n".join(lines) + b"\n")
    passes = "jq -c 'select(.type==\"verdict\")|[.thread,.pass]'"
    for schema in ("rec", "long"):
        ran = sh(f"judge -j {jobs} --check schema:{schema} < t | {passes}; exit ${{PIPESTATUS[0]}}")
        assert ran == (6, '["deep",null]\n["fine",true]\n', f"judge: thread deep: schema:{schema}: it is nested deeper than 120 levels\n")
    (work / "t").write_bytes(lines[0].replace(nested(300).encode(), nested(119).encode()) + b"\n")
    assert sh(f"judge -j {jobs} --check schema:rec < t > out") == (0, "", "")
    ran = sh(f"judge -j {jobs} --check schema:long < t > out")
    assert ran == (6, "", "judge: thread deep: schema:long: it is nested too deeply for its schema\n")


def test_values_that_are_nested_as_deeply_as_json_goes_are_compared(sh, work):
    thread(work, ("user", "q"), ("assistant", nested(1000)))
    assert sh(f"judge --check 'jsonpath:$={nested(1000)}' < t > out") == (0, "", "")
    assert sh(f"judge --check 'jsonpath:$={nested(999)}' < t > out") == (1, "", "")


@pytest.mark.parametrize(
    ("schema", "err"),
    [
        ('{"$ref":"#/nope"}', "it refers to #/nope, which is nowhere in it"),
        ('{"properties":{"n":{"$dynamicRef":"#x"}}}', "it refers to #x, which is nowhere in it"),
        ('{"$ref":"http://127.0.0.1/x"}', "it refers to http://127.0.0.1/x; nothing is fetched, put the definition into its $defs"),
        ('{"$ref":"#"}', "it refers to itself without end: a $ref comes back to where it stands"),
        ('{"anyOf":[{"type":"string"},{"$ref":"#"}]}', "it refers to itself without end: a $ref comes back to where it stands"),
        ('{"not":' * 400 + "{}" + "}" * 400, "it is nested too deeply"),
    ],
)  # fmt: skip
def test_a_schema_that_refers_to_nothing_is_refused_before_anything_is_judged(sh, work, schema, err):
    (work / "s").write_text(schema)
    thread(work, ("user", "q"), ("assistant", "1"))
    assert sh("judge --check schema:s < t") == (2, "", f"judge: --check schema:s: {err}\n")


@pytest.mark.parametrize(
    "schema",
    [
        '{"$ref":"#n","$defs":{"n":{"$anchor":"n","type":"integer"}}}',
        '{"$schema":"http://json-schema.org/draft-07/schema#","$ref":"#/definitions/n","definitions":{"n":{"type":"integer"}}}',
        '{"type":"integer","properties":{"n":{"$ref":"#/$defs/in"}},"$defs":{"in":{"$id":"in","items":{"$ref":"#/$defs/x"},"$defs":{"x":{}}}}}',
        '{"type":"integer","items":{"$ref":"#"},"const":1,"default":{"$ref":1}}',
    ],
)
def test_a_schema_may_refer_to_what_is_in_it(sh, work, schema):
    (work / "s").write_text(schema)
    thread(work, ("user", "q"), ("assistant", "1"))
    assert sh("judge --check schema:s < t > out") == (0, "", "")


def test_a_text_of_many_different_characters_takes_no_more_memory_than_others(sh, work):
    """120,000 of them, of four bytes: a row of bits for each would take 900 MB."""
    text = "".join(chr(0x20000 + place) for place in range(120_000))
    thread(work, ("user", "q"), ("assistant", text))
    (work / "same").write_text(text)
    for given in ("0.8:hello", "0.8:𠀀𠀁𠀂"):
        assert sh(f"ulimit -v 800000; judge --check similar:{given} < t > out") == (1, "", "")
    (work / "t").write_bytes(b"")
    thread(work, ("user", "q"), ("assistant", text[:30_000]))
    (work / "same").write_text(text[:30_000])
    assert sh("ulimit -v 400000; judge --check similar:1 --reference same < t > out") == (0, "", "")


@pytest.mark.parametrize("seconds", ["1e12", "1e300"])
def test_a_limit_beyond_what_a_clock_can_keep_is_refused(sh, work, seconds):
    thread(work, ("user", "q"), ("assistant", "hello"))
    ran = sh(f"judge --check regex:hel --timeout {seconds} < t")
    said = f"Invalid value for '--timeout': {float(seconds)} is not in the range 0<x<=2000000.0; see"
    assert ran == (2, "", f"judge: {said} judge --help\n")
    assert sh(f"dispatch --to echo --new --timeout {seconds} q") == (2, "", f"dispatch: {said} dispatch --help\n")
    assert sh("judge --check regex:hel --check similar:0.1:hel --timeout 2000000 < t > out") == (0, "", "")
    assert sh("dispatch -q --to exec:cat --new --timeout 2000000 --first-token 2000000 --text q") == (0, "q\n", "")


def test_a_hostile_span_is_no_cost(sh, work):
    span = {"v": 1, "type": "span", "thread": "t", "id": "r", "op": "dispatch", "status": "ok", "cost_usd": "0",
            "started_at": "2026-11-22T20:13:43Z", "duration_ms": 1}  # fmt: skip
    answer = {"v": 1, "type": "message", "thread": "t", "id": "a", "role": "assistant", "content": "x", "run_id": "r"}
    (work / "t").write_bytes(orjson.dumps(answer) + b"\n" + orjson.dumps(span) + b"\n")
    ran = sh("judge --check max-cost:1 < t > out")
    assert ran.status == 65


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("intention", "execution", 5), ("é", "e", 1)],
)
def test_the_levenshtein_distance_is_that_of_the_textbooks(one, other, distance):
    assert likeness.distance(one, other, int) == likeness.distance(other, one, int) == distance


def test_rouge_l_is_that_of_its_paper():
    """Lin 2004, §3.1: the three sentences of its example, F1 of recall 3/4 and 2/4."""
    reference = "police killed the gunman"
    assert likeness.rouge_l("police kill the gunman", reference, int) == 0.75
    assert likeness.rouge_l("the gunman kill police", reference, int) == 0.5
    assert likeness.rouge_l("", reference, int) == 0.0


def test_a_path_selects_what_rfc_9535_says():
    document = {"a": {"b": [1, 2, {"c": "x"}], "é": None}, "l": [[1], [2, 3]], "k k": 5, "e": []}
    found = {path: jsonpath.select(document, jsonpath.parse(path)[0]) for path in
             ("$.a.b[-1].c", "$.l[*][*]", "$['k k']", "$.a.é", "$.e[0]", "$.x.y", "$.a[0]")}  # fmt: skip
    assert list(found.values()) == [["x"], [1, 2, 3], [5], [None], [], [], []]
