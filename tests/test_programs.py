"""claude and codex themselves, on loopback: what they are given arrives, what they do is understood, nothing stays.

They are looked for in $MLLM_TEST_PROGRAMS (a directory) and on PATH; what is not there is skipped.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loopback import serve
from programs import (
    KEYS,
    LONG_S,
    MODELS,
    ODD_PROMPTS,
    PDF,
    PNG,
    TEN_SENT,
    TEN_TURNS,
    Brief,
    Io,
    Program,
    answered,
    called,
    carrying,
    files,
    furnish,
    places_of,
    told_to,
    turn,
    user,
)

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import claude, codex


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a temp directory of the test's own, with canaries in files and in the environment."""
    (home := tmp_path / "home").mkdir()
    (temporary := tmp_path / "tmp").mkdir()
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "CLAUDE", "OPENAI_", "CODEX_", "XDG_", "PYTHON")):
            monkeypatch.delenv(name)
    if os.environ.get("MLLM_TEST_PROGRAMS"):
        monkeypatch.setenv("PATH", os.environ["MLLM_TEST_PROGRAMS"] + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)  # where the standard library keeps the TMPDIR that it saw first
    for name in ("GEMINI_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_SECRET"):
        monkeypatch.setenv(name, "sk-canary-env")
    furnish(home, tmp_path / "CANARY-HOOK")
    monkeypatch.chdir(home)
    return tmp_path


@pytest.fixture(params=[claude, codex], ids=["claude", "codex"])
def program(request: pytest.FixtureRequest, house: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Each of the programs, with a key; afterwards nothing of it is left, and nothing of ours went out."""
    module = request.param
    name = module.__name__.rpartition(".")[2]
    if not shutil.which(name):
        pytest.skip(f"{name} is not on PATH, nor in $MLLM_TEST_PROGRAMS")
    monkeypatch.setenv(KEYS[name], "sk-canary-key")
    before = files(house)
    with serve("anthropic" if module is claude else "responses") as server:
        program = Program(module, server)
        yield program
        assert "CANARY" not in json.dumps(server.requests)
        assert "sk-canary" not in json.dumps(server.requests)
        assert {r["path"] for r in server.requests} <= {"/", "/v1/messages", "/v1/responses"}
    assert files(house) == before
    late = time.monotonic() + LONG_S  # what was killed may take a moment to be gone from /proc
    while carrying(str(house)) not in ([], [os.getpid()]) and time.monotonic() < late:
        threading.Event().wait(0.05)
    assert carrying(str(house)) in ([], [os.getpid()])


def test_ten_turns_with_calls_arrive_as_turns(program: Program) -> None:
    system = "You are @/etc/hostname.\nLine two"
    result = program.ask(*TEN_TURNS, user("And the newest, @/etc/hostname?"), system=system)
    assert program.sent() == [
        ["system", "text", system],
        *TEN_SENT,
        ["user", "text", "And the newest, @/etc/hostname?"],
    ]
    said = result["parts"][0]["text"]
    assert said.startswith("LOOPBACK-OK turns=")
    assert "".join(program.io.pieces) == said
    assert (result["parts"], result["finish"], result["losses"]) == ([{"type": "text", "text": said}], "stop", [])
    assert (result["model"], result["provider"]) == (
        MODELS[program.name], "anthropic" if program.name == "claude" else "openai")  # fmt: skip


def test_usage_and_cost_are_in_our_terms(program: Program) -> None:
    result = program.ask(user("hi"))
    assert program.own_tokens(user("hi")) < program.module.OWN_TOKENS[None]
    expected = {
        "claude": {"input_tokens": 23, "cache_read_tokens": 7, "cache_write_tokens": 5, "output_tokens": 23},
        "codex": {"input_tokens": 31, "cache_read_tokens": 7, "cache_write_tokens": 0, "output_tokens": 13,
                  "reasoning_tokens": 3},
    }  # fmt: skip
    assert result["usage"] == expected[program.name]
    assert (result["cost_usd"] is None, result["cost_source"]) == (
        (False, "runtime") if program.name == "claude" else (True, None))  # fmt: skip


@pytest.mark.parametrize("prompt", ODD_PROMPTS, ids=repr)
def test_no_prompt_is_an_option_a_command_or_a_mention(program: Program, prompt: str) -> None:
    program.ask(user(prompt))
    assert program.sent() == [["system", "text", "SYS"], ["user", "text", prompt]]
    program.ask(*TEN_TURNS[:2], user(prompt), turn("assistant", prompt), user(prompt))
    assert program.sent()[3:] == [["user", "text", prompt], ["assistant", "text", prompt], ["user", "text", prompt]]


def test_a_turn_of_several_texts_and_a_picture_arrives_whole(program: Program) -> None:
    picture = {"type": "file", "media_type": "image/png", "data": PNG}
    program.ask(user("one"), turn("assistant", "a"), user("/two", picture, "three"))
    assert program.sent()[3:] == [["user", "text", "/two"], ["user", "image", PNG], ["user", "text", "three"]]


@pytest.mark.parametrize("program", [claude], ids=["claude"], indirect=True)
def test_a_pdf_arrives(program: Program) -> None:
    program.ask(user(PDF, "one"), turn("assistant", "a"), user("two", PDF))
    found = places_of(PDF["data"], program.calls()[-1]["body"])
    assert [place[:2] + place[4:] for place in found] == [["messages", 0, "source", "data"], ["messages", 2, "source", "data"]]


def test_system_text_after_the_question_arrives_beside_it(program: Program) -> None:
    program.ask(user("one"), turn("assistant", "1"), user("two"), turn("system", "Be brief."))
    told = {
        "claude": [["user", "text", "two"], ["user", "text", "<system>\nBe brief.\n</system>"]],
        "codex": [["system", "text", "Be brief."], ["user", "text", "two"]],
    }
    assert program.sent()[1:] == [["user", "text", "one"], ["assistant", "text", "1"], *told[program.name]]


def test_results_as_the_newest_turn_arrive_with_their_call(program: Program) -> None:
    program.ask(*TEN_TURNS[:4], user(answered("call_a", "FILE BODY"), answered("call_b", "a\nb"), "/And now?"))
    assert program.sent()[1:] == [*TEN_SENT[:8], ["user", "text", "/And now?"]]
    result = program.ask(*TEN_TURNS[:4], user(answered("call_a", "FILE BODY"), answered("call_b", "a\nb")))
    if program.name == "claude":
        assert (program.sent()[1:], result["losses"]) == (TEN_SENT[:8], [])
    else:  # its stdin must hold something
        assert program.sent()[1:] == [*TEN_SENT[:8], ["user", "text", "Continue."]]
        assert [loss["action"] for loss in result["losses"]] == ["synthesised"]


def test_every_call_has_one_result(program: Program) -> None:
    result = program.ask(user("a"), turn("assistant", called("x y", "List.it"), called("call_1")),
                         user(answered("call_1", "one"), "b"), turn("assistant", called("call_1")),
                         user(answered("call_1", "two"), answered("gone", "three"), "c"))  # fmt: skip
    sent = program.sent()
    calls = [what[0] for _, kind, what in sent if kind == "call"]
    assert calls == [what[0] for _, kind, what in sent if kind == "result"]
    assert len(set(calls)) == 3
    assert {loss["action"] for loss in result["losses"]} == {"renamed", "synthesised", "dropped"}


def test_foreign_reasoning_is_dropped_and_listed_and_own_goes_back(program: Program) -> None:
    first = program.ask(user("a"), scenario="think")
    assert [(part["type"], part["text"]) for part in first["parts"]][0] == ("reasoning", "pondering")
    back = turn("assistant", *first["parts"], origin=first["origin"])
    second = program.ask(user("a"), back, user("b"), scenario="think")
    assert (["assistant", "thinking", "c2lnbmF0dXJl"] in program.sent()) == (program.name == "claude")
    assert [loss["action"] for loss in second["losses"]] == ([] if program.name == "claude" else ["dropped"])
    foreign = turn("assistant", {"type": "reasoning", "text": "hm"}, "x", origin={"api": "google", "model": "g"})
    third = program.ask(user("a"), foreign, user("b"))
    assert "hm" not in json.dumps(program.sent())
    assert [loss["action"] for loss in third["losses"]] == ["dropped"]


def test_the_same_prefix_gives_the_same_bytes(program: Program) -> None:
    ends = [n for n in range(1, 11) if TEN_TURNS[n - 1]["role"] == "user"]
    histories = []
    for end in ends:
        request = {"system": "S", "turns": TEN_TURNS[:end], "schema": None}
        made = program.module.session(program.target(), request)
        again = program.module.session(program.target(), request)
        assert made == again
        if program.name == "claude":
            histories.append(made["history"])
        else:  # its last line says that the history is over
            lines = codex.rollout(made["items"], codex.session_id(request)).splitlines(keepends=True)
            histories.append(b"".join(lines[:-1]))
    assert [later.startswith(earlier) for earlier, later in zip(histories, histories[1:], strict=False)] == [True] * 4
    program.ask(*TEN_TURNS[:2], user("b"))
    earlier_sent = program.sent()
    program.ask(*TEN_TURNS[:2], user("b"), turn("assistant", "c"), user("d"))
    assert program.sent()[: len(earlier_sent)] == earlier_sent


def test_a_megabyte_goes_both_ways(program: Program) -> None:
    prompt = "x" * (1 << 20)
    assert program.ask(user(prompt), scenario="echo")["parts"][0]["text"].endswith(prompt)
    program.ask(user(prompt), turn("assistant", prompt * 3), user("short"))
    assert program.sent()[1:3] == [["user", "text", prompt], ["assistant", "text", prompt * 3]]
    if program.name == "codex":
        failed = program.failure(user(prompt + "x"))
        assert (failed.code, failed.billed, len(program.calls())) == ("too_large", "no", 2)


def test_an_answer_whose_last_lines_were_lost_is_whole_if_the_vendor_ended_it() -> None:
    def event(**inner: Any) -> dict[str, Any]:
        return {"type": "stream_event", "event": inner}

    start = event(type="message_start", message={"id": "msg_1", "model": "m"})
    text = event(type="content_block_delta", delta={"type": "text_delta", "text": "all of it"})
    end = event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 3, "output_tokens": 4})
    result = claude.reply(claude.with_end([start, text, end]))
    assert result["parts"] == [{"type": "text", "text": "all of it"}]
    assert (result["finish"], result["model"]) == ("stop", "m")
    assert result["usage"] == {"input_tokens": 3, "cache_read_tokens": 0, "cache_write_tokens": 0, "output_tokens": 4}
    assert (result["cost_usd"], result["cost_source"]) == (None, None)
    assert claude.with_end([start, text]) == [start, text]


def test_no_model_is_the_programs_own(program: Program) -> None:
    result = program.ask(*TEN_TURNS, user("hi"), model=None)
    assert result["finish"] == "stop"
    sent = program.sent()  # where the system text stands is the model's choice
    assert [turn for turn in sent if turn[0] != "system"] == [*TEN_SENT, ["user", "text", "hi"]]
    assert [turn for turn in sent if turn[0] == "system"] == [["system", "text", "SYS"]]


def test_a_schema_makes_no_difference_to_whether_it_works(program: Program) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"],
              "additionalProperties": False}  # fmt: skip
    result = program.ask(*TEN_TURNS[:2], user("b"), scenario="json", schema=schema)
    assert result["parts"] == [{"type": "text", "text": '{"answer": 42}'}]
    if program.name == "codex":
        assert program.calls()[-1]["body"]["text"]["format"]["schema"] == schema


def test_options_are_the_vendors_own(program: Program) -> None:
    """As far as the program has them; what it has not is listed."""
    options = {"effort": "low", "verbosity": "high", "temperature": 0.5}
    result = program.ask(*TEN_TURNS[:2], user("b"), model=NEWEST[program.name], options=options)
    body, lost = program.calls()[-1]["body"], [loss["what"] for loss in result["losses"]]
    if program.name == "claude":
        assert (body["output_config"]["effort"], lost) == ("low", ["verbosity", "temperature"])
    else:
        assert (body["reasoning"]["effort"], body["text"]["verbosity"], lost) == ("low", "high", ["temperature"])


NEWEST = {"claude": "claude-opus-4-8", "codex": "gpt-5.5"}  # of those that the programs know; they have levels of effort


def test_text_streams_as_it_comes(program: Program) -> None:
    result = program.ask(user("hi"), scenario="slow")
    assert "".join(program.io.pieces) == result["parts"][0]["text"]
    assert len(program.io.pieces) == (4 if program.name == "claude" else 1)


@pytest.mark.parametrize(
    ("scenario", "code", "billed", "most_calls"),
    [
        ("401", "auth", "no", 2),
        ("403", "permission", "no", 1),
        ("429", "rate_limit", "no", 2),
        ("500", ("server", "overloaded"), "no", 2),
        ("529", "overloaded", "no", 2),
        ("413", "too_large", "no", 3),
        ("cut", "cut", "unknown", 1),
        ("reset", "cut", "unknown", 1),
        ("html", ("malformed", "cut"), "unknown", 1),
        ("empty", "empty", "yes", 2),
    ],
)
def test_failures_have_their_causes(
    program: Program, scenario: str, code: str | tuple[str, ...], billed: str, most_calls: int
) -> None:
    failed = program.failure(*TEN_TURNS, user("hi"), scenario=scenario)
    assert failed.code in ((code,) if isinstance(code, str) else code)
    assert failed.billed == billed
    assert not str(failed).startswith(program.name), "who was asked is said by the command"
    assert len(program.calls()) <= most_calls
    if scenario == "cut" and program.name == "claude":
        assert failed.result is not None
        assert (failed.result["parts"], failed.result["finish"]) == ([{"type": "text", "text": "half an ans"}], "error")


@pytest.mark.parametrize(("scenario", "finish"), [("length", ("length",)), ("refusal", ("refusal", "filter"))])
def test_an_answer_cut_short_by_the_vendor_is_an_answer_and_says_so(
    program: Program, scenario: str, finish: tuple[str, ...]
) -> None:
    result = program.ask(user("hi"), scenario=scenario)
    assert result["finish"] in finish
    assert result["parts"][0]["text"].startswith("LOOPBACK-OK")


@pytest.mark.parametrize("program", [claude], ids=["claude"], indirect=True)
def test_a_limit_of_the_answer_is_held(program: Program) -> None:
    result = program.ask(user("hi"), scenario="length", max_tokens=77)
    call = program.calls()[0]  # it has the answer continued, and may have sent that before it was ended
    assert (call["body"]["max_tokens"], result["finish"], result["usage"]["output_tokens"]) == (77, "length", 23)
    assert result["parts"] == [{"type": "text", "text": "".join(program.io.pieces)}]


def test_a_refused_connection_is_known(program: Program) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failed = program.failure(base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    assert (failed.code, failed.billed, failed.retryable) == ("network", "no", True)


@pytest.mark.parametrize("scenario", ["hang", "stall"])
def test_the_deadline_ends_the_whole_group(program: Program, scenario: str) -> None:
    request = {"system": None, "turns": [user("hi")], "schema": None}
    with pytest.raises(CallFailed) as caught:
        program.module.call(program.target(scenario), request, Brief(program.calls))
    assert (caught.value.code, caught.value.billed) == ("timeout", "unknown")
    assert len(program.calls()) == 1


def test_until_it_begins_to_answer_there_is_a_limit_of_its_own(program: Program) -> None:
    failed = program.failure(scenario="hang", first_byte_s=0.5)
    assert (failed.code, failed.billed, str(failed)) == ("timeout", "unknown", "no answer within 0.5 s")
    assert program.ask(user("hi"), scenario="slow", first_byte_s=LONG_S)["finish"] == "stop"


def test_four_at_once(program: Program) -> None:
    said: dict[int, str] = {}

    def one(number: int) -> None:
        request = {"system": None, "turns": [*TEN_TURNS, user(f"I am {number}")], "schema": None}
        said[number] = program.module.call(program.target("echo"), request, Io())["parts"][-1]["text"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    assert said == {number: f"I am {number}" for number in range(4)}


def test_the_child_has_its_own_vendors_variables_and_no_others(program: Program, house: Path) -> None:
    seen: list[bytes] = []

    def looked_at() -> list[bytes]:
        if program.calls() and not seen:
            seen.extend(told_to(str(house)))
        return seen

    request = {"system": "SYS", "turns": [user("the prompt")], "schema": None}
    with pytest.raises(CallFailed, match="late"):
        program.module.call(program.target("hang"), request, Brief(looked_at))
    everything = b"\0".join(seen)
    assert b"sk-canary-key" in everything
    assert b"sk-canary-env" not in everything
    assert b"sk-canary-key" not in b"".join(seen[1::2])
    assert b"the prompt" not in everything


def test_a_key_of_another_name_is_used_and_a_missing_one_named(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS[program.name])
    monkeypatch.setenv("WORK_KEY", "sk-canary-key")
    program.ask(user("hi"), key_env="WORK_KEY")
    headers = program.calls()[-1]["headers"]
    assert headers.get("x-api-key", headers.get("authorization")) == "***"
    failed = program.failure(key_env="NO_KEY")
    assert (failed.code, failed.billed) == ("auth", "no")
    assert str(failed) == "NO_KEY is not set; it should hold the key"


def test_usable_says_why_not(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert program.module.usable({}) == ""
    monkeypatch.delenv(KEYS[program.name])
    assert program.module.usable({}).startswith("no key (export ")
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / program.name
    other.write_text("#!/bin/sh\necho another tool 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv(KEYS[program.name], "sk-canary-key")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert program.module.usable({}).startswith(f"{other} is another program of that name")
    other.unlink()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert program.module.usable({}) == f"{program.name}: no such program on PATH; install it or fix PATH"
    shutil.rmtree(tmp_path / "bin")


def test_preview_shows_the_call_and_no_key(program: Program) -> None:
    request = {"system": "SYS", "turns": [*TEN_TURNS, user("/newest")], "schema": None}
    shown = program.module.preview(program.target(), request)
    assert shown["argv"][0] == program.name
    assert "/newest" in shown["stdin"]
    assert "my name is Ada" in json.dumps(shown["files"])
    assert "sk-canary" not in json.dumps(shown)


def test_a_login_is_used_and_neither_moved_nor_copied(
    program: Program, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS[program.name])
    home = house / "home"
    if program.name == "claude":
        token = {"accessToken": "sk-ant-oat01-x", "refreshToken": "r", "expiresAt": 4102444800000,
                 "scopes": ["user:inference"], "subscriptionType": "max"}  # fmt: skip
        (home / ".claude/.credentials.json").write_text(json.dumps({"claudeAiOauth": token}))
        program.ask(user("before"))  # the first start of all makes its state in the home
        before = files(house)
        program.ask(*TEN_TURNS, user("/foo @/etc/hostname"))
        assert files(house) == before
        assert program.calls()[-1]["headers"]["authorization"] == "***"
        assert program.sent()[1:] == [*TEN_SENT, ["user", "text", "/foo @/etc/hostname"]]
        assert (program.failure(scenario="cut").code, len(program.server.calls("cut"))) == ("cut", 1)
        for path in before:
            if "backups" in path or path.endswith(".claude.json"):
                os.unlink(path)
    else:
        (home / ".codex/auth.json").write_text('{"OPENAI_API_KEY": "sk-old"}')
        with codex._login_in(str(house / "tmp"), shared=True):
            assert (house / "tmp/auth.json").read_text() == '{"OPENAI_API_KEY": "sk-old"}'
            (house / "tmp/auth.json").unlink()  # what codex does not do today
            (house / "tmp/auth.json").write_text("renewed")
        assert (home / ".codex/auth.json").read_text() == "renewed"
        (house / "tmp/auth.json").unlink()
    (home / (".claude/.credentials.json" if program.name == "claude" else ".codex/auth.json")).unlink()


def test_a_subscription_of_codex_is_used_and_no_cut_answer_is_asked_for_again(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it logs in with ChatGPT: only where that is is told to it by a script, for it asks nobody else of itself."""
    if not (real := shutil.which("codex")):
        pytest.skip("codex is not on PATH, nor in $MLLM_TEST_PROGRAMS")
    claims = {"exp": 4102444800, "https://api.openai.com/auth": {"chatgpt_account_id": "acc", "chatgpt_plan_type": "pro"}}
    token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
                     for part in ({"alg": "none"}, claims, "signed"))  # fmt: skip
    tokens = {"id_token": token, "access_token": token, "refresh_token": "r", "account_id": "acc"}
    login = json.dumps({"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2099-01-01T00:00:00Z"})
    (house / "bin").mkdir()
    script = house / "bin/codex"
    script.touch(0o755)
    monkeypatch.setenv("PATH", f"{house}/bin:{os.environ['PATH']}")
    before = files(house)
    with pytest.raises(CallFailed, match="no login"):  # nobody is asked without one
        codex.call({"model": "m"}, {"system": None, "turns": [user("hi")], "schema": None}, Io())
    (house / "home/.codex/auth.json").write_text(login)
    with serve("responses") as server, serve("responses") as backend:
        program = Program(codex, server)

        def at(scenario: str) -> None:
            settings = {"model_providers.mllm.base_url": server.url(scenario, "/v1"), "chatgpt_base_url": backend.url("ok")}
            more = " ".join(f"-c '{name}=\"{value}\"'" for name, value in settings.items())
            script.write_text(f'#!/bin/sh\nexec {real} "$@" -c features.enable_request_compression=false {more}\n')

        at("ok")
        program.ask(*TEN_TURNS, user("/foo @/etc/hostname $foo"), base_url=None)
        headers = program.calls()[0]["headers"]
        assert (headers["authorization"], headers["chatgpt-account-id"]) == ("***", "acc")
        assert program.sent()[1:] == [*TEN_SENT, ["user", "text", "/foo @/etc/hostname $foo"]]
        for scenario, code in (("cut", "cut"), ("429", "rate_limit")):
            at(scenario)
            assert program.failure(base_url=None).code == code
            assert len(server.calls(scenario)) <= 2 and (scenario != "cut" or len(server.calls(scenario)) == 1)
    assert files(house) == sorted([*before, f"{house}/home/.codex/auth.json"])
    assert (house / "home/.codex/auth.json").read_text() == login


def test_an_interrupted_call_leaves_nothing(program: Program, house: Path) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted

    over = threading.Event()

    def when_it_hangs() -> None:
        while not program.calls():
            if over.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    (sender := threading.Thread(target=when_it_hangs)).start()
    try:
        with pytest.raises(Interrupted):
            program.ask(user("hi"), scenario="hang")
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
