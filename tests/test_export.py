"""thread-export: a thread as a session that the program itself goes on with; none that is there is changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
import pytest
from loopback import serve
from programs import claude_sent
from test_import import FILES, IDS, lay

from mllm_pipe import sessions

PROGRAMS = os.environ.get("MLLM_TEST_PROGRAMS", "")
FOUND = {name: shutil.which(name, path=PROGRAMS + os.pathsep + os.environ["PATH"]) for name in ("claude", "codex")}
needs_programs = pytest.mark.skipif(not all(FOUND.values()), reason="claude and codex are not installed: .ci/run does it")


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_import_export_import_is_byte_stable(sh, home, program):
    first = sh(f"thread-import --from {program} {FILES[program]} > t; cat t").out
    ran = sh(f"thread-export --to {program} --format json < t")
    (made,) = ran.records
    assert (ran.status, made["session"], made["command"]) == (0, IDS[program], " ".join(
        [program, "--resume" if program == "claude" else "resume", IDS[program]]))  # fmt: skip
    assert Path(made["path"]).is_relative_to(home) and Path(made["path"]).stat().st_mode & 0o777 == 0o600
    again = sh(f"thread-import --from {program} --last > u; cat u")
    assert (again.status, again.err, again.out) == (0, "", first)


@pytest.mark.parametrize("program", sessions.PROGRAMS)
def test_no_session_is_overwritten(sh, home, work, program):
    place = lay(home, program, work)
    before = place.read_bytes()
    line = f"thread-import --from {program} --last --all | thread-export --to {program} --format json"
    (made,) = sh(line).records
    assert place.read_bytes() == before and made["path"] != str(place)
    (again,) = sh(f"thread-import --from {program} {place} | thread-export --to {program} --format json").records
    assert again == made, "the very same session is there already"
    Path(made["path"]).write_bytes(Path(made["path"]).read_bytes() + b"{}\n")
    (third,) = sh(f"thread-import --from {program} {place} | thread-export --to {program} --format json").records
    assert third["path"] not in (made["path"], str(place))
    assert Path(made["path"]).read_bytes().endswith(b"{}\n")


def test_stdout_is_the_command_that_goes_on(sh, home, work):
    (work / "a dir").mkdir()
    ran = sh("thread-append --new --thread t hello | thread-export -q --to claude --cwd 'a dir'")
    (path,) = home.rglob("*.jsonl")
    assert (ran.status, ran.out, ran.err) == (0, f"cd '{work}/a dir' && claude --resume {path.stem}\n", "")


def test_a_failed_thread_is_not_exported_and_losses_are_said(sh, home):
    ran = sh("thread-append --new --thread t hi | dispatch -q --to exec:false | thread-export --to codex")
    assert (ran.status, ran.out) == (3, "") and not list(home.rglob("rollout*"))
    assert "thread t: it failed before it came here" in ran.err
    call = '{"type":"tool_call","id":"c","name":"Read","arguments":{}}'
    ran = sh(f"""echo '{{"role":"assistant","content":[{call}]}}' | thread-append - --thread t | thread-export --to codex""")
    assert ran.status == 0 and "result of tool_call c" in ran.err and "synthesised" in ran.err


@pytest.mark.parametrize(("line", "status", "err"), [
    ("thread-export --to codex", 2, "no thread to export; pipe one in, or: thread-export --to claude < FILE"),
    (": | thread-export --to codex", 2, "stdin is empty: did the command before fail?"),
])  # fmt: skip
def test_nothing_to_export_is_said(sh, line, status, err):
    assert sh(line) == (status, "", f"thread-export: {err}\n")


HOSTILE = r"""{"role":"user","content":"<script>x</script> \u001b[31m"}
{"role":"assistant","author":{"agent":"a*b"},"content":[{"type":"text","text":"See."},{"type":"tool_call","id":"c","name":"Read","arguments":{"f":"````"}}]}
{"role":"tool","content":[{"type":"tool_result","call_id":"c","content":"```\n# no heading\n```"}]}
"""  # fmt: skip
PAGES = {
    "text": r"""t

== user
<script>x</script> \u001b[31m

== a*b
See.
  [calls Read] {
  [calls Read]   "f": "````"
  [calls Read] }

== tool
  [result] ```
  [result] # no heading
  [result] ```
""",
    "markdown": r"""# t

## user

<script>x</script> \u001b[31m

## a\*b

See.

*calls Read*

`````
{
  "f": "````"
}
`````

## tool

*result*

````
```
# no heading
```
````
""",
}


@pytest.mark.parametrize("form", PAGES)
def test_a_page_for_people_is_safe_to_show(sh, work, form):
    (work / "bare").write_text(HOSTILE)
    ran = sh(f"thread-append - --thread t < bare | thread-export --to {form}")
    assert (ran.status, ran.out, ran.err) == (0, PAGES[form], "")


def test_a_page_of_html_is_escaped(sh, work):
    (work / "bare").write_text(HOSTILE)
    ran = sh("thread-append - --thread t < bare | thread-export --to html")
    assert (ran.status, ran.err) == (0, "")
    assert "<script>" not in ran.out and "<pre>&lt;script&gt;x&lt;/script&gt; \\u001b[31m</pre>" in ran.out
    assert "<details><summary>result</summary><pre>```\n# no heading\n```</pre></details>" in ran.out


# -- with the programs themselves --------------------------------------------------------------------------------------


@pytest.fixture
def vendors(sh, home):
    """`sh` with claude and codex at loopback servers, and with their own homes; .claude and .codex heard it."""
    with serve("anthropic") as anthropic, serve("responses") as responses:
        path = os.pathsep.join({str(Path(found).parent) for found in FOUND.values() if found})
        provider = f'model_providers.loop={{name="loop",base_url="{responses.url("ok")}/v1",env_key="OPENAI_API_KEY"'
        provider += ',wire_api="responses"}'
        codex = f"codex exec %s --json --skip-git-repo-check -c model_provider=loop -c '{provider}' -m gpt-5.5"
        codex += " --disable plugins --disable unbounded_connection_retries -c analytics.enabled=false"
        claude = "claude -p %s --output-format json --model claude-sonnet-4-5"

        def run(line: str, **more: str):
            return sh(
                f'export PATH="{path}:$PATH"; {line}', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
                ANTHROPIC_BASE_URL=anthropic.url("ok"), ANTHROPIC_API_KEY="sk-ant-canary-1",
                OPENAI_BASE_URL=responses.url("ok") + "/v1", OPENAI_API_KEY="sk-canary-2", **more,
            )  # fmt: skip

        run.ask = {"claude": claude, "codex": codex}
        run.servers = {"claude": anthropic, "codex": responses}
        yield run


def heard(program, server):
    """The last conversation that a program's server received, as [role, kind, what], without what the program adds."""
    body = server.calls()[-1]["body"]
    if program == "claude":
        for message in body["messages"]:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        return [one for one in claude_sent(body) if one[0] != "system" and not (one[1] == "text" and one[2][:1] == "<")]
    found = []
    for item in body["input"]:
        if item["type"] == "function_call":
            found.append(["assistant", "call", [item["call_id"], item["name"], orjson.loads(item["arguments"])]])
        elif item["type"] == "function_call_output":
            found.append(["user", "result", [item["call_id"], item["output"]]])
        elif item["type"] == "message" and item["role"] != "developer":
            found += [[item["role"], "text", part["text"]] for part in item["content"] if part["text"][:1] not in "<["]
    return found


@needs_programs
def test_the_headline(vendors, home, work):
    """Half-finished with Claude Code, finished by Codex, and on with Claude Code."""
    began = vendors(f"printf 'Write a parser.' | {vendors.ask['claude'] % ''}")
    assert began.status == 0, began
    ran = vendors('thread-import --from claude --last | dispatch -q --to codex "Finish it." | thread-export --to claude')
    assert ran.status == 0, ran.err
    there, _, resume = ran.out.rstrip("\n").partition(" && claude --resume ")
    assert there == f"cd {work}" and sessions.UUID.fullmatch(resume)
    finished = vendors.servers["codex"].calls()[-1]["body"]["input"]
    assert [part["text"] for item in finished if item.get("role") in ("user", "assistant") for part in item["content"]][
        ::2] == ["Write a parser.", "Finish it."]  # fmt: skip
    on = vendors(f"printf 'And test it.' | {vendors.ask['claude'] % f'--resume {resume}'}")
    assert on.status == 0, on
    turns = heard("claude", vendors.servers["claude"])
    assert [role for role, _, _ in turns] == ["user", "assistant"] * 2 + ["user"]
    assert [turns[0][2], turns[2][2], turns[4][2]] == ["Write a parser.", "Finish it.", "And test it."]


@needs_programs
@pytest.mark.parametrize("source", sessions.PROGRAMS)
@pytest.mark.parametrize("target", sessions.PROGRAMS)
def test_a_session_is_resumed_where_it_was_taken(vendors, home, work, source, target):
    """Every turn arrives, each call with exactly one result; back at its own program, as from the first session."""
    lay(home, source, work)
    ran = vendors(f"thread-import --from {source} --last | thread-export --to {target} --format json")
    assert ran.status == 0, ran.err
    (made,) = ran.records
    flag = {"claude": "--resume {}", "codex": "resume {} -"}[target]
    asked = vendors(f"echo next | {vendors.ask[target] % flag.format(made['session'])}")
    assert asked.status == 0, asked
    turns = heard(target, vendors.servers[target])
    texts = [what for _, kind, what in turns if kind == "text"]
    assert texts[0] == "What is 2+2?" and texts[1].startswith("LOOPBACK-OK") and texts[-1].strip() == "next"
    (call,) = [what for _, kind, what in turns if kind == "call"]
    (result,) = [what for _, kind, what in turns if kind == "result"]
    assert call[0] == result[0] and "hi-from-tool" in str(call[2]) and "hi-from-tool" in str(result[1])
    if source == target:
        own = vendors(f"echo next | {vendors.ask[target] % flag.format(IDS[source])}")
        assert own.status == 0, own
        assert heard(target, vendors.servers[target]) == turns
