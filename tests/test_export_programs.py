"""Sessions that the real programs made themselves, taken to each of the others, resumed there by their own command.

Servers on loopback hear what each program sends. Set MLLM_TEST_PROGRAMS to a folder that has the programs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Ran, environment
from loopback import Loopback, serve
from programs import claude_sent, opencode_sent

from mllm_pipe import sessions
from mllm_pipe.sessions.gemini import HIDDEN

PROGRAMS = os.environ.get("MLLM_TEST_PROGRAMS", "")
PATHS = PROGRAMS + os.pathsep + os.environ["PATH"]
pytestmark = [
    pytest.mark.skipif(
        not all(shutil.which(name, path=PATHS) for name in sessions.PROGRAMS),
        reason="claude, codex, gemini and opencode are not installed: .ci/run does it",
    ),
    pytest.mark.xdist_group("export"),  # each program makes its session once for all
]
DIALECT = {"claude": "anthropic", "codex": "responses", "gemini": "google", "opencode": "chat"}
PAIRS = [(source, target) for source in sessions.PROGRAMS for target in sessions.PROGRAMS if source != target]
ASKED = "What is 2+2?"


class House:
    """A home, a directory to work in, and the programs with their servers: `ask` has one of them answer there."""

    def __init__(self, home: Path, work: Path, servers: dict[str, Loopback]) -> None:
        self.home, self.work, self.servers = home, work, servers

    def sh(self, line: str, scenario: str = "ok") -> Ran:
        url = {name: server.url(scenario) for name, server in self.servers.items()}
        opencode = {"provider": {"loop": {"npm": "@ai-sdk/openai-compatible", "models": {"m1": {}},
                                          "options": {"baseURL": url["opencode"] + "/v1", "apiKey": "x"}}},
                    "model": "loop/m1", "share": "disabled", "autoupdate": False}  # fmt: skip
        env = environment(
            self.home, ANTHROPIC_BASE_URL=url["claude"], ANTHROPIC_API_KEY="sk-ant-canary-1",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", OPENAI_API_KEY="sk-canary-2",
            GEMINI_API_KEY="canary-3", GOOGLE_GEMINI_BASE_URL=url["gemini"], GEMINI_CLI_TRUST_WORKSPACE="true",
            GEMINI_CLI_NO_RELAUNCH="true", OPENCODE_CONFIG_CONTENT=json.dumps(opencode),
            **{f"OPENCODE_DISABLE_{name}": "1" for name in ("AUTOUPDATE", "MODELS_FETCH", "DEFAULT_PLUGINS",
                                                             "LSP_DOWNLOAD", "SHARE")},
        )  # fmt: skip
        env["PATH"] = f"{PROGRAMS}:{env['PATH']}"
        ran = subprocess.run(["bash", "-c", line], cwd=self.work, env=env, capture_output=True, text=True, timeout=900)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def ask(self, program: str, prompt: str, resume: str = "", scenario: str = "ok") -> Ran:
        provider = f'model_providers.loop={{name="loop",base_url="{self.servers["codex"].url(scenario)}/v1"'
        provider += ',env_key="OPENAI_API_KEY",wire_api="responses"}'
        line = {
            "claude": f"claude -p --output-format json --model claude-sonnet-4-5 {resume and f'--resume {resume}'}",
            "codex": f"codex exec {resume and f'resume {resume} -'} --json --skip-git-repo-check -m gpt-5.5 "
                     f"-c model_provider=loop -c '{provider}' --disable plugins -c analytics.enabled=false "
                     "--disable unbounded_connection_retries",
            "gemini": f"gemini -o json -m gemini-2.5-flash {resume and f'--resume {resume}'}",
            "opencode": f"opencode run --format json -m loop/m1 {f'-s {resume}' if resume else '--title t'}",
        }[program]  # fmt: skip
        return self.sh(f"printf %s '{prompt}' | {line}", scenario)

    def copy(self, name: str) -> House:
        """The same in a home of its own. Codex has in a database where its sessions lie: it finds them without."""
        fresh = self.fresh(name)
        shutil.copytree(self.home, fresh.home, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sqlite*"))
        return fresh

    def fresh(self, name: str) -> House:
        """A new home, in which nothing was held yet."""
        home = self.home.with_name(name)
        shutil.rmtree(home, ignore_errors=True)
        (home / ".gemini").mkdir(parents=True)
        (home / ".gemini/settings.json").write_text(json.dumps({
            "security": {"auth": {"selectedType": "gemini-api-key"}}, "privacy": {"usageStatisticsEnabled": False},
            "general": {"enableAutoUpdate": False}}))  # fmt: skip
        return House(home, self.work, self.servers)

    def heard(self, program: str) -> list[list[Any]]:
        """What the program's server received last, as [role, kind, what], without what the program adds itself."""
        return HEARD[program](self.servers[program].calls()[-1]["body"])


def heard_claude(body: dict[str, Any]) -> list[list[Any]]:
    for message in body["messages"]:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    return [one for one in claude_sent(body) if one[0] != "system" and not (one[1] == "text" and one[2][:1] == "<")]


def heard_codex(body: dict[str, Any]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for item in body["input"]:
        if item["type"] == "function_call":
            found.append(["assistant", "call", [item["call_id"], item["name"], json.loads(item["arguments"])]])
        elif item["type"] == "function_call_output":
            found.append(["user", "result", [item["call_id"], item["output"]]])
        elif item["type"] == "message" and item["role"] != "developer":
            found += [[item["role"], "text", part["text"]] for part in item["content"] if part["text"][:1] not in "<["]
    return found


def heard_gemini(body: dict[str, Any]) -> list[list[Any]]:
    """Resuming its own sessions, gemini sends each result twice: the second is passed over."""
    found: list[list[Any]] = []
    for content in body["contents"]:
        role = "assistant" if content["role"] == "model" else "user"
        for part in content["parts"]:
            if "functionCall" in part:
                call = part["functionCall"]
                found.append([role, "call", [call["id"], call["name"], call["args"]]])
            elif "functionResponse" in part:
                result = part["functionResponse"]
                made = [role, "result", [result["id"], *result["response"].values()]]
                found += [made] if made not in found else []
            elif part != HIDDEN and not part["text"].startswith("<session_context>"):
                found.append([role, "text", part["text"]])
    return found


def heard_opencode(body: dict[str, Any]) -> list[list[Any]]:
    return [one for one in opencode_sent(body) if one[0] != "system" and one[2] != ""]


HEARD = {"claude": heard_claude, "codex": heard_codex, "gemini": heard_gemini, "opencode": heard_opencode}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A home in which each of the four has held a session with a tool call, by itself."""
    base = tmp_path_factory.mktemp("programs")
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serve(dialect)) for name, dialect in DIALECT.items()}
        (base / "work").mkdir()
        made = House(base / "any", base / "work", servers).fresh("home")
        for name in sessions.PROGRAMS:
            ran = made.ask(name, ASKED, scenario="tool")
            assert ran.status == 0, (name, ran)
            assert any(kind == "result" for _, kind, _ in made.heard(name)), name
        yield made


def exported(house: House, source: str, target: str) -> dict[str, Any]:
    ran = house.sh(f"thread-import --from {source} --last | thread-export -q --to {target} --format json")
    assert (ran.status, ran.err) == (0, ""), ran
    (made,) = ran.records
    return made


def check(turns: list[list[Any]]) -> None:
    """Every turn is there, and each call with exactly one result."""
    kinds = [kind for _, kind, _ in turns]
    assert kinds == ["text", "call", "result", "text", "text"], turns
    assert (turns[0][2], turns[4][2].strip()) == (ASKED, "next") and turns[3][2].startswith("LOOPBACK-OK")
    assert turns[1][2][0] == turns[2][2][0]
    assert "hi-from-tool" in str(turns[2][2][1]) or "Directory" in str(turns[2][2][1])


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_session_is_resumed_where_it_was_taken(house, source, target):
    there = house.copy("taken")
    made = exported(there, source, target)
    asked = there.ask(target, "next", made["session"])
    assert asked.status == 0, asked
    turns = there.heard(target)
    check(turns)


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_back_at_its_own_program_the_request_is_the_same(house, program):
    own, there = house.copy("own"), house.fresh("back")
    (row,) = own.sh(f"thread-import --from {program} --list").records
    taken = own.sh(f"thread-import --from {program} --last > {there.home}/t")
    assert (taken.status, taken.err) == (0, "")
    (made,) = there.sh(f"thread-export -q --to {program} --format json < {there.home}/t").records
    assert own.ask(program, "next", row["session"]).status == 0
    expected = own.heard(program)
    check(expected)
    assert there.ask(program, "next", made["session"]).status == 0
    assert there.heard(program) == expected


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_import_export_import_gives_the_same_records(house, program):
    first = house.sh(f"thread-import --from {program} --last > t; cat t").out
    fresh = house.fresh("fresh")
    (made,) = fresh.sh(f"thread-export -q --to {program} --format json < t").records
    assert made["session"] == orjson.loads(first.splitlines()[0])["thread"]
    again = fresh.sh(f"thread-import --from {program} --last > u; cat u")
    assert (again.status, again.err, again.out) == (0, "", first)


@pytest.mark.parametrize("target", sessions.PROGRAMS)
def test_a_thread_that_an_answer_begins_arrives_as_it_is(house, target):
    """Gemini puts a turn of its own first; opencode has no answer without a question, so it gets one."""
    there = house.fresh("begun")
    said = [["assistant", "Ahoy."], ["user", "Who is it?"], ["assistant", "A pilot."]]
    (there.home / "t").write_text("".join(
        json.dumps({"v": 1, "type": "message", "thread": "t", "id": str(number), "role": role, "content": text}) + "\n"
        for number, (role, text) in enumerate(said)))  # fmt: skip
    (made,) = there.sh(f"thread-export -q --to {target} --format json < {there.home}/t").records
    assert there.ask(target, "next", made["session"]).status == 0
    heard = [[role, what.strip()] for role, kind, what in there.heard(target)]
    assert heard == [*([["user", "."]] if target == "opencode" else []), *said, ["user", "next"]]


def test_what_the_system_was_told_is_told_codex_and_comes_back(house):
    there, said = house.fresh("system"), "Answer in French only."
    line = f"thread-append --new --thread s --system '{said}' Hi | dispatch -q --to echo | thread-export -q --to codex"
    (made,) = there.sh(f"{line} --format json").records
    assert there.ask("codex", "next", made["session"]).status == 0
    sent = there.servers["codex"].calls()[-1]["body"]["input"]
    (heard,) = [item for item in sent if item["type"] == "message" and item["content"][0]["text"] == said]
    assert heard["role"] == "developer"
    back = f"thread-import -q --from codex {made['session']} | jq -c 'select(.role)|[.role,.content]'"
    assert there.sh(back).out.splitlines()[:3] == [f'["system","{said}"]', '["user","Hi"]', '["assistant","Hi"]']


def test_reasoning_that_codex_gave_no_id_is_sent_again(house):
    there = house.fresh("reasoned")
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
             {"type": "reasoning", "summary": [], "encrypted_content": "c2VhbGVk"},
             {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]}]  # fmt: skip
    lines = [("response_item", one) for one in items] + [("token_usage_record", {"usage": {"input_tokens": 1}})]
    (there.home / "r.jsonl").write_text("".join(
        json.dumps({"timestamp": "2026-01-02T03:04:05.000Z", "type": kind, "payload": payload}) + "\n" for kind, payload in lines))
    line = f"thread-import --from codex {there.home}/r.jsonl | thread-export -q --to codex --format json"
    (made,) = there.sh(line).records
    assert there.ask("codex", "next", made["session"]).status == 0
    (thought,) = [one for one in there.servers["codex"].calls()[-1]["body"]["input"] if one["type"] == "reasoning"]
    assert thought["encrypted_content"] == "c2VhbGVk"


def test_the_headline(house):
    """Half-finished with Claude Code, finished by Codex, and on with Claude Code."""
    there = house.copy("headline")
    provider = f"OPENAI_BASE_URL={house.servers['codex'].url('ok')}/v1"
    line = 'thread-import --from claude --last | dispatch -q --to codex "Finish it." | thread-export --to claude'
    ran = there.sh(f"export {provider}; {line}")
    assert ran.status == 0, ran.err
    went, _, resume = ran.out.rstrip("\n").partition(" && claude --resume ")
    assert went == f"cd {there.work}" and sessions.UUID.fullmatch(resume)
    assert there.ask("claude", "And test it.", resume).status == 0
    turns = there.heard("claude")
    assert [what.strip() for role, kind, what in turns if (role, kind) == ("user", "text")] == [
        ASKED, "Finish it.", "And test it."]  # fmt: skip
    assert [kind for _, kind, _ in turns] == ["text", "call", "result", "text", "text", "text", "text"]


def test_two_versions_of_a_thread_that_opencode_gets_at_once_are_two_sessions(house):
    """It merges what has one id."""
    fresh = house.fresh("at-once")
    ran = fresh.sh("thread-append --new --thread x one > a; { grep '\"message\"' a; echo '{\"thread\":\"x\",\"role\":\"user\",\"content\":\"two\"}'; } | "
                   "thread-append - > b; for i in a b; do thread-export -q --to opencode --format json < $i > $i.out & done; wait; "
                   "for i in a b; do thread-import --from opencode $(jq -r .session $i.out) | grep -c '\"role\"'; done")  # fmt: skip
    assert ran == (0, "1\n2\n", "")


def test_a_thread_that_was_renamed_is_a_session_of_opencode_that_has_its_messages(house):
    """Ids of messages are of the whole database, and it passes over one that is there."""
    there = house.copy("renamed")
    export = "thread-export -q --to opencode --format json | jq -r .session"
    ran = there.sh(f"thread-import --from opencode --last > t; id=$(jq -c '.thread=\"other\"' t | {export}); "
                   "thread-import --from opencode $id | grep -c '\"role\"'; grep -c '\"role\"' t")  # fmt: skip
    assert ran == (0, "4\n4\n", "")


def test_a_session_that_went_on_is_left_and_the_thread_gets_a_new_one(house):
    there = house.copy("taken")
    once = exported(there, "claude", "opencode")
    assert there.ask("opencode", "next", once["session"]).status == 0
    kept = there.sh(f"opencode export {once['session']}").out
    assert exported(there, "claude", "opencode")["session"] != once["session"], "the first has grown"
    assert there.sh(f"opencode export {once['session']}").out == kept


@pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed: .ci/run does it")
@pytest.mark.parametrize("target", sessions.PROGRAMS)
def test_at_a_terminal_the_conversation_is_shown_and_goes_on(house, target):
    """The home is one whose owner has answered what each program asks at its first start."""
    there = house.copy(f"terminal-{target}")  # the one before may still be tidying its home
    made = exported(there, "codex" if target == "claude" else "claude", target)
    (there.home / ".claude.json").write_text(json.dumps({
        "hasCompletedOnboarding": True, "theme": "dark",
        "customApiKeyResponses": {"approved": ["sk-ant-canary-1"[-20:]], "rejected": []},
        "projects": {str(there.work): {"hasTrustDialogAccepted": True}}}))  # fmt: skip
    (there.home / ".codex").mkdir(exist_ok=True)
    (there.home / ".codex/config.toml").write_text(
        'model = "gpt-6-sol"\nmodel_provider = "loop"\ncheck_for_update_on_startup = false\n[model_providers.loop]\n'
        f'name = "loop"\nbase_url = "{there.servers["codex"].url("ok")}/v1"\nenv_key = "OPENAI_API_KEY"\n'
        f'wire_api = "responses"\n[projects."{there.work}"]\ntrust_level = "trusted"\n')  # fmt: skip
    kind = {"npm": "@ai-sdk/openai-compatible", "models": {"claude-sonnet-4-5": {}},
            "options": {"baseURL": there.servers["opencode"].url("ok") + "/v1", "apiKey": "x"}}  # fmt: skip
    (there.work / "opencode.json").write_text(json.dumps({"provider": {"anthropic": kind}}))
    model = {"claude": "--model claude-sonnet-4-5", "gemini": "-m gemini-2.5-flash"}.get(target, "")
    tmux = f"tmux -L {there.home.name}-{target}-{os.getpid()}"
    heard_before = len(there.servers[target].calls())
    # At a terminal it starts a server, and what keeps that up to date; neither ends with it.
    ended = """
        codex app-server daemon stop >/dev/null
        kill $(jq .pid ~/.codex/app-server-daemon/daemon-updater.pid)
    """ if target == "codex" else ":"  # fmt: skip
    line = f"""
        trap '{tmux} kill-server; {ended}' EXIT
        until_there() {{ for _ in $(seq 3000); do {tmux} capture-pane -p | grep -q "$1" && return; sleep 0.1; done; return 1; }}
        TERM=xterm-256color {tmux} -f /dev/null new-session -d -x 120 -y 50 '{made["command"]} {model}'
        until_there '{ASKED}' && until_there LOOPBACK-OK || {{ {tmux} capture-pane -p; exit 1; }}
        until {tmux} capture-pane -p | grep -q '[^"]next$\\|[> ]next  *'; do
            {tmux} send-keys C-u; {tmux} send-keys -l next; sleep 1; done
        {tmux} send-keys Enter
        for _ in $(seq 3000); do [ $({tmux} capture-pane -p | grep -c LOOPBACK-OK) -gt 1 ] && exit; sleep 0.1; done
        {tmux} capture-pane -p; exit 1
    """
    ran = there.sh(line)
    assert ran.status == 0, ran
    sent = [HEARD[target](call["body"]) for call in there.servers[target].calls()[heard_before:]]
    # A program that is slow to show what was typed gets it again.
    (turns,) = [one for one in sent if one and one[-1][2] and re.fullmatch("(next)+", str(one[-1][2]).strip())]
    check([*turns[:-1], [*turns[-1][:2], "next"]])
