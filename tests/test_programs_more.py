"""gemini and opencode themselves, on loopback: the laws of test_programs, with fewer calls, for they start slowly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_programs
from loopback import code_assist, serve
from programs import (
    KEYS,
    LONG_S,
    MODELS,
    ODD_PROMPTS,
    PDF,
    PNG,
    SENT,
    TEN_SENT,
    TEN_TURNS,
    Brief,
    Program,
    answered,
    called,
    carrying,
    files,
    places_of,
    told_to,
    turn,
    user,
)

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import gemini, opencode

house = test_programs.house

DIALECTS = {"gemini": "google", "opencode": "chat"}


@pytest.fixture(params=[gemini, opencode], ids=["gemini", "opencode"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Each of the programs, with a key; afterwards nothing of it is left, and nothing of ours went out."""
    place: Path = request.getfixturevalue("house")
    module = request.param
    name = module.__name__.rpartition(".")[2]
    if not shutil.which(name):
        pytest.skip(f"{name} is not on PATH, nor in $MLLM_TEST_PROGRAMS")
    for other in [other for other in os.environ if other.startswith(("GEMINI_", "GOOGLE_", "OPENCODE"))]:
        monkeypatch.delenv(other)
    for other in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENCODE_API_KEY" if name == "gemini" else "GEMINI_API_KEY"):
        monkeypatch.setenv(other, "sk-canary-env")
    monkeypatch.setenv(KEYS[name], "sk-canary-key")
    home = place / "home"
    for path in (".gemini/commands", ".gemini/skills/foo", ".config/opencode", ".opencode/command"):
        (home / path).mkdir(parents=True)
    for path in (".gemini/commands/help.toml", ".gemini/commands/mllm.toml"):
        (home / path).write_text('prompt = "CANARY-FILE"\n')
    for path in (".gemini/GEMINI.md", ".config/opencode/AGENTS.md", ".opencode/command/help.md"):
        (home / path).write_text("CANARY-FILE\n")
    (place / "tmp/.env").write_text("GOOGLE_CLOUD_PROJECT=CANARY-FILE\n")
    before = files(place)
    with serve(DIALECTS[name]) as server:
        yield Program(module, server)
        assert "CANARY" not in json.dumps(server.requests)
        assert "sk-canary" not in json.dumps(server.requests)
        assert [r["path"] for r in server.requests if not r["call"]] == []
    late = time.monotonic() + LONG_S  # what was killed may take a moment to be gone from /proc
    while carrying(str(place)) not in ([], [os.getpid()]) and time.monotonic() < late:
        time.sleep(0.05)
    assert carrying(str(place)) in ([], [os.getpid()])
    assert (files(place), os.listdir(place / "tmp")) == (before, [".env"])


only_gemini = pytest.mark.parametrize("program", [gemini], ids=["gemini"], indirect=True)
only_opencode = pytest.mark.parametrize("program", [opencode], ids=["opencode"], indirect=True)


def test_ten_turns_with_calls_arrive_as_turns(program: Program) -> None:
    system = "You are @/etc/hostname.\n\n{env:MY_SECRET} {file:/etc/hostname} Line two"
    result = program.ask(*TEN_TURNS, user("And the newest, @/etc/hostname?"), system=system, scenario="slow")
    assert program.sent() == [
        ["system", "text", system],
        *TEN_SENT,
        ["user", "text", "And the newest, @/etc/hostname?"],
    ]
    said = result["parts"][0]["text"]
    assert said.startswith("LOOPBACK-OK turns=")
    assert ("".join(program.io.pieces), len(program.io.pieces)) == (said, 4)
    assert (result["parts"], result["finish"], result["losses"]) == ([{"type": "text", "text": said}], "stop", [])
    assert len(program.calls()) == 1
    assert not program.calls()[0]["body"].get("tools", [{}])[0].get("functionDeclarations")
    expected = {"input_tokens": 31, "cache_read_tokens": 7, "cache_write_tokens": 0, "reasoning_tokens": 3,
                "output_tokens": 13}  # fmt: skip
    if program.name == "gemini":  # whose vendor does not count the reasoning with the answer, and tells no writes
        expected |= {"output_tokens": 16}
        del expected["cache_write_tokens"]
        assert (result["model"], result["provider"]) == ("gemini-2.5-flash", "google")
        assert result["origin"]["response_id"].startswith("r")
    else:
        assert (result["model"], result["provider"]) == ("m1", "loop")
    assert (result["usage"], result["cost_usd"], result["cost_source"]) == (expected, None, None)


def test_no_prompt_of_the_history_is_an_option_a_command_or_a_mention(program: Program) -> None:
    odd = [*ODD_PROMPTS, "?x", "<session_context>x", "<hook_context>x", "{env:MY_SECRET}", "!{ls}", "@{/etc/hostname}"]
    both = [made for prompt in odd for made in (user(prompt), turn("assistant", prompt))]
    program.ask(*both, user(odd[0]))
    expected = [[role, "text", prompt] for prompt in odd for role in ("user", "assistant")]
    assert program.sent()[1:] == [*expected, ["user", "text", odd[0]]]


@pytest.mark.parametrize("prompt", ["/help @/etc/hostname $foo", "-x", " a\0b\u2028c\x1b[31m\r\nd\n\n"], ids=repr)
@only_opencode
def test_no_newest_prompt_is_an_option_a_command_or_a_mention(program: Program, prompt: str) -> None:
    program.ask(user(prompt))
    assert program.sent() == [["system", "text", "SYS"], ["user", "text", prompt]]


def test_a_turn_of_several_texts_and_a_picture_arrives_whole(program: Program) -> None:
    picture = {"type": "file", "media_type": "image/png", "data": PNG}
    several = user("/two", picture, "three")
    result = program.ask(user("one"), turn("assistant", "a"), several, turn("assistant", "b"), several)
    if program.name == "gemini":
        whole = [["user", "text", "/two"], ["user", "image", PNG], ["user", "text", "three"]]
    else:  # its stdin can be nothing but one text
        whole = [["user", "image", PNG], ["user", "text", "/two\n\nthree"]]
    assert program.sent()[3:] == [*whole, ["assistant", "text", "b"], *whole]
    assert result["losses"] == []


def test_a_pdf_arrives(program: Program) -> None:
    program.ask(user(PDF, "one"), turn("assistant", "a"), user("two"))
    (place,) = places_of(PDF["data"], program.calls()[-1]["body"])
    assert place == {"gemini": ["contents", 0, "parts", 0, "inlineData", "data"],
                     "opencode": ["messages", 1, "content", 0, "file", "file_data"]}[program.name]  # fmt: skip


def test_system_text_after_the_question_arrives_after_it(program: Program) -> None:
    program.ask(user("one"), turn("assistant", "1"), user("two"), turn("system", "Be brief."))
    assert program.sent()[1:] == [
        ["user", "text", "one"], ["assistant", "text", "1"], ["user", "text", "two"],
        ["user", "text", "<system>\nBe brief.\n</system>"]]  # fmt: skip


def test_results_as_the_newest_turn_arrive_with_their_call(program: Program) -> None:
    newest = user(answered("call_a", "FILE BODY"), answered("call_b", "a\nb"))
    result = program.ask(*TEN_TURNS[:4], newest)
    if program.name == "gemini":
        assert (program.sent()[1:], result["losses"]) == (TEN_SENT[:8], [])
    else:
        assert program.sent()[1:] == [*TEN_SENT[:8], ["user", "text", "Continue."]]
        assert [loss["action"] for loss in result["losses"]] == ["synthesised"]


def test_every_call_has_one_result(program: Program) -> None:
    failed = answered("call_1", "two") | {"is_error": True}
    result = program.ask(user("a"), turn("assistant", called("x y", "List.it"), called("call_1")),
                         user(answered("call_1", "one"), "b"), turn("assistant", called("call_1")),
                         user(failed, answered("gone", "three"), "c"))  # fmt: skip
    sent = program.sent()
    calls = [what[0] for _, kind, what in sent if kind == "call"]
    assert calls == [what[0] for _, kind, what in sent if kind == "result"]
    assert [what[1] for _, kind, what in sent if kind == "result"] == ["not executed", "one", "two"]
    assert len(set(calls)) == 3
    assert {loss["action"] for loss in result["losses"]} == {"renamed", "synthesised", "dropped"}


def test_reasoning_is_dropped_and_listed(program: Program) -> None:
    result = program.ask(user("a"), scenario="think")
    said = [(part["type"], part["text"]) for part in result["parts"]]
    assert said[:-1] == ([] if program.name == "gemini" else [("reasoning", "pondering")])
    assert "".join(program.io.pieces) == said[-1][1]
    foreign = turn("assistant", {"type": "reasoning", "text": "hm"}, "x", origin={"api": "other", "model": "g"})
    request = {"system": None, "turns": [user("a"), foreign, user("b")], "schema": None}
    made = program.module.session(program.target(), request)
    assert "hm" not in str(made)
    assert [loss["action"] for loss in made["losses"]] == ["dropped"]


def test_the_same_prefix_gives_the_same_bytes(program: Program) -> None:
    sent: list[Any] = []
    for end in [n for n in range(1, 11) if TEN_TURNS[n - 1]["role"] == "user"]:
        request = {"system": "S", "turns": TEN_TURNS[:end], "schema": None}
        made = program.module.session(program.target(), request)
        assert made == program.module.session(program.target(), request)
        if program.name == "gemini":
            now = made["history"].splitlines()
        else:
            now = [*made["messages"], {"role": "user", "parts": [{"type": "text", "text": made["stdin"]}]}]
            idents = [message["info"]["id"] for message in opencode.document(made, "/x")["messages"]]
            assert idents == sorted(idents)
        assert now[: len(sent)] == sent
        sent = now


def test_a_megabyte_goes_both_ways(program: Program) -> None:
    prompt = "x" * (1 << 20)
    newest = prompt[:300_000] if program.name == "gemini" else prompt  # all of it stands in one file
    result = program.ask(user(prompt), turn("assistant", prompt), user(newest), scenario="echo")
    assert program.sent()[1:] == [["user", "text", prompt], ["assistant", "text", prompt], ["user", "text", newest]]
    assert result["parts"] == [{"type": "text", "text": newest}]
    if program.name == "gemini":
        failed = program.failure(user(prompt * 4 + "x"))
        assert (failed.code, failed.billed, len(program.calls())) == ("too_large", "no", 1)


@only_gemini
def test_a_schema_and_a_limit_are_the_vendors_own(program: Program) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    result = program.ask(user("a"), scenario="json", schema=schema, max_tokens=77, model=None, system=None)
    assert result["parts"] == [{"type": "text", "text": '{"answer": 42}'}]
    (call,) = program.calls()
    config = call["body"]["generationConfig"]
    assert (config["responseJsonSchema"], config["maxOutputTokens"]) == (schema, 77)
    assert "flash" in result["model"]
    assert program.sent() == [["system", "text", "You are a helpful assistant."], ["user", "text", "a"]]


@only_gemini
def test_options_are_the_vendors_own(program: Program) -> None:
    options = {"effort": "low", "temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": 3, "stop": ["X"], "verbosity": "low"}
    result = program.ask(user("a"), options=options)
    config = program.calls()[-1]["body"]["generationConfig"]
    sent = {"temperature": 0.5, "topP": 0.25, "topK": 7, "seed": 3, "stopSequences": ["X"]}
    assert ({name: config[name] for name in sent}, config["thinkingConfig"]["thinkingBudget"]) == (sent, 1024)
    assert [loss["what"] for loss in result["losses"]] == ["verbosity"]
    program.ask(user("a"), options={"effort": "max"}, model="gemini-3.8-flash")
    assert program.calls()[-1]["body"]["generationConfig"]["thinkingConfig"]["thinkingLevel"] == "XHIGH"


@only_opencode
def test_a_limit_is_sent_and_a_model_needs_its_provider(program: Program) -> None:
    program.ask(user("a"), max_tokens=77, system=None)
    assert program.calls()[-1]["body"]["max_tokens"] == 77
    assert program.sent() == [["system", "text", "You are a helpful assistant."], ["user", "text", "a"]]
    for model in (None, "m1"):
        with pytest.raises(Usage):
            program.ask(user("a"), model=model)


@only_gemini
def test_what_the_program_fills_in_is_broken_and_listed(program: Program) -> None:
    result = program.ask(user("a"), system="${AvailableTools} ${read_file_ToolName} ${x}\n\n\n\nb")
    assert program.sent()[0] == ["system", "text", "$ {AvailableTools} $ {read_file_ToolName} ${x}\n\nb"]
    assert [loss["action"] for loss in result["losses"]] == ["downgraded", "dropped"]


def test_failures_have_their_causes(program: Program) -> None:
    expected = {"401": ("auth", "no"), "404": ("bad_model", "no"), "429": ("rate_limit", "no"), "500": ("server", "no"),
                "cut": ("cut", "unknown"),
                "html": ("malformed" if program.name == "gemini" else "cut", "unknown"),
                "empty": ("empty", "yes")}  # fmt: skip
    for scenario, failed in program.outcomes(list(expected)):
        assert isinstance(failed, CallFailed), scenario
        assert (scenario, failed.code, failed.billed) == (scenario, *expected[scenario])
        assert len(program.server.calls(scenario)) == 1
        if scenario.isdigit():
            assert failed.http_status == int(scenario)
            assert str(failed).startswith(f"{scenario} loopback says {scenario}")
        if scenario == "429" and program.name == "opencode":
            assert failed.retry_after_s == 1.0
        if scenario == "cut":
            assert failed.result is not None
            assert failed.result["parts"] == [{"type": "text", "text": "half an ans"}]
            assert failed.result["finish"] == "error"


def test_an_answer_cut_short_by_the_vendor_is_an_answer_and_says_so(program: Program) -> None:
    finishes = {"length": "length", "refusal": "filter"}
    for scenario, result in program.outcomes(list(finishes)):
        assert isinstance(result, dict), scenario
        assert result["finish"] == finishes[scenario]
        assert result["parts"][0]["text"].startswith("LOOPBACK-OK")


def test_a_refused_connection_is_known(program: Program) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        failed = program.failure(base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
    # gemini does not say whether a connection was refused or lost
    assert (failed.code, failed.billed) == ("network", "unknown" if program.name == "gemini" else "no")


@pytest.mark.parametrize("scenario", ["hang", "stall"])
def test_the_deadline_ends_the_whole_group(program: Program, scenario: str) -> None:
    io = Brief(lambda: io.pieces if scenario == "stall" else program.calls())
    request = {"system": None, "turns": [user("hi")], "schema": None}
    with pytest.raises(CallFailed) as caught:
        program.module.call(program.target(scenario), request, io)
    assert (caught.value.code, caught.value.billed) == ("timeout", "unknown")
    assert len(program.calls()) == 1
    if scenario == "stall":
        assert caught.value.result is not None
        assert caught.value.result["parts"] == [{"type": "text", "text": "half an ans"}]


def test_until_it_begins_to_answer_there_is_a_limit_of_its_own(program: Program) -> None:
    failed = program.failure(scenario="hang", first_byte_s=0.5)
    assert (failed.code, failed.billed, str(failed)) == ("timeout", "unknown", "no answer within 0.5 s")
    assert program.ask(user("hi"), scenario="slow", first_byte_s=LONG_S)["finish"] == "stop"


def test_four_at_once(program: Program) -> None:
    def one(number: int) -> str:
        return str(program.ask(user(f"I am {number}"), scenario="echo")["parts"][-1]["text"])

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(one, range(4)))
    assert said == [f"I am {number}" for number in range(4)]


@contextmanager
def once_called(program: Program, act: Callable[[], None]) -> Iterator[None]:
    """Does `act` in a thread as soon as the server has a call, if that comes before the end of the block."""
    over = threading.Event()

    def wait() -> None:
        while not program.calls():
            if over.wait(0.01):
                return
        act()

    (waiter := threading.Thread(target=wait)).start()
    try:
        yield
    finally:
        over.set()
        waiter.join()


def test_the_child_has_its_own_vendors_variables_and_no_others(program: Program, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def looked_at() -> list[bytes]:
        if program.calls() and not seen:
            seen.extend(told_to(str(tmp_path)))
        return seen

    request = {"system": "the system text", "turns": [user("the prompt")], "schema": None}
    with pytest.raises(CallFailed, match="late"):
        program.module.call(program.target("hang"), request, Brief(looked_at))
    everything = b"\0".join(seen)
    assert b"sk-canary-key" in everything
    assert b"sk-canary-env" not in everything
    assert b"sk-canary-key" not in b"".join(seen[1::2])
    assert b"the prompt" not in everything
    assert b"the system text" not in everything


def test_a_key_of_another_name_is_used_and_a_missing_one_named(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS[program.name])
    monkeypatch.setenv("WORK_KEY", "sk-canary-key")
    program.ask(user("hi"), key_env="WORK_KEY")
    headers = program.calls()[-1]["headers"]
    assert headers.get("x-goog-api-key", headers.get("authorization")) == "***"
    failed = program.failure(key_env="NO_KEY")
    assert (failed.code, failed.billed) == ("auth", "no")
    assert str(failed) == "NO_KEY is not set; it should hold the key"


def test_usable_says_why_not(program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = {"model": MODELS[program.name]}
    assert program.module.usable(target) == ""
    monkeypatch.delenv(KEYS[program.name])
    assert program.module.usable(target).startswith("no key (export ")
    (tmp_path / "bin").mkdir()
    other = tmp_path / "bin" / program.name
    other.write_text("#!/bin/sh\necho another tool 1.0\n")
    other.chmod(0o755)
    monkeypatch.setenv(KEYS[program.name], "sk-canary-key")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    assert program.module.usable(target).startswith(f"{other} is another program of that name")
    other.unlink()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert program.module.usable(target) == f"{program.name}: no such program on PATH; install it or fix PATH"
    shutil.rmtree(tmp_path / "bin")


def test_preview_shows_the_call_and_no_key(program: Program) -> None:
    request = {"system": "SYS", "turns": [*TEN_TURNS, user("/newest")], "schema": None}
    shown = program.module.preview(program.target(), request)
    assert shown["argv"][0] == program.name
    assert "/newest" in json.dumps([shown["stdin"], shown["files"]])
    assert "/newest" not in json.dumps(shown["argv"])
    assert "my name is Ada" in json.dumps(shown["files"])
    assert "sk-canary" not in json.dumps(shown)


@only_opencode
def test_a_login_is_used_and_neither_moved_nor_copied(
    program: Program, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEYS[program.name])
    login = house / "home/.local/share/opencode/auth.json"
    login.parent.mkdir(parents=True)
    login.write_text('{"loop": {"type": "api", "key": "sk-canary-login"}}')
    program.ask(*TEN_TURNS, user("/foo @/etc/hostname"))
    (call,) = program.calls()
    assert call["headers"]["authorization"] == "***"
    assert program.sent()[1:] == [*TEN_SENT, ["user", "text", "/foo @/etc/hostname"]]
    assert login.read_text() == '{"loop": {"type": "api", "key": "sk-canary-login"}}'
    shutil.rmtree(house / "home/.local")


def test_a_subscription_of_gemini_is_used_and_no_cut_answer_is_asked_for_again(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it logs in with Google: only where that is is told to it by a script, for it asks nobody else of itself."""
    if not (real := shutil.which("gemini")):
        pytest.skip("gemini is not on PATH, nor in $MLLM_TEST_PROGRAMS")
    for name in [name for name in os.environ if name.startswith(("GEMINI_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    login = {"access_token": "ya29.x", "refresh_token": "r", "scope": "cloud-platform", "token_type": "Bearer",
             "expiry_date": 4102444800000}  # fmt: skip
    for path, text in ((".gemini/oauth_creds.json", json.dumps(login)), (".gemini/google_accounts.json", '{"active": "a@b.c"}')):
        (house / "home" / path).parent.mkdir(exist_ok=True)
        (house / "home" / path).write_text(text)
    (house / "bin").mkdir()
    (house / "bin/hook.js").write_text(code_assist.HOOK)
    script = house / "bin/gemini"
    script.touch(0o755)
    monkeypatch.setenv("PATH", f"{house}/bin:{os.environ['PATH']}")
    before = files(house)
    with serve("code_assist") as server:
        program = Program(gemini, server)

        def at(scenario: str) -> None:
            script.write_text(f'#!/bin/sh\nexport CODE_ASSIST_ENDPOINT={server.url(scenario)} '
                              f'NODE_OPTIONS=--require={house}/bin/hook.js\nexec {real} "$@"\n')  # fmt: skip

        at("ok")
        result = program.ask(*TEN_TURNS, user("/help @/etc/hostname"), base_url=None)
        (call,) = program.calls()
        assert (result["finish"], call["headers"]["authorization"]) == ("stop", "***")
        assert SENT["gemini"](call["body"]["request"])[1:] == [*TEN_SENT, ["user", "text", "/help @/etc/hostname"]]
        for scenario, code in (("cut", "cut"), ("429", "rate_limit")):
            at(scenario)
            assert (program.failure(base_url=None).code, len(server.calls(scenario))) == (code, 1)
    assert files(house) == before
    assert json.loads((house / "home/.gemini/oauth_creds.json").read_text()) == login


def test_an_interrupted_call_leaves_nothing(program: Program) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted), once_called(program, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
            program.ask(user("hi"), scenario="hang")
    finally:
        signal.signal(signal.SIGUSR1, before)
