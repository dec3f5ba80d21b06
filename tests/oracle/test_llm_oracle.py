"""llm itself reads what is exported for it, and goes on; what it logged itself is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("llm")
sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import Ran, environment  # noqa: E402
from loopback import serve  # noqa: E402

FUNCTION = "def bash(command: str, description: str) -> str:\n    return 'hi-from-tool'\n"
MODEL = "- model_id: {}\n  model_name: m1\n  api_base: {}/v1\n  supports_tools: true\n  vision: true\n"
CLAUDE = Path(__file__).parents[1] / "data" / "sessions" / "claude-session-file.jsonl"


@pytest.fixture
def llm(home: Path, work: Path) -> Iterator[Any]:
    """Runs a line of shell with llm and a model of its own, which tests hear: `calls`."""
    with serve("chat") as server:
        folder = home / ".config" / "io.datasette.llm"
        folder.mkdir(parents=True)
        models = [MODEL.format(name, server.url(name)) for name in ("tool", "ok")]
        (folder / "extra-openai-models.yaml").write_text("".join(models))
        (work / "f.py").write_text(FUNCTION)

        def run(line: str) -> Ran:
            env = environment(home, OPENAI_API_KEY="x")
            env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
            ran = subprocess.run(["bash", "-c", line], cwd=work, env=env, capture_output=True, text=True)
            return Ran(ran.returncode, ran.stdout, ran.stderr)

        yield SimpleNamespace(run=run, calls=server.calls)


def heard(llm: Any) -> Any:
    return llm.calls()[-1]["body"]["messages"]


def test_its_own_conversation_goes_out_and_back_and_on_as_it_was(llm):
    assert llm.run("llm -m tool --no-stream -s 'Be brief.' --functions f.py 'What is 2+2?' < /dev/null").status == 0
    ran = llm.run("thread-import --from llm --last > t; thread-export -q --to llm < t | sed 's/.*--database //' > db")
    assert (ran.status, ran.err) == (0, "")
    assert llm.run("llm -m ok -c More. < /dev/null").status == 0
    expected = heard(llm)
    assert [one["role"] for one in expected] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert llm.run('llm -m ok -d "$(cat db)" -c More. < /dev/null').status == 0
    assert heard(llm) == expected
    shown = llm.run('llm logs -d "$(cat db)" -n 0 --json | thread-import --from llm - | jq -r "select(.role).role"')
    assert shown.out.split() == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]


def test_a_session_of_another_program_is_gone_on_with(llm):
    ran = llm.run(f"thread-import --from claude {CLAUDE} | thread-export -q --to llm -m ok | sed 's/.*--database //' > db")
    assert (ran.status, ran.err) == (0, "")
    assert llm.run('llm -d "$(cat db)" -c next < /dev/null').status == 0
    user, call, result, answer, asked = heard(llm)
    assert (user["content"], asked["content"]) == ("What is 2+2?", "next")
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] and "hi-from-tool" in result["content"]
    assert answer["content"].startswith("LOOPBACK-OK")
