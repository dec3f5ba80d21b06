"""Retries and fallbacks: what is asked again, what never is, and what the span says of it."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest
from loopback import serve
from loopback.chaos import Chaos

from mllm_pipe.runtimes import _faults


@pytest.fixture
def chat():
    with serve("chat") as server:
        yield server


def ask(sh, server, scenario: str, *flags: str, prompt: str = "q"):
    line = f"dispatch --to openai-chat/m --base-url {server.url(scenario)}/v1 --new {prompt} {' '.join(flags)}"
    return sh(f"{line} | cat; exit ${{PIPESTATUS[0]}}", OPENAI_API_KEY="sk-canary")


def attempts(ran) -> list[tuple]:
    span = next(record for record in ran.records if record["type"] == "span")
    return [(attempt["runtime"], attempt["status"], attempt.get("code")) for attempt in span["attempts"]]


def test_a_busy_server_is_asked_again_after_the_wait_it_asks_for(sh, chat):
    ran = ask(sh, chat, "429x2~a")
    assert (ran.status, ran.err) == (0, "")
    assert attempts(ran) == [("openai-chat", "error", "rate_limit")] * 2 + [("openai-chat", "ok", None)]
    span = next(record for record in ran.records if record["type"] == "span")
    assert [attempt.get("wait_ms") for attempt in span["attempts"]] == [None, 1000, 1000], "retry-after: 1"
    assert span["duration_ms"] >= 2000 and len(chat.calls()) == 3


def said_of(tag: str) -> list[str]:
    """The statuses that dispatch(1) names under Failures, at this tag."""
    page = (Path(__file__).resolve().parent.parent / "man" / "dispatch.1").read_text()
    entry = page.partition(".SS Failures")[2].partition(f".B {tag}\n")[2].partition("\n.TP")[0]
    return re.findall(r"\b[45]\d\d\b", entry)


def test_what_the_page_says_is_asked_again_is_and_what_it_says_is_unknown_is_not(sh, chat):
    again, unknown = said_of("asked again"), said_of("unknown")
    assert again == ["429", "500", "502", "503", "529"] and unknown == ["408", "499", "504", "524"]
    for status in range(400, 600):
        said = _faults.of_reply(status, {}, b"")
        named = str(status) in again or status >= 500 and str(status) not in unknown
        assert (said.retryable, said.billed) == (named, "unknown" if str(status) in unknown else "no"), status
    for status, times, billed in [("502", 2, "no"), ("507", 2, "no"), ("504", 1, "unknown"), ("409", 1, "no")]:
        before = len(chat.calls())
        ran = ask(sh, chat, status, "--max-retries 1")
        assert (status, len(chat.calls()) - before) == (status, times)
        assert [one["billed"] for one in ran.records if one["type"] == "error"] == [billed]


def test_it_gives_up_after_the_retries_and_says_so(sh, chat):
    ran = ask(sh, chat, "503", "--max-retries 1")
    assert ran.status == 75
    assert ", gave up after 2 tries" in ran.err
    assert len(chat.calls()) == 2


def test_a_wait_beyond_the_cap_or_the_deadline_is_not_waited_for(sh, chat):
    assert ask(sh, chat, "429", "--retry-after-cap 0.5").status == 75
    assert len(chat.calls()) == 1
    with Chaos() as server:
        url = server.url("retry-after-999999", "openai-chat", "/v1")
        ran = sh(f"dispatch --to vllm/m --base-url {url} --retry-after-cap 1999999 --timeout 30 --new q > out")
        assert (ran.status, server.asked.total()) == (75, 1)


@pytest.mark.parametrize("scenario", ["400", "401", "403", "404", "413", "cut", "reset", "empty", "html"])
def test_a_wrong_request_and_an_unsure_one_are_never_asked_again(sh, chat, scenario):
    ran = ask(sh, chat, scenario)
    assert ran.status not in (0, 75)
    assert len(chat.calls()) == 1


def test_silence_is_unknown_and_goes_to_the_fallback_alone(sh, chat):
    ran = ask(sh, chat, "hang", "--first-token 3", "--fallback exec:cat")  # cat, too, must be started by then
    assert (ran.status, ran.err) == (0, "")
    assert attempts(ran) == [("openai-chat", "unknown", "timeout"), ("exec", "ok", None)]
    assert ran.records[2]["author"]["runtime"] == "exec" and len(chat.calls()) == 1


def test_a_program_that_is_silent_goes_to_the_fallback_and_one_that_has_begun_does_not(sh):
    ran = sh("dispatch -q --to 'exec:sleep 60' --first-token 3 --fallback exec:cat --new q | cat")
    assert (ran.status, ran.err) == (0, "")
    assert attempts(ran) == [("exec", "unknown", "timeout"), ("exec", "ok", None)]
    slow = "exec:sh -c 'echo begun; sleep 5.5; echo done'"
    assert sh(f'dispatch -q --to "{slow}" --first-token 5 --new q --text') == (0, "begun\ndone\n", "")


def test_fallbacks_are_asked_in_order_and_the_one_that_answered_is_named(sh, chat):
    ran = ask(sh, chat, "401", "--fallback exec:false", "--fallback echo", "--fallback exec:cat", prompt="hello")
    assert ran.status == 0
    assert attempts(ran) == [("openai-chat", "error", "auth"), ("exec", "unknown", "exit"), ("echo", "ok", None)]
    span = next(record for record in ran.records if record["type"] == "span")
    assert (span["runtime"], span["model"], span["status"], span["cost_usd"]) == ("echo", "echo", "ok", 0)
    assert ran.records[2]["content"] == "hello"


def test_a_refusal_is_nobody_elses_to_get_around(sh, chat):
    ran = ask(sh, chat, "refusal", "--fallback echo")
    assert ran.status == 5
    assert len(attempts(ran)) == 1


def test_an_unknown_fallback_is_a_usage_error_before_anything_is_sent(sh, chat):
    ran = ask(sh, chat, "ok", "--fallback ecko")
    assert ran.status == 2 and chat.calls() == []


def test_a_judge_has_fallbacks_too(sh, chat):
    line = f"judge --by openai-chat/m --base-url {chat.url('401')}/v1 --fallback echo --rubric correctness -q"
    assert sh(f"dispatch --to echo --new q | {line} >/dev/null", OPENAI_API_KEY="k").status == 0


def test_what_is_too_long_goes_to_a_larger_window_alone(sh):
    """gpt-4 reads 8,192 tokens: there is no use in asking it a second time."""
    with Chaos() as server:
        there = {"OPENAI_BASE_URL": server.url("too-long", "openai", "/v1"), "OPENAI_API_KEY": "sk-x",
                 "ANTHROPIC_BASE_URL": server.url("early-hints", "anthropic"), "ANTHROPIC_API_KEY": "sk-x"}  # fmt: skip
        ran = sh("dispatch --to openai/gpt-4 --fallback openai/gpt-4 --fallback anthropic/claude-haiku-5-5 --new q > t; cat t", **there)
        assert (ran.status, ran.err) == (0, "")
        assert attempts(ran) == [("openai", "error", "too_large"), ("anthropic", "ok", None)]
        assert sh("dispatch --to openai/gpt-4 --fallback openai/gpt-4 --new q > t", **there).status == 3
        assert server.asked == {"too-long/openai": 2, "early-hints/anthropic": 1}


@pytest.mark.parametrize("fault", ["content-policy", "policy-400"])
@pytest.mark.parametrize("dialect", ["openai-chat", "openai", "anthropic", "google"])
def test_what_is_against_a_policy_is_asked_nowhere_else(sh, fault, dialect):
    with Chaos() as server:
        base = server.url(fault, dialect, "/v1" if dialect.startswith("openai") else "")
        ran = sh(f"dispatch --to {dialect}/m --base-url {base} --key-env K --retry-unknown --fallback echo --new q > t", K="k")
        assert ran.status == 5 and server.asked.total() == 1


def test_a_fallback_starts_clean(sh, chat):
    """It is sent what the first was sent, and nothing of what came of that; who looks on is not shown one text of two."""
    ran = ask(sh, chat, "cut", "--fallback", "exec:cat", prompt="hello")
    assert (ran.status, ran.records[2]["content"]) == (0, "hello")
    line = f"dispatch --to openai-chat/m --base-url {chat.url('cut')}/v1 --fallback exec:cat --new hello"
    shown = sh(f"script -qec '{line}' /dev/null < /dev/null", OPENAI_API_KEY="k").out.replace("\r\n", "\n")
    assert re.fullmatch(r"half an ans\ndispatch: thread \S+: openai-chat: the answer ended without a finish reason; exec is "
                        r"asked instead\nhello\n", shown), shown  # fmt: skip


def test_what_came_before_another_was_asked_is_in_the_journal(sh, home, chat):
    """Half an answer may have to be paid for as a whole one."""
    for flags in (["--fallback", "echo"], ["--fallback", "exec:false"], ["--retry-unknown", "--max-retries", "1"]):
        ask(sh, chat, "cut", *flags)
    outcomes = [entry for entry in map(orjson.loads, (home / ".local/state/mllm-pipe/journal.jsonl").read_bytes().splitlines())
                if entry["type"] == "outcome"]  # fmt: skip
    half = {"runtime": "openai-chat", "model": "m", "code": "cut", "parts": [{"type": "text", "text": "half an ans"}]}
    assert [outcome.get("cut") for outcome in outcomes] == [[half], [half], [half]]
    assert [record.get("content") for record in outcomes[2]["records"]] == [None, "half an ans"]


def test_a_runtime_may_have_limits_of_its_own(sh, home):
    (home / ".config/mllm-pipe").mkdir(parents=True)
    with Chaos() as server:
        url = server.url("stall-mid-body", "openai-chat", "/v1")
        text = f'[runtimes.slow]\nkind = "openai-chat"\nmodel = "m"\nbase_url = "{url}"\n'
        (home / ".config/mllm-pipe/mllm.toml").write_text(text + "timeout_s = 0.5\n")
        ran = sh("dispatch --to slow --new q --text")
        assert ran.status == 124 and "no whole answer within 0.5 s" in ran.err
    (home / ".config/mllm-pipe/mllm.toml").write_text(text + 'timeout_s = "long"\n')
    ran = sh("dispatch --to slow --new q --text")
    assert ran.status == 2 and ran.err.endswith("mllm.toml:5: runtimes.slow.timeout_s is no number of seconds up to 2000000\n")


# -- what was found by trying hard


def test_a_character_that_two_events_share_is_put_together(sh):
    """A server that counts in UTF-16 may cut an emoji in two; a half that stays alone is U+FFFD."""
    import http.server
    import threading

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for piece in ("hi \\ud83d", "\\ude00 yo \\ud83d."):
                self.wfile.write(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % piece.encode())
            self.wfile.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        ran = sh(f"dispatch --to vllm/m --base-url {url} --new q --text")
        server.shutdown()
    assert ran == (0, "hi \U0001f600 yo \ufffd.\n", "")


def test_what_a_signal_cut_off_is_in_the_journal(sh, work, home):
    (work / "bot.py").write_text(
        "import fcntl, os, signal, struct, termios\n"
        "for piece in (b'half', b'more'):  # when the second has been read, the first has been dealt with\n"
        "    os.write(1, piece)\n"
        "    while struct.unpack('i', fcntl.ioctl(1, termios.FIONREAD, bytes(4)))[0]:\n"
        "        pass\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    assert sh("dispatch --to 'exec:python3 bot.py' --new q; exit $?").status in (-15, 143)
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_text()
    assert '"status":"unknown"' in journal and '"content":"half' in journal


def test_where_an_answer_is_that_could_not_be_written(sh, home):
    ran = sh("dispatch --to exec:cat --new precious > /dev/full")
    assert ran.err == (f"dispatch: stdout cannot be written: No space left on device; what was answered is in "
                       f"{home}/.local/state/mllm-pipe/journal.jsonl, see mllm-pipe(7)\n")  # fmt: skip
    again = sh("jq -c 'select(.type == \"outcome\").records[]' ~/.local/state/mllm-pipe/journal.jsonl | thread-append t | cat")
    assert again.kinds() == "begin span assistant ok end"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(("given", "status"), [("", 2), ("COMP_WORDS=route", 2), ("COMP_CWORD=1", 2), ("COMP_WORDS='route --ev' COMP_CWORD=1", 0)])
def test_completions_are_for_a_shell(sh, shell, given, status):
    ran = sh(f"{given} _ROUTE_COMPLETE={shell}_complete route")
    assert (ran.status, ran.err) == (status, "route: _ROUTE_COMPLETE is for a shell, which sets COMP_WORDS and COMP_CWORD too; unset it\n" if status else "")


def test_the_place_of_what_is_completed_is_a_number(sh):
    assert sh("COMP_WORDS=route COMP_CWORD=x _ROUTE_COMPLETE=bash_complete mllm route") == (
        2, "", "route: _ROUTE_COMPLETE is for a shell, which sets COMP_WORDS and COMP_CWORD too; unset it\n")  # fmt: skip


@pytest.mark.parametrize("command", ["dispatch --to echo", "thread-append --new", "judge --rubric", "mllm validate"])
def test_an_argument_that_is_no_utf8_is_refused(sh, command):
    ran = sh(f"{command} \"$(printf 'caf\\xe9')\" </dev/null")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"{command.split()[0]}: the argument 'caf\\udce9' is no UTF-8\n"


@pytest.mark.parametrize("check", ['exec:sh -c "kill -9 $$"', "exec:sh -c no-such-command"])
def test_a_check_that_could_not_judge_is_no_negative_verdict(sh, check):
    ran = sh(f"dispatch --to echo --new q | judge --check '{check}' | tail -n 2; exit ${{PIPESTATUS[1]}}")
    assert ran.status == 3 and ran.records[0]["status"] == "failed"


def test_a_regex_that_a_text_keeps_busy_ends_at_the_timeout(sh):
    line = f"dispatch --to echo --new {'a' * 42}b | judge --check 'regex:^(a+)+$' --timeout 0.5 >/dev/null"
    assert sh(line).status == 124


def test_a_schema_fetches_nothing(sh, work):
    (work / "s.json").write_text('{"$ref":"http://127.0.0.1:9/x"}')
    ran = sh("dispatch --to echo --new 1 | judge --check schema:s.json")
    assert ran.status == 2
    assert ran.err.startswith("judge: --check schema:s.json: it refers to http://127.0.0.1:9/x; nothing is fetched")


def test_an_answer_that_is_not_whole_is_not_judged_from_a_file_either(sh, work):
    (work / "t").write_text('{"v":1,"type":"message","thread":"t","id":"q","role":"user","content":"q"}\n'
                            '{"v":1,"type":"message","thread":"t","id":"a","role":"assistant","content":"x","finish":"length","reply_to":"q"}\n')  # fmt: skip
    ran = sh("judge --check regex:. < t | tail -n 2; exit ${PIPESTATUS[0]}")
    assert ran.status == 5
    assert ran.err == "judge: thread t: answer a is not whole (length); ask again with: thread-append FILE --at q TEXT\n"


def test_help_into_a_pipe_that_nobody_reads_is_141(sh):
    assert sh("{ dispatch --help; echo $? >&2; } | :").err in ("141\n", "0\n"), "0 if it was faster than its reader"
    assert sh("mllm").status == 2 and sh("mllm").err.startswith("Usage: mllm")


def test_a_home_that_is_nowhere_or_relative_is_not_written_to(sh, work):
    assert sh("dispatch --to echo --new x --text", XDG_STATE_HOME="relative") == (0, "x\n", "")
    assert not (work / "relative").exists()


@pytest.mark.parametrize("spec", ["openai-chat:m", "openai:gpt-5.4", "anthropic:claude-opus-4-8", "google:gemini-3-pro"])
@pytest.mark.parametrize("more", ["?key=%s", "#%s"])
def test_a_base_url_that_ends_in_a_query_is_refused(sh, spec, more):
    """What the API's path is put behind would be its query: the request went elsewhere, with the key."""
    secret = "k" * 20
    keys = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"), "x")
    ran = sh(f"dispatch --to {spec} --base-url 'http://127.0.0.1:9/v1{more % secret}' --new q", **keys)
    assert ran.status == 2 and secret not in ran.out + ran.err
    assert ran.err.endswith(": 'http://127.0.0.1:9/v1' has a ? or a #; a base URL ends with a path, like https://host/v1\n")


def test_a_base_url_that_will_not_do_is_told_by_doctor(sh):
    ran = sh("mllm doctor", OPENAI_BASE_URL="http://127.0.0.1:9/v1?a=b")
    assert ran.status == 0 and ran.out.count("has a ? or a #") == 2
