"""mllm.toml: whose it is, whether it is trusted, what wins, and what is said of mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

AT_TERMINAL = "python -c 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)'"
POET = '[agents.poet]\nruntime = "exec:%s"\n'


@pytest.fixture
def user(home: Path):
    """Writes the user's own mllm.toml."""

    def write(text: str) -> Path:
        file = home / ".config/mllm-pipe/mllm.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def test_a_cloned_repository_does_nothing_before_it_is_trusted_and_nothing_again_after_one_changed_byte(sh, work):
    (work / ".git").mkdir()
    (work / "deep/er").mkdir(parents=True)
    (work / "mllm.toml").write_text(POET % "sh -c 'cat; touch pwned'")
    line = "cd deep/er; dispatch --to poet --new hello --text"
    refused = (2, "", f"dispatch: {work}/mllm.toml is not trusted, so nothing of it is used; read it, then say: mllm trust\n"
               "dispatch: 'poet' is no runtime or agent; mllm doctor lists what is usable here\n")  # fmt: skip
    assert sh(line) == refused
    assert sh("mllm trust") == (2, "", "mllm: trust is given at a terminal, by who has read the file; in a script: "
                                f"MLLM_CONFIG={work}/mllm.toml\n")  # fmt: skip
    assert sh(line) == refused and not list(work.rglob("pwned"))
    told = f"  {work}/mllm.toml is not used: it came with this directory; mllm trust shows and uses it\n"
    assert sh("cd deep/er; mllm doctor | tail -n 1").out == told
    assert told not in sh("mllm doctor", MLLM_CONFIG=f"{work}/mllm.toml").out
    shown = sh(f"{AT_TERMINAL} mllm trust")
    assert shown.status == 0 and "touch pwned" in shown.out and shown.out.endswith("mllm.toml is trusted as it stands above\n")
    assert sh(line) == (0, "hello\n", "") and len(list(work.rglob("pwned"))) == 1
    (work / "mllm.toml").write_text(POET % "sh -c 'cat; touch pwnee'")
    assert sh(line) == refused and not list(work.rglob("pwnee"))


def test_a_directory_s_name_makes_no_line_of_the_list(sh, work):
    (work / "a\ntrusted  ").mkdir()
    (work / "a\ntrusted  /mllm.toml").write_text(POET % "cat")
    assert sh(f"cd a*; {AT_TERMINAL} mllm trust").status == 0
    assert sh("mllm trust --list") == (0, f"trusted  {work}/a\\u000atrusted  /mllm.toml\n", "")


def test_trust_is_of_a_path_with_its_content(sh, work, home):
    (work / "a").mkdir()
    (work / "b").mkdir()
    (work / "a/mllm.toml").write_text(POET % "cat")
    (work / "b/mllm.toml").symlink_to("../a/mllm.toml")
    assert sh(f"cd a; {AT_TERMINAL} mllm trust").status == 0
    assert sh("cd a; dispatch --to poet --new x --text").status == 0
    assert sh("cd b; dispatch --to poet --new x --text").status == 2
    (work / "a/mllm.toml").write_text(POET % "true")
    assert sh("mllm trust --list") == (0, f"changed  {work}/a/mllm.toml\n", "")
    (work / "a/mllm.toml").write_text(POET % "cat")
    assert sh("mllm trust --list") == (0, f"trusted  {work}/a/mllm.toml\n", "")
    folder = home / ".local/state/mllm-pipe/trusted"
    assert [file.stat().st_mode & 0o777 for file in (folder, *folder.iterdir())] == [0o700, 0o600]
    assert sh("mllm trust --revoke a/mllm.toml") == (0, "a/mllm.toml is trusted no more\n", "")
    assert sh("cd a; dispatch --to poet --new x --text").status == 2
    assert sh("mllm trust --revoke a/mllm.toml").status == 66
    assert sh("mllm trust") == (66, "", "mllm: no mllm.toml from here up to the root of the repository; name a FILE\n")


def test_a_file_that_was_trusted_is_not_so_with_an_older_content(sh, work):
    for program in ("cat", "tee"):
        (work / "mllm.toml").write_text(POET % program)
        sh(f"{AT_TERMINAL} mllm trust")
    (work / "mllm.toml").write_text(POET % "cat")
    assert sh("dispatch --to poet --new x --text").status == 2


def test_the_search_ends_at_the_root_of_the_repository(sh, work):
    (work / "mllm.toml").write_text(POET % "cat")
    (work / "clone/.git").mkdir(parents=True)
    assert sh("cd clone; dispatch --to poet --new x --text").err == (
        "dispatch: 'poet' is no runtime or agent; mllm doctor lists what is usable here\n")  # fmt: skip


def test_the_project_goes_over_the_user_and_the_environment_over_both(sh, work, user):
    mine = user(POET % "echo user" + '[agents.critic]\nruntime = "exec:echo mine"\n')
    (work / "mllm.toml").write_text(POET % "echo project")
    (work / "ci.toml").write_text(POET % "echo ci")
    line = "dispatch -q --to poet --new x --text"
    assert sh(line).out == "user\n"
    sh(f"{AT_TERMINAL} mllm trust")
    assert sh(line).out == "project\n"
    assert sh("dispatch --to critic --new x --text").out == "mine\n"
    assert sh(line, MLLM_CONFIG="ci.toml").out == "ci\n"
    assert sh("dispatch --to critic --new x --text", MLLM_CONFIG="ci.toml").status == 2
    assert sh("mllm config agents --format text").out == (
        f'agents.poet.runtime = "exec:echo project"  # project: {work}/mllm.toml:2\n'
        f'agents.critic.runtime = "exec:echo mine"   # user: {mine}:4\n'
    )
    assert sh("mllm config MLLM_TIMEOUT", MLLM_TIMEOUT="5").records == [
        {"key": "MLLM_TIMEOUT", "value": "5", "origin": "environment"}]  # fmt: skip


def test_an_entry_is_taken_whole_from_one_file(sh, work, user):
    user('[runtimes.api]\nkind = "openai-chat"\nbase_url = "http://127.0.0.1:9"\nkey_env = "MINE"\n')
    (work / "mllm.toml").write_text('[runtimes.api]\nkind = "openai-chat"\nbase_url = "http://evil.example"\n')
    sh(f"{AT_TERMINAL} mllm trust")
    assert [row["key"] for row in sh("mllm config runtimes.api").records] == ["runtimes.api.kind", "runtimes.api.base_url"]


def test_secrets_are_masked(sh, user):
    user('[runtimes.api]\nkind = "openai-chat"\nbase_url = "https://me:canary@h/v1?api_key=canary&x=1"\nkey_env = "NAME"\n'
         'headers = { "x-thing" = "canary" }\nmax_tokens = 5\nkey_command = "echo canary"\n')  # fmt: skip
    ran = sh("mllm config")
    assert "canary" not in ran.out
    assert [row["value"] for row in ran.records if row["origin"] == "user"] == [
        "openai-chat", "https://***@h/v1?api_key=***&x=1", "NAME", "***", 5, "***"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agents.a]\nruntime = 'echo'\nmodls = {}\n", ":3: agents.a.modls means nothing; did you mean models?"),
        ("[agent.a]\nruntime = 'echo'\n", ":1: agent is no section; did you mean agents?; there are agents, runtimes, routers, "
         "groups, prompts, defaults, budget"),
        ("[agents.a]\n\nruntime = 5\n", ":3: agents.a.runtime is not a text"),
        ("[agents.a]\nsystem = 'x'\n", ":1: agents.a: runtime is missing"),
        ("[agents.a]\nruntime = 'claud'\n", ":2: agents.a: 'claud' is no runtime; did you mean claude?; say [runtimes.claud]"),
        ("[agents.a]\nruntime = 'b'\n[agents.b]\nruntime = 'a'\n", ":2: agents.a: 'b' is no runtime; say [runtimes.b]"),
        ("[agents.a]\nruntime = 'echo'\n[agents.a.models]\nrooter = 'x'\n",
         ":4: agents.a.models.rooter is no slot; did you mean router?; there are response, router, summarizer, evaluator"),
        ("[agents.a]\nruntime = 'x'\n[runtimes.x]\nkind = 'openai-chat'\nbase_ulr = 'x'\n",
         ":5: runtimes.x.base_ulr means nothing; did you mean base_url?"),
        ("[agents.a]\nruntime = 'x'\n[runtimes.x]\nkind = 'openai-chat'\nurl = 'http://localhost'\n", ":5: runtimes.x.url means nothing"),
        ("agents = 5\n", ":1: agents is no table; say [agents.NAME]"),
        ("[agents]\na = 5\n", ":2: agents.a is no table; say [agents.NAME]"),
        ("[routers.r]\nrules = [5]\n", ":2: routers.r.rules is not a list of tables"),
        ("[groups.g]\nmax_rounds = 0\n", ":2: groups.g.max_rounds is not a whole number from 1"),
        ("[defaults]\ntoo = 'x'\n", ":2: defaults.too means nothing; did you mean to?"),
        ("[budget]\nday_usd = 5\nday_usdd = 1\n", ":3: budget.day_usdd means nothing; did you mean day_usd?"),
        ('[budget]\nday_usd = "5"\n', ":2: budget.day_usd is not an amount, a number from 0"),
        ("[budget]\n\nrun_tokens = -1\n", ":3: budget.run_tokens is not an amount, a number from 0"),
        ("[budget]\nrun_usd = inf\n", ":2: budget.run_usd is not an amount, a number from 0"),
        ("[budget]\nrun_usd = true\n", ":2: budget.run_usd is not an amount, a number from 0"),
        ("[runtimes.a]\nkind = 'opanai'\n", ":2: runtimes.a.kind is no kind; did you mean openai?; there are "
         "anthropic, claude, codex, command, echo, gemini, google, openai, openai-chat, opencode, replay"),
        ("[runtimes.a]\nkind = 5\n", ":2: runtimes.a.kind is no kind; there are "
         "anthropic, claude, codex, command, echo, gemini, google, openai, openai-chat, opencode, replay"),
        ("[runtimes.echo]\nkind = 'command'\n", ":1: runtimes.echo is built in and cannot be redefined; give it another name"),
        ("[runtimes]\nollama = { kind = 'openai-chat' }\n",
         ":2: runtimes.ollama is built in and cannot be redefined; give it another name"),
        ("[agents.a]\nruntime = 'claude'\n[agents.echo]\nruntime = 'claude'\n",
         ":3: agents.echo has the name of a runtime that is built in and cannot be redefined; give it another name"),
        ("[agents]\ngroq = { runtime = 'echo' }\n",
         ":2: agents.groq has the name of a runtime that is built in and cannot be redefined; give it another name"),
        ("[agents.a]\n[agents.b\n", ":2: Expected ']' at the end of a table declaration (column 10)"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_file_and_line_and_the_nearest_name(sh, user, text, said):
    file = user(text)
    assert sh("dispatch --to a --new x --text") == (2, "", f"dispatch: {file}{said}\n")


def test_a_file_that_is_no_text_or_not_there_is_one_line(sh, user, work):
    assert sh("dispatch --to a --new x", MLLM_CONFIG="none.toml").err == "dispatch: MLLM_CONFIG: none.toml: No such file or directory\n"
    file = user("")
    file.write_bytes(b"\xff")
    assert sh("mllm config").err == f"mllm: {file}: no UTF-8 text\n"


def test_a_program_named_relatively_is_seen_from_the_file(sh, user, home, work):
    user('[agents.a]\nruntime = "exec:./bot"\n[agents.b]\nruntime = "b"\n[runtimes.b]\nkind = "command"\ncommand = "./bot"\n')
    bot = home / ".config/mllm-pipe/bot"
    bot.write_text("#!/bin/sh\necho mine\n")
    bot.chmod(0o755)
    (work / "bot").write_text("#!/bin/sh\necho evil\n")
    (work / "bot").chmod(0o755)
    assert sh("dispatch --to a --new x --text; dispatch --to b --new x --text") == (0, "mine\nmine\n", "")


def test_a_slot_is_a_target_of_its_own_and_unset_ones_are_the_response_slot(sh, user, home):
    user('[agents.a]\nmodels = { response = "exec:echo mine", summarizer = "exec:./short" }\n')
    short = home / ".config/mllm-pipe/short"
    short.write_text("#!/bin/sh\necho in short\n")
    short.chmod(0o755)
    long = "thread-append --new --thread t \"$(seq -s. 99)\" | dispatch --to echo | thread-append - And now? | dispatch -q --to"
    slots = "jq -r 'select(.op and .runtime == \"exec\") | .slot'"
    assert sh(f"{long} a --window 60 | {slots}") == (0, "summarizer\nresponse\n", "")
    user('[agents.a]\nruntime = "exec:echo mine"\n')
    assert sh(f"{long} a --window 60 | jq -r 'select(.type == \"summary\").content'") == (0, "mine\n", "")


@pytest.mark.parametrize(("text", "why"), [
    ("[defaults]\nto = 1", ":2: defaults.to is not a text"), ('[defaults]\nto = ["echo"]', ":2: defaults.to is not a text"),
    ('[runtimes.a]\nkind = "command"\ncommand = ["cat\\u0000"]',
     ":3: runtimes.a.command.0 has a NUL in it, which no program or path can have"),
    ('[runtimes.a]\nkind = "replay"', ":1: runtimes.a: path is missing"),
    ('[runtimes.a]\nkind = "replay"\npath = 0', ":3: runtimes.a.path is not a text"),
    ('[runtimes.a]\nkind = "command"\ncommand = "cat"\npass_env = "KEY"', ":4: runtimes.a.pass_env is not a list of texts"),
    ('[runtimes.a]\nkind = "openai-chat"\nheaders = { x = [] }', ":3: runtimes.a.headers is not a table of texts"),
    ('[runtimes.a]\nkind = "openai-chat"\nmax_tokens = "9"', ":3: runtimes.a.max_tokens is not a whole number from 1"),
    ('[runtimes.a]\nkind = "openai-chat"\nprofile = 5', ":3: runtimes.a.profile is not a table"),
    ('[runtimes.a]\nkind = "claude"\nallow = "everything"', ":3: runtimes.a.allow is not read, write or all"),
    ('[runtimes.a]\nkind = "command"\ncommand = "cat"\ntimeout_s = 1e7',
     ":4: runtimes.a.timeout_s is no number of seconds up to 2000000"),
])  # fmt: skip
def test_what_no_value_can_be_is_told_with_its_line(sh, home, text, why):
    (home / ".config/mllm-pipe").mkdir(parents=True)
    (home / ".config/mllm-pipe/mllm.toml").write_text(f"{text}\n")
    to = "--to a" if "runtimes" in text else ""
    assert sh(f"dispatch {to} --new q --text") == (2, "", f"dispatch: {home}/.config/mllm-pipe/mllm.toml{why}\n")


def test_a_directory_that_is_gone_has_no_configuration(sh):
    """It is where a script may stand that has tidied up after itself."""
    assert sh("mkdir d; cd d; rmdir ../d; dispatch --to echo --new q --text; mllm trust") == (
        66, "q\n", "mllm: no mllm.toml from here up to the root of the repository; name a FILE\n")  # fmt: skip


def test_a_configuration_that_cannot_be_looked_for_is_not_taken_for_none(sh, home):
    """It may hold a budget."""
    path = home / ".config/mllm-pipe/mllm.toml"
    path.parent.mkdir(parents=True)
    path.symlink_to(path.name)
    assert sh("dispatch --to echo --new q --text") == (
        2, "", f"dispatch: {path}: Too many levels of symbolic links\n")  # fmt: skip


def test_a_budget_of_the_environment_is_part_of_what_is_in_force(sh):
    ran = sh("mllm config MLLM_BUDGET", MLLM_BUDGET="day_usd=1")
    assert ran == (0, '{"key":"MLLM_BUDGET","value":"day_usd=1","origin":"environment"}\n', "")


@pytest.mark.parametrize("name", ["echo", "exec", "command", "replay", "openai", "ollama"])
def test_an_agent_with_the_name_of_what_is_built_in_is_told_of_to_who_asks_by_that_name(sh, user, name):
    file = user(f'\n[agents.{name}]\nruntime = "exec:echo mine"\n')
    why = f"{file}:2: agents.{name} has the name of a runtime that is built in and cannot be redefined; give it another name"
    for line in (f"dispatch --to {name}:x --new x", "mllm config", "dispatch --to echo --new x"):
        assert sh(line) == (2, "", f"{line.split()[0]}: {why}\n")


LISTED = """
import sys
sys.addaudithook(lambda event, about: event == "os.listdir" and sys.stderr.write(f"{about[0]}\\n"))
from mllm_pipe.commands.mllm import main
main()
"""


def test_the_folder_of_runtimes_is_listed_once_for_many_of_them(sh, work):
    (work / "mllm.toml").write_text("".join(f"[runtimes.r{n}]\nkind = 'command'\n[agents.a{n}]\n" for n in range(9)))
    (work / "look").write_text(LISTED)
    ran = sh("python -c \"$(cat look)\" config 2>&1 >/dev/null | grep -c 'mllm_pipe/runtimes$'", MLLM_CONFIG="mllm.toml")
    assert ran == (0, "1\n", "")


RUNS = '[agents.a]\nruntime = "echo"\n'
NOBODY = "'nope' is no runtime or agent; did you mean openai?; mllm doctor lists what is usable here"


@pytest.mark.parametrize(("text", "line", "said"), [
    ('[agents.a]\nruntime = "exec:"\n', "dispatch --to a --new x",
     ":2: agents.a.runtime names nobody: exec: no command; say 'exec:PROGRAM ARGUMENTS'"),
    ("[agents.a]\n\nruntime = \"exec:echo '\"\n", "dispatch --to a --new x", ":3: agents.a.runtime names nobody: exec:echo ': No closing quotation"),
    ('[agents.a]\nruntime = "replay:"\n', "dispatch --to a --new x", ":2: agents.a.runtime names nobody: replay: no file; say replay:FILE"),
    (f'{RUNS}models = {{ response = "nope" }}\n', "dispatch --to a --new x", ":3: agents.a: 'nope' is no runtime; did you mean openai?; say [runtimes.nope]"),
    (f'{RUNS}models = {{ response = "exec:" }}\n', "dispatch --to a --new x",
     ":3: agents.a.models.response names nobody: exec: no command; say 'exec:PROGRAM ARGUMENTS'"),
    (f'{RUNS}[agents.a.models]\nsummarizer = "nope"\n', "dispatch --to a --as b --new x", f":4: agents.a.models.summarizer names nobody: {NOBODY}"),
    ('[agents.a.models]\nresponse = ""\n', "dispatch --to a --new x", ":2: agents.a: '' is no runtime"),
    ('[defaults]\nto = ""\n', "dispatch --new x", ":2: defaults.to names nobody: '' is no runtime or agent; mllm doctor lists what is usable here"),
    (f'{RUNS}[routers.r]\nchildren = ["a"]\nmodels = {{ router = "" }}\n', "route < t",
     ":5: routers.r.models.router names nobody: '' is no runtime or agent; mllm doctor lists what is usable here"),
    ('\ufeff[agents.a]\nruntime = 5\n', "dispatch --to a --new x", ":2: agents.a.runtime is not a text"),
    ('\n[defaults]\nto = "nope"\n', "dispatch --new x", f":3: defaults.to names nobody: {NOBODY}"),
    (f'{RUNS}[routers.r]\nchildren = ["a"]\nruntime = "nope"\n', "route < t", f":5: routers.r.runtime names nobody: {NOBODY}"),
    (f'{RUNS}[routers.r]\nchildren = ["a"]\n[routers.r.models]\nrouter = "nope"\n', "route < t", f":6: routers.r.models.router names nobody: {NOBODY}"),
    (f'{RUNS}[routers.r]\nchildren = ["a"]\nruntime = "nope"\n', "route r --rules rules < t", f":5: routers.r.runtime names nobody: {NOBODY}"),
    (f"{RUNS}[runtimes.b]\nkind = 'echo'\nprofile.{'x.' * 3000}x = 1\n", "dispatch --to a --new x", ":3: runtimes.b.profile.x is nested too deeply"),
    (f"{RUNS}[runtimes.b]\nkind = 'echo'\nmax_tokens = 9223372036854775808\n", "dispatch --to a --new x", ":5: runtimes.b.max_tokens is beyond 64 bits"),
    ("[runtimes.b]\nkind = 'echo'\noptions = { seed = -9223372036854775809 }\n", "mllm config", ":3: runtimes.b.options.seed is beyond 64 bits"),
    ("[budget]\n\nday_tokens = 9223372036854775808\n", "mllm config", ":3: budget.day_tokens is beyond 64 bits"),
])  # fmt: skip
def test_whatever_is_wrong_in_the_file_is_told_with_its_line(sh, user, work, text, line, said):
    file = user(text)
    (work / "t").write_text('{"v":1,"type":"message","thread":"t","id":"m","role":"user","content":"hi"}\n')
    (work / "rules").write_text('[[rules]]\nkeywords = "x"\ntarget = "a"\n')
    assert sh(line) == (2, "", f"{line.split()[0]}: {file}{said}\n")


def test_an_evaluator_that_is_nobody_is_told_with_its_line_and_fails_the_thread(sh, user):
    file = user(f'{RUNS}models = {{ evaluator = "nope" }}\n')
    ran = sh("dispatch --to a --new x | judge --rubric correctness | thread-append out > /dev/null; exit ${PIPESTATUS[1]}")
    said = ran.err.partition("judge: thread ")[2].partition(": ")[2]
    assert (ran.status, said.splitlines()[0]) == (2, f"{file}:3: agents.a.models.evaluator names nobody: {NOBODY}")
