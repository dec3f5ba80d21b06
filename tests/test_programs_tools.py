"""The tools of the four agent programs, on loopback: as much as was allowed, where it was, and no project decides it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_programs
import test_programs_more
from programs import TEN_TURNS, Program, user

house = test_programs.house
program = test_programs_more.program  # gemini or opencode
sibling = test_programs.program  # claude or codex

# What the model asks for, in the words of each program.
TOOLS = {
    ("claude", "read"): ("Grep", {"pattern": "THERE", "output_mode": "content"}),
    ("claude", "write"): ("Write", {"file_path": "made.txt", "content": "made\n"}),
    ("claude", "all"): ("Bash", {"command": "git status > made.txt", "description": "look"}),
    ("codex", "read"): ("exec_command", {"cmd": "cat there.txt; touch made.txt"}),
    ("codex", "write"): ("exec_command", {"cmd": "echo made > made.txt"}),
    ("codex", "all"): ("exec_command", {"cmd": "git status; env > made.txt"}),
    ("gemini", "read"): ("list_directory", {"dir_path": "."}),
    ("gemini", "write"): ("write_file", {"file_path": "made.txt", "content": "made\n"}),
    ("gemini", "all"): ("run_shell_command", {"command": "git status; env > made.txt"}),
    ("opencode", "read"): ("read", {"filePath": "there.txt"}),
    ("opencode", "write"): ("write", {"filePath": "made.txt", "content": "made\n"}),
    ("opencode", "all"): ("bash", {"command": "git status; env > made.txt", "description": "look"}),
}


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory to work in, with files that would change what is asked."""
    made = tmp_path_factory.mktemp("project")
    hook = [{"matcher": "*", "hooks": [{"type": "command", "command": f"touch {tmp_path}/HOOK"}]}]
    settings = {"hooks": {"SessionStart": hook, "BeforeModel": hook}, "model": {"name": "CANARY-MODEL"},
                "mcpServers": {"x": {"command": "touch", "args": [f"{tmp_path}/HOOK"], "trust": True}}}  # fmt: skip
    for path, text in (
        ("there.txt", "THERE\n"),
        (".gemini/settings.json", json.dumps(settings)),
        (".gemini/commands/help.toml", 'prompt = "CANARY-FILE"\n'),
        ("opencode.json", '{"model": "x/CANARY", "instructions": ["AGENTS.md"]}'),
        (".claude/settings.json", json.dumps({"hooks": {"UserPromptSubmit": hook}})),
        ("GEMINI.md", "CANARY-FILE"),
        ("CLAUDE.md", "CANARY-FILE"),
        ("AGENTS.md", "CANARY-FILE"),
    ):
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    (made / ".git/objects").mkdir(parents=True)
    (made / ".git/refs").mkdir()
    (made / ".git/HEAD").write_text("ref: refs/heads/main\n")
    yield made
    assert not (tmp_path / "HOOK").exists()


@pytest.fixture(params=["read", "write", "all"])
def allow(request: pytest.FixtureRequest) -> str:
    """How much a program may do by itself."""
    return str(request.param)


def offered(body: dict[str, Any]) -> set[str]:
    found = set()
    for tool in body.get("tools", []):
        found |= {one["name"] for one in tool.get("functionDeclarations", [tool.get("function", tool)])}
    return found


def test_tools_work_in_the_directory_as_far_as_allowed(project: Path, program: Program, allow: str) -> None:
    name, arguments = TOOLS[program.name, allow]
    if allow == "all":
        shutil.rmtree(project / ".gemini")  # then its settings count
    program.server.tool = name, arguments
    before = TEN_TURNS if allow == "all" else []
    result = program.ask(*before, user("go"), scenario="tool", cwd=str(project), allow=allow)
    assert result["finish"] == "stop"
    assert len(program.calls()) == 2
    assert program.own_tokens(*before, user("go")) < program.module.OWN_TOKENS[allow]
    tools = offered(program.calls()[0]["body"])
    shells, writers = {"run_shell_command", "bash"}, {"write_file", "replace", "write", "edit"}
    assert (bool(tools & shells), bool(tools & writers)) == (allow == "all", allow != "read")
    (done,) = [what[1] for _, kind, what in program.sent() if kind == "result"][-1:]
    if allow == "read":
        assert "THERE" in done or "there.txt" in done
    else:
        text = (project / "made.txt").read_text()
        assert "sk-canary" not in text
        assert (text == "made\n") == (allow == "write")


def test_the_tools_of_the_siblings_too(project: Path, sibling: Program, allow: str) -> None:
    name, arguments = TOOLS[sibling.name, allow]
    if "file_path" in arguments:
        arguments = arguments | {"file_path": str(project / arguments["file_path"])}
    sibling.server.tool = name, arguments
    result = sibling.ask(*TEN_TURNS, user("go"), scenario="tool", cwd=str(project), allow=allow)
    assert (result["finish"], len(sibling.calls())) == ("stop", 2)
    assert sibling.own_tokens(*TEN_TURNS, user("go")) < sibling.module.OWN_TOKENS[allow]
    done = [what[1] for _, kind, what in sibling.sent() if kind == "result"][-1]
    if allow == "read":
        assert "THERE" in json.dumps(done)
        assert not (project / "made.txt").exists()
    else:
        text = (project / "made.txt").read_text()
        assert "sk-canary" not in text
        assert (text == "made\n") == (allow == "write")


LEFT = {"codex": {"apply_patch", "request_user_input"}}  # which no setting turns off; its sandbox lets neither write


def nothing_runs(program: Program, project: Path) -> None:
    program.ask(user("look at @there.txt"), scenario="tool", cwd=str(project))
    assert offered(program.calls()[0]["body"]) <= LEFT.get(program.name, set())
    assert program.sent()[1:] == [["user", "text", "look at @there.txt"]]
    assert program.own_tokens(user("look at @there.txt")) < program.module.OWN_TOKENS[None]
    assert not (project / "made.txt").exists()


def test_without_leave_no_tool_is_offered_and_none_runs(project: Path, program: Program) -> None:
    nothing_runs(program, project)


def test_without_leave_none_of_the_siblings_either(project: Path, sibling: Program) -> None:
    nothing_runs(sibling, project)


def works_in_its_own(program: Program, place: Path) -> None:
    name, arguments = TOOLS[program.name, "all"]
    word = "cmd" if program.name == "codex" else "command"
    program.server.tool = name, arguments | {word: "echo in $PWD; ls -A | wc -l"}
    program.ask(user("go"), scenario="tool", allow="all")
    (done,) = [json.dumps(what[1]) for _, kind, what in program.sent() if kind == "result"]
    where, count = re.search(r"in (/[^ ]+?)\\n *(\d+)", done).groups()
    assert (count, where.endswith("/cwd"), where.startswith(str(place))) == ("0", True, True)
    assert not Path(where).exists()


def test_without_a_directory_it_works_in_an_empty_one_of_its_own(program: Program, tmp_path: Path) -> None:
    works_in_its_own(program, tmp_path)


def test_without_a_directory_the_siblings_do_so_too(sibling: Program, tmp_path: Path) -> None:
    works_in_its_own(sibling, tmp_path)
