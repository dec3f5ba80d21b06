"""Laws that hold against a real model server: llama-server, with a model of random weights (tests/peers/build.sh).

Skipped where the two are not built; with PEERS=1 they are built first, which takes minutes. What the model says is
noise, so nothing is asked of it; the server's own record of a call (/slots: the text that the model read, and what it
said) is the oracle. The server has faults of its own, see `fault`: a call that meets one is made again, a few times.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Ran, environment
from recorded import Io, asked

from mllm_pipe.envelope import new_id, timestamp
from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import load

PEERS = Path(__file__).parent / "peers"
DIALECTS = ["openai-chat", "openai", "anthropic"]
KEY = "sk-peer"
TRIES = 8
WINDOW = 8192  # tokens of each of the four slots

WEATHER = {
    "name": "weather",
    "description": "The weather of the next days.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
ENDLESS = ["--ignore-eos", "--context-shift"]  # flags by which an answer ends at --max-tokens alone
FOR_EVER = 1_000_000_000


# -- the server -------------------------------------------------------------------------------------------------------


class Peer:
    """A running llama-server."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url, self.process = url, process

    def get(self, path: str) -> Any:
        """What the server says at a path."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def newest(self) -> dict[str, Any]:
        """The newest call: `prompt` is what the model read, `generated` what it said."""
        slot: dict[str, Any] = max(self.get("/slots"), key=lambda slot: slot.get("id_task", -1))
        # half a character at the end is in the server's record, and never sent
        return slot | {"generated": slot["generated"].rstrip("\ufffd")}

    def busy(self) -> int:
        """How many slots are at work."""
        return sum(slot["is_processing"] for slot in self.get("/slots"))


@contextmanager
def serving(log: Path, *flags: str) -> Iterator[Peer]:
    """A llama-server on a free port, until it is no longer wanted."""
    program = [str(built() / "llama-server"), "--host", "127.0.0.1", "--port", "0", "--api-key", KEY, "--offline", "--no-ui"]
    env = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "LLAMA_SERVER_SLOTS_DEBUG": "1"}
    with open(log, "wb") as out:
        process = subprocess.Popen([*program, *flags], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:

        def address() -> str:
            assert process.poll() is None, log.read_text()
            found = re.search(r"listening on (http://127\.0\.0\.1:\d+)\s", log.read_text(errors="replace"))
            return found[1] if found else ""

        peer = Peer(until(address, 60), process)
        until(lambda: peer.get("/health")["status"] == "ok", 60)
        yield peer
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def built() -> Path:
    """The folder with the server and the model; skips the test where there is none."""
    script = [str(PEERS / "build.sh")]
    if os.environ.get("PEERS") != "1":
        script.append("--cached")
    ran = subprocess.run(script, stdout=subprocess.PIPE, text=True)
    if ran.returncode and script[1:]:
        pytest.skip("no model server: tests/peers/build.sh builds one, or PEERS=1")
    assert ran.returncode == 0
    return Path(ran.stdout.strip())


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Waits until a condition gives something, and fails when it does not."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        threading.Event().wait(0.01)
    return found


def model() -> list[str]:
    """The flags by which a server has the model."""
    return ["-m", str(built() / "tiny.gguf"), "--alias", "tiny", "--jinja", "--chat-template-file", str(PEERS / "tools.jinja"),
            "-c", str(4 * WINDOW), "-np", "4", "-t", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The server of all tests that leave it alive."""
    with serving(tmp_path_factory.mktemp("peer") / "log", *model()) as running:
        yield running


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A server whose answers have no end."""
    with serving(tmp_path_factory.mktemp("endless") / "log", *model(), *ENDLESS) as running:
        yield running


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A server that has models by their names, and none of them here."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "models").mkdir()
    with serving(folder / "log", "--models-dir", str(folder / "models"), "--no-models-autoload") as running:
        yield running


@pytest.fixture
def begun(home: Path, work: Path) -> Iterator[Callable[[str, Peer], subprocess.Popen[bytes]]]:
    """Starts a dispatch that asks for an endless answer, and waits until the server is at it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(dialect: str, server: Peer) -> subprocess.Popen[bytes]:
        line = f"exec dispatch -q --new {to(dialect)} --max-tokens {FOR_EVER} 'Tell me all.'"
        env = environment(home, PEER=server.url, PEER_KEY=KEY)
        pipe = subprocess.PIPE
        process = subprocess.Popen(["bash", "-c", line], cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        started.append(process)
        until(server.busy)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# -- a call -----------------------------------------------------------------------------------------------------------


def to(dialect: str, name: str = "tiny") -> str:
    """The flags of dispatch that name the server."""
    return f'--to {dialect}/{name} --base-url "$PEER/v1" --key-env PEER_KEY'


def target(peer: Peer, dialect: str) -> dict[str, Any]:
    """The same for a runtime's `call`."""
    return {"spec": dialect, "runtime": dialect, "kind": dialect, "model": "tiny", "base_url": f"{peer.url}/v1",
            "key_env": "PEER_KEY", "max_tokens": 2000}  # fmt: skip


@pytest.fixture
def run(sh: Any, peer: Peer) -> Callable[..., Ran]:
    """Runs a line of shell that asks the server, again where it meets a fault of the server."""

    def line(text: str) -> Ran:
        def attempt() -> tuple[str, Ran]:
            ran = sh(text, PEER=peer.url, PEER_KEY=KEY)
            return "; ".join(filter(None, map(fault, ran.records))), ran

        return sound(attempt)

    return line


def fault(record: dict[str, Any]) -> str:
    """Which fault of the server a record tells of, or ""."""
    if record["type"] == "error" and record["code"] == "empty":
        return "it ended at once"
    if record["type"] == "error" and record["code"] == "server" and "does not match the expected" in record["message"]:
        return "it gave up on its own output"
    asked = record["type"] == "span" and record.get("op") != "tool"
    if asked and record["status"] == "ok" and "input_tokens" not in record["usage"]:
        return "it left out message_start"  # so it does when the first token is half a character
    return ""


def sound(attempt: Callable[[], tuple[str, Any]]) -> Any:
    """The first outcome without a fault of the server."""
    faults = []
    for _ in range(TRIES):
        why, outcome = attempt()
        if not why:
            return outcome
        faults.append(why)
    raise AssertionError(f"faults of the server alone: {faults}")


def called(peer: Peer, dialect: str, request: dict[str, Any]) -> tuple[dict[str, Any], Io]:
    """What a runtime's `call` gives, and what was heard of it."""

    def attempt() -> tuple[str, Any]:
        io = Io()
        try:
            result = load(dialect).call(target(peer, dialect), request, io)
        except CallFailed as failure:
            why = fault({"type": "error", "code": failure.code, "message": str(failure)})
            if not why:
                raise
            return why, None
        return fault({"type": "span", "status": "ok"} | result), (result, io)

    result: tuple[dict[str, Any], Io] = sound(attempt)
    return result


def of_kind(ran: Ran, kind: str) -> list[dict[str, Any]]:
    """The records of a type."""
    return [record for record in ran.records if record["type"] == kind]


def answer(ran: Ran) -> dict[str, Any]:
    """The newest answer."""
    return [record for record in ran.records if record.get("role") == "assistant"][-1]


def text(content: Any) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def read(*messages: tuple[str, str]) -> str:
    """What the model reads of messages: the template, by hand."""
    turns = [f"<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>" for role, said in messages]
    return "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def tokens(prompt: str) -> int:
    """The tokens of what the model reads: those with bars are one, other bytes one each."""
    return len(re.sub(r"<\|\w+\|>", "!", prompt).encode())


def thread(*messages: dict[str, Any]) -> str:
    """The messages as a shell line that writes them as a thread."""
    lines = "\n".join(json.dumps(message) for message in messages)
    return f"thread-append - <<'EOF'\n{lines}\nEOF\n"


# -- the laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_span_has_the_tokens_that_the_server_counted(run, peer, dialect):
    ran = run(f"dispatch -q --new --system 'Be brief.' {to(dialect)} 'Grüße, 世界'")
    call, said, [span] = peer.newest(), answer(ran), of_kind(ran, "span")
    assert (ran.status, ran.err) == (0, "")
    assert call["prompt"] == read(("system", "Be brief."), ("user", "Grüße, 世界"))
    assert text(said["content"]).rstrip("\ufffd") == call["generated"]
    assert said["finish"] == "stop" and said["author"]["model"] == span["model"] == "tiny"
    assert span["usage"]["input_tokens"] == tokens(call["prompt"])
    assert 0 < span["usage"]["output_tokens"] >= len(call["generated"])
    assert 0 < span["first_token_ms"] <= span["duration_ms"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_comes_in_pieces(peer, monkeypatch, dialect):
    monkeypatch.setenv("PEER_KEY", KEY)
    pieces = 0
    for number in range(TRIES):
        result, io = called(peer, dialect, asked(("user", f"Tell me more. {number}")))
        assert "".join(io.heard) == text(result["parts"])
        assert text(result["parts"]).rstrip("\ufffd") == peer.newest()["generated"]
        pieces = max(pieces, len(io.heard))
    assert pieces > 3


@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic"])  # its Responses say "completed" of a cut answer, too
def test_the_token_limit_ends_an_answer_and_says_so(sh, endless, dialect):
    ran = sh(f"dispatch -q --new {to(dialect)} --max-tokens 16 'Tell me all.'", PEER=endless.url, PEER_KEY=KEY)
    [error], [span] = of_kind(ran, "error"), of_kind(ran, "span")
    assert (ran.status, error["code"], error["billed"]) == (5, "length", "yes")
    assert answer(ran)["finish"] == "length" and text(answer(ran)["content"]).rstrip("\ufffd") == endless.newest()["generated"]
    assert span["usage"]["output_tokens"] == 16


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_forced_tool_is_called_with_arguments_that_hold_to_its_schema(peer, monkeypatch, dialect):
    monkeypatch.setenv("PEER_KEY", KEY)
    request = asked(("user", "Will it rain?"), tools=[WEATHER], tool_choice="required")
    result, io = called(peer, dialect, request)
    calls = [part for part in result["parts"] if part["type"] == "tool_call"]
    assert result["finish"] == "tool" and calls and result["usage"]["output_tokens"] > 0
    assert len({call["id"] for call in calls}) == len(calls)
    for call in calls:
        assert call["name"] == "weather" and "arguments_raw" not in call
        jsonschema.validate(call["arguments"], WEATHER["parameters"])
    assert "".join(io.heard) == text(result["parts"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_tool_is_forced_from_the_shell_and_a_program_answers_it(run, work, dialect):
    (work / "tool.json").write_text(json.dumps(WEATHER))
    ran = run(f"dispatch -q --new {to(dialect)} --tool tool.json --tool-choice required --run-tools 'exec:echo dry' "
              "--max-turns 1 'Will it rain?'; test $? = 4")  # fmt: skip
    called = [part for part in answer(ran)["content"] if part["type"] == "tool_call"]
    told = [part for record in of_kind(ran, "message") if record["role"] == "tool" for part in record["content"]]
    assert ran.status == 0 and called and [call["name"] for call in called] == ["weather"] * len(called)
    assert [(part["call_id"], part["content"]) for part in told] == [(call["id"], "dry") for call in called]


@pytest.mark.parametrize("taker", DIALECTS)
@pytest.mark.parametrize("maker", DIALECTS)
def test_who_comes_next_reads_the_call_and_its_result(run, peer, monkeypatch, work, maker, taker):
    monkeypatch.setenv("PEER_KEY", KEY)
    request = asked(("user", "Will it rain?"), tools=[WEATHER], tool_choice="required")
    result, _ = called(peer, maker, request)
    calls = [part for part in result["parts"] if part["type"] == "tool_call"]
    results = [{"type": "tool_result", "call_id": call["id"], "name": "weather", "content": f"dry {number}"}
               for number, call in enumerate(calls)]  # fmt: skip
    author = {"agent": "assistant", "runtime": maker, "model": "tiny", "provider": result["provider"]}
    (work / "tool.json").write_text(json.dumps(WEATHER))
    said = {"role": "assistant", "content": result["parts"], "author": author, "origin": result["origin"], "finish": "tool"}
    asked_first = thread({"role": "user", "content": "Will it rain?"}, said, {"role": "tool", "content": results})
    ran = run(f"dispatch -q {to(taker)} --strict --tool tool.json --max-tokens 500 < <({asked_first})")
    assert ran.err == "" and answer(ran)["finish"] == "stop"
    prompt = peer.newest()["prompt"]
    assert "".join(f"<|start_header_id|>ipython<|end_header_id|>\n\n{part['content']}<|eot_id|>" for part in results) in prompt
    named = re.findall(r'\{"name": "weather", "parameters": (.*?)\}(?=\{"name": |<\|eot_id\|>)', prompt)
    assert [json.loads(arguments) for arguments in named] == [call["arguments"] for call in calls]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_history_of_ten_turns_is_read_as_it_is(run, peer, dialect):
    history = [("user" if number % 2 == 0 else "assistant", f"Nº {number}:\n\"tab\t\\\" ✓") for number in range(21)]
    written = thread(*({"role": role, "content": said} for role, said in history))
    ran = run(f"dispatch -q {to(dialect)} --strict < <({written})")
    assert (ran.status, ran.err) == (0, "")
    assert peer.newest()["prompt"] == read(*history)
    assert of_kind(ran, "span")[0]["usage"]["input_tokens"] == tokens(read(*history))


def test_a_thread_goes_from_dialect_to_dialect_and_its_beginning_is_in_the_cache(run, peer):
    first, *others = [to(dialect) for dialect in DIALECTS]
    ran = run(" | ".join([f"dispatch -q --new {first} 'A. ' ", *(f"dispatch -q {other} --strict 'More.'" for other in others)]))
    assert (ran.status, ran.err) == (0, "")
    said = [(record["role"], text(record["content"])) for record in of_kind(ran, "message")]
    assert [role for role, _ in said] == ["user", "assistant"] * 3
    assert peer.newest()["prompt"] == read(*said[:-1])
    usages = [span["usage"] for span in of_kind(ran, "span")]
    assert [usage["input_tokens"] for usage in usages] == [tokens(read(*said[:end])) for end in (1, 3, 5)]
    assert all(after["cache_read_tokens"] >= before["input_tokens"] for before, after in zip(usages, usages[1:], strict=False))


def test_a_schema_that_the_server_enforces_is_held_to(run):
    ran = run(f"dispatch -q --new {to('openai-chat')} --schema 'name, age int' 'Who are you?'")
    [data] = [part["value"] for part in answer(ran)["content"] if part["type"] == "data"]
    assert (ran.status, ran.err) == (0, "")
    assert sorted(data) == ["age", "name"] and type(data["age"]) is int and type(data["name"]) is str


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_schema_that_the_server_passes_over_is_told_after_one_repair(run, dialect):
    ran = run(f"dispatch -q --new {to(dialect)} --schema 'name, age int' 'Who are you?'")
    assert ran.status == 5 and len(of_kind(ran, "span")) == 2
    assert [error["code"] for error in of_kind(ran, "error")] == ["schema"]


def test_four_at_once_get_each_their_own(run):
    lines = [f"dispatch -q --new {to(DIALECTS[number % 3])} '{'x' * number} at once' > {number}.jsonl" for number in range(4)]
    ran = run(" & ".join(lines) + " & wait; cat ?.jsonl")
    spans, prompts = of_kind(ran, "span"), [m["content"] for m in of_kind(ran, "message") if m["role"] == "user"]
    assert (ran.status, ran.err) == (0, "")
    assert prompts == ["x" * number + " at once" for number in range(4)]
    assert [span["usage"]["input_tokens"] for span in spans] == [tokens(read(("user", said))) for said in prompts]


def test_a_batch_comes_to_its_end_whatever_some_answers_are(sh, peer, work):
    threads = [{"v": 1, "type": "message", "thread": f"t{number}", "id": new_id(), "at": timestamp(), "role": "user",
                "content": f"Number {number}?"} for number in range(60)]  # fmt: skip
    lines = [{"v": 1, "type": "begin", "at": timestamp()}, *threads, {"v": 1, "type": "end", "threads": 60}]
    (work / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = sh(f"timeout 90 dispatch -q {to('openai-chat')} < batch.jsonl", PEER=peer.url, PEER_KEY=KEY)
    ended = {r["thread"] for r in ran.records if r["type"] == "error" and fault(r) or r.get("role") == "assistant"}
    assert ended == {f"t{number}" for number in range(60)}, ran.status


@pytest.mark.parametrize("dialect, way", [("openai-chat", "INT"), ("openai", "TERM"), ("anthropic", "KILL"), ("openai", "PIPE")])
def test_who_ends_dispatch_ends_the_work_of_the_server(begun, endless, dialect, way):
    process = begun(dialect, endless)
    if way == "PIPE":
        process.stdout.close()  # the reader leaves, and no signal is sent
    else:
        process.send_signal(getattr(signal, f"SIG{way}"))
    until(lambda: not endless.busy())
    assert process.wait(10) % 256 in {128 + getattr(signal, f"SIG{way}"), 256 - getattr(signal, f"SIG{way}")}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_deadline_ends_the_work_of_the_server_and_keeps_what_had_come(sh, endless, dialect):
    ran = sh(f"dispatch -q --new {to(dialect)} --max-tokens {FOR_EVER} --timeout 3 'Tell me all.'", PEER=endless.url, PEER_KEY=KEY)
    [error] = of_kind(ran, "error")
    assert (ran.status, error["code"], error["billed"]) == (124, "timeout", "unknown")
    assert text(error["content"])
    until(lambda: not endless.busy())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_server_that_dies_leaves_what_had_come(begun, tmp_path, dialect):
    with serving(tmp_path / "log", *model(), *ENDLESS) as mortal:
        process = begun(dialect, mortal)
        until(lambda: mortal.newest()["next_token"][0]["n_decoded"] > 20)
        mortal.process.kill()
        out, err = process.communicate(timeout=20)
    [error] = of_kind(Ran(process.returncode, out.decode(), err.decode()), "error")
    assert (process.returncode, error["code"], error["billed"]) == (3, "cut", "unknown")
    assert text(error["content"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_prompt_beyond_the_window_is_too_large(run, dialect):
    ran = run(f"dispatch -q {to(dialect)} < <({thread({'role': 'user', 'content': 'x' * WINDOW})})")
    [error] = of_kind(ran, "error")
    assert (ran.status, error["code"], error["billed"]) == (3, "too_large", "no")
    assert ran.err.count("\n") == 1 and "exceeds the available context size" in ran.err


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_wrong_key_is_refused_and_not_shown(sh, peer, dialect):
    ran = sh(f"dispatch -q --new {to(dialect)} hi", PEER=peer.url, PEER_KEY="sk-of-somebody-else")
    [error] = of_kind(ran, "error")
    assert (ran.status, error["code"], error["billed"]) == (77, "auth", "no")
    assert "sk-of" not in ran.out + ran.err


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_model_that_the_server_does_not_have_is_told(sh, library, dialect):
    ran = sh(f"dispatch -q --new {to(dialect, 'nope')} hi", PEER=library.url, PEER_KEY=KEY)
    [error] = of_kind(ran, "error")
    assert (ran.status, error["code"], error["billed"]) == (3, "bad_model", "no")
    assert ran.err.count("\n") == 1 and "model 'nope' not found" in ran.err


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_server_that_gives_up_within_an_answer_is_told_as_a_fault_of_the_server(peer, monkeypatch, dialect):
    monkeypatch.setenv("PEER_KEY", KEY)
    for number in range(100):  # a brace where a tool may be called is enough, one answer in eight has it
        try:
            load(dialect).call(target(peer, dialect), asked(("user", f"Well? {number}"), tools=[WEATHER]), Io())
        except CallFailed as failure:
            if failure.code != "empty":
                assert failure.code == "server" and "does not match the expected" in str(failure)
                return
    raise AssertionError("the server gave up on nothing")
