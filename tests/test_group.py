"""group: a chain of commands that fires as one, under one run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import orjson
import pytest
from conftest import BIN, environment, masked
from loopback import serve

AT_TERMINAL = "python -c 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)'"
REVIEW = """
[groups.review]
stages = ["dispatch --to echo:small --as writer", "dispatch --to 'exec:echo Quotes are missing.' --as reviewer 'Review it.'",
          "judge --check contains:Quotes"]
"""


@pytest.fixture
def configured(home):
    """Writes the user's own mllm.toml."""
    file = home / ".config/mllm-pipe/mllm.toml"
    file.parent.mkdir(parents=True)
    return file.write_text


def of_run(sh, run: str) -> list[tuple[str | None, ...]]:
    """(stage, op, agent, status) of each span of a run, by the journal."""
    (found,) = sh(f"trace {run} --format ndjson").records
    return [(stage.get("stage"), stage["op"], stage.get("agent"), stage["status"]) for stage in found["stages"]]


def test_a_group_is_its_stages_joined_by_pipes_under_one_run(sh, configured):
    configured(REVIEW)
    ran = sh("group review 'Write a parser.' | trace")
    assert (ran.status, ran.err) == (0, "")
    (run,) = ran.records
    assert (run["group"], run["status"]) == ("review", "ok")
    assert [(stage["stage"], stage["agent"]) for stage in run["stages"]] == [("1", "writer"), ("2", "reviewer")]
    assert [(edge["from"], edge["to"]) for edge in run["handoffs"]] == [
        ("user", "writer (echo)"), ("writer (echo)", "reviewer (exec)")]  # fmt: skip


def test_it_goes_on_with_the_thread_and_the_run_that_come_by(sh, configured):
    configured(REVIEW)
    ran = sh("dispatch -q --to echo --new First. | group -q review 'Write a parser.' | trace")
    (run,) = ran.records
    assert [stage.get("stage") for stage in run["stages"]] == [None, "1", "2"]
    ran = sh("thread-append t Hi | group -q review | thread-append t >/dev/null; group -q review < t | cat")
    assert (ran.status, ran.kinds()) == (0, "begin user assistant span user assistant span verdict "
                                            "assistant span user assistant span verdict ok end")  # fmt: skip


def test_a_group_may_be_a_file(sh, work):
    (work / "ship.toml").write_text('stages = ["dispatch --to echo"]\n')
    assert masked(sh("group ./ship.toml Hi | jq -r 'select(.role == \"assistant\").content'").out) == "Hi\n"
    (work / "bad.toml").write_text('stages = ["dispatch --to echo"]\nrounds = 3\n')
    assert sh("group bad.toml Hi") == (2, "", "group: bad.toml:2: rounds means nothing; did you mean max_rounds?\n")
    said = 'no.toml:1: has no stages; say stages = ["dispatch --to ...", "judge ..."]'
    assert sh("touch no.toml; group no.toml Hi") == (2, "", f"group: {said}\n")


@pytest.mark.parametrize("text, why", [
    ('[groups.a]\nmax_rounds = 2\nstages = ["cat"]', 'mllm.toml:2: groups.a.max_rounds needs until = "judge ...", which says when it is done'),
    ('[groups.a]\ndescription = "x"', 'mllm.toml:1: groups.a has no stages; say stages = ["dispatch --to ...", "judge ..."]'),
    ("[groups.a]\nstages = [\"dispatch 'x\"]", "mllm.toml:2: groups.a.stages is no command line: No closing quotation"),
    ('[groups.a]\nstages = ["cat"]\nuntil = "grep x"', "mllm.toml:3: groups.a.until is 'grep'; what says when a loop is done is a judge"),
])  # fmt: skip
def test_what_is_no_group_is_told_with_file_and_line(sh, home, configured, text, why):
    configured(text)
    assert sh("group a Hi") == (2, "", f"group: {home}/.config/mllm-pipe/{why}\n")


def test_an_unknown_group_is_told_with_the_nearest(sh, home, configured):
    configured(REVIEW)
    where = f"{home}/.config/mllm-pipe/mllm.toml"
    assert sh("group revew Hi") == (2, "", "group: 'revew' is no group; did you mean review?; say [groups.revew] in "
                                           f"{where}, or name a file: ./revew.toml\n")  # fmt: skip


def test_a_cloned_repository_fires_nothing_before_it_is_trusted(sh, work):
    (work / "mllm.toml").write_text('[groups.review]\nstages = ["touch fired"]\n')
    ran = sh("group review Hi")
    assert (ran.status, (work / "fired").exists()) == (2, False)
    assert sh(f"{AT_TERMINAL} mllm trust").status == 0
    sh("group review Hi")
    assert (work / "fired").exists()
    (work / "fired").unlink()
    with (work / "mllm.toml").open("a") as file:
        file.write("\n")
    assert (sh("group review Hi").status, (work / "fired").exists()) == (2, False)


# -- statuses


@pytest.mark.parametrize("stages, status, why", [
    (["dispatch --to echo", "judge --check contains:no"], 1, ""),
    (["dispatch --to echo", "judge --check contains:no", "dispatch --to echo --as other 'Again.'"], 0, ""),
    (["dispatch --to echo", "judge --check contains:no", "jq -c ."], 1, ""),
    (["dispatch --to exec:false", "dispatch --to echo --as b More.", "judge --check json"], 3, "stage 1 (dispatch) ended with status 3"),
    (["dispatch --to anthropic/claude-opus-5-5", "dispatch --to echo --as b More."], 77, "stage 1 (dispatch) ended with status 77"),
    (["dispatch --to echo", "dispatch --to nobody", "dispatch --to echo --as b More."], 2, "stage 2 (dispatch) ended with status 2"),
    (["dispatch --to echo", "false", "judge --check json"], 3, "stage 2 (false) ended with status 1"),
    (["dispatch --to echo", "sh -c 'cat; exit 1'", "judge --check contains:Hi"], 3, "stage 2 (sh) ended with status 1"),
    (["dispatch --to echo", "sh -c 'cat; exit 1'"], 3, "stage 2 (sh) ended with status 1"),
    (["dispatch --to echo", "judge --check contains:no", "sh -c 'jq -r .content; exit 1'"], 3, "stage 3 (sh) ended with status 1"),
    (["dispatch --to echo", "sh -c 'judge --check contains:no'"], 1, ""),
    (["dispatch --to echo", "sh -c 'judge --check contains:no | cat'"], 1, ""),
    (["dispatch --to echo", "sh -c 'judge --check contains:no | grep -v end; exit 1'"], 3, "stage 2 (sh) ended with status 1"),
    (["sh -c 'dispatch --to exec:false | cat'"], 3, "stage 1 (sh) passed on what had failed"),
    (["dispatch --to echo", "sh -c 'kill -9 $$'", "judge --check json"], 137, "stage 2 (sh) ended with status 137"),
    (["dispatch --to echo", "head -n 1"], 3, "stage 2 (head) cut the stream, or dropped its end record"),
    (["dispatch --to echo", "jq -c 'select(.type != \"end\")'"], 3, "stage 2 (jq) cut the stream, or dropped its end record"),
    (["dispatch --to echo", "jq -c 'select(.role)'"], 0, ""),
    (["dispatch --to echo", "jq -r '.content, tojson'", "head -n 2"], 0, ""),
])  # fmt: skip
def test_the_status_is_that_of_the_first_stage_that_failed_by_itself(sh, work, stages, status, why):
    (work / "g.toml").write_text(f"stages = {orjson.dumps(stages).decode()}\n")
    ran = sh("group -q g.toml Hi >/dev/null")
    assert ran.status == status
    said = [line for line in ran.err.splitlines() if line.startswith("group: ")]
    assert [line.split(";")[0] for line in said] == ([f"group: g: {why}"] if why else [])


def test_what_a_last_stage_that_is_not_ours_writes_goes_out_as_it_is_and_at_once(sh, work):
    (work / "g.toml").write_text('stages = ["sh -c \'cat > /dev/null; printf one; read x < go; echo two\'"]\n')
    assert sh("mkfifo go; group -q g.toml Hi | { head -c 3; echo > go; cat; }") == (0, "onetwo\n", "")
    control = [b'{"v":1,"type":"begin"}', b'{"v":1,"type":"handoff","thread":"t","status":"ok"}', b'{"v":1,"type":"end","threads":1}']
    message = b'{"v":1,"type":"message","thread":"t","id":"%d","role":"user","content":"%b"}'
    records = [message % (1, b"x"), message % (2, b"\\n" * 200_000), b"no record", b"", message % (3, b"begin")]
    plain = b"\n".join([*records, b'{"v": 1, "type": "end", "thr'])
    (work / "blob").write_bytes(os.urandom(300_000) + b"\n" + b"\n".join(control[:2]))
    (work / "plain").write_bytes(plain)
    (work / "stream").write_bytes(b"\n".join([control[0], records[0], control[1], *records[1:], control[1], control[2], plain[-28:]]))
    (work / "g.toml").write_text('stages = ["sh -c \'cat > /dev/null; cat $FILE\'"]\n')
    for name, stored in (("blob", "blob"), ("plain", "plain"), ("stream", "plain")):
        ran = sh(f"group -q g.toml Hi | cmp - {name} && group -q g.toml Hi > out && cmp out {stored}", FILE=name)
        assert ran == (0, "", ""), f"{name}: no control records in a file, and else all there is"
    (work / "g.toml").write_text('stages = ["sh -c \'cat > /dev/null; test -t 1 && echo a terminal\'"]\n')
    assert sh(f"{AT_TERMINAL} group -q g.toml Hi | tr -d '\\r'") == (0, "a terminal\n", "")


def test_where_nobody_takes_what_a_last_stage_that_is_not_ours_writes(sh, work):
    (work / "g.toml").write_text('stages = ["dispatch --to echo", "cat"]\n')
    ran = sh("group -q g.toml Hi > /dev/full")
    said = "group: stdout cannot be written: No space left on device; the same line with --resume ID goes on\n"
    assert (ran.status, masked(ran.err)) == (74, said)
    (work / "deaf").write_text("#!/bin/sh\ntrap '' PIPE\nwhile echo 2>/dev/null; do :; done; exit 1\n")
    (work / "deaf").chmod(0o755)
    (work / "g.toml").write_text('stages = ["./deaf"]\n')
    assert sh("group -q g.toml < /dev/null | head -n 1; echo ${PIPESTATUS[@]}") == (0, "\n141 0\n", "")
    (work / "g.toml").write_text('stages = ["dispatch --to echo", "sh -c \'cat > kept\'"]\n')
    assert sh("group -q g.toml Hi | true; echo ${PIPESTATUS[@]}; jq -c 'select(.type == \"end\").threads' kept") == (0, "0 0\n1\n", "")


def test_what_a_last_stage_leaves_behind_is_not_waited_for(sh, work):
    (work / "leaves").write_text("#!/bin/sh\nsetsid sh -c 'echo > there; read x < go' &\nread x < there; cat\n")
    (work / "leaves").chmod(0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to echo --text", "./leaves"]\n')
    assert sh("mkfifo go there; exec 3<>go; group -q g.toml Hi > out; cat out; echo >&3") == (0, "Hi\n", "")


def test_a_stage_that_is_not_there_is_told_before_any_is_started(sh, work):
    (work / "g.toml").write_text('stages = ["touch fired", "nosuch --flag"]\n')
    (work / "nosuch").write_text("#!/bin/sh\ntouch fired\n")
    (work / "nosuch").chmod(0o755)
    assert sh("group g.toml Hi") == (69, "", "group: nosuch: no such program on PATH; install it or fix PATH\n")
    assert not (work / "fired").exists()


def test_a_stage_whose_name_no_program_can_have_is_told_with_its_line(sh, work):
    (work / "nul.toml").write_text('stages = ["cat\\u0000x"]\n')
    assert sh("group ./nul.toml Hi") == (
        2, "", "group: ./nul.toml:1: stages.0 has a NUL in it, which no program or path can have\n")


def test_the_commands_are_those_of_this_installation(sh, work):
    """Not what lies in the current directory, nor what PATH has by their names."""
    for place in (work, work / "elsewhere"):
        place.mkdir(exist_ok=True)
        for name in ("dispatch", "judge", "group"):
            (place / name).write_text("#!/bin/sh\ntouch fooled\n")
            (place / name).chmod(0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to echo", "sh -c \'judge --check json | cat\'"]\n')
    launchers = {shutil.which("group", path=one) for one in BIN.split(":")} - {None}
    assert launchers
    for launcher in launchers:
        ran = sh(f"PATH=$PWD/elsewhere:$PATH {launcher} -q g.toml '{{}}' | jq -c 'select(.type == \"verdict\").pass'")
        assert (ran, (work / "fooled").exists()) == ((0, "true\n", ""), False)


def test_a_failed_stage_leaves_what_was_made_and_stops_the_later_ones(sh, work):
    (work / "g.toml").write_text('stages = ["dispatch --to echo", "dispatch --to exec:false --as b Go.", "dispatch --to exec:./asked --as c Go."]\n')
    (work / "asked").write_text("#!/bin/sh\ntouch was-asked\n")
    (work / "asked").chmod(0o755)
    ran = sh("group -q g.toml Hi 2>/dev/null | cat")
    assert ran.kinds() == "begin user assistant span user error span failed end" or ran.kinds() == "begin user assistant span user span error failed end"
    assert not (work / "was-asked").exists()


# -- what holds for all stages


def test_a_budget_holds_for_all_stages_together(sh, work, home):
    (home / ".config/mllm-pipe").mkdir(parents=True)
    (home / ".config/mllm-pipe/mllm.toml").write_text("[budget]\nday_usd = 100\n")
    (work / "g.toml").write_text('stages = ["dispatch --to openai/gpt-5-nano", "dispatch --to echo --as b Go."]\n')
    ran = sh("group -q g.toml Hi --max-cost 0.0001 >/dev/null", OPENAI_API_KEY="sk-x")
    assert ran.status == 4
    assert "the budget of $0.0001 a run has $0.0001 left" in ran.err
    (work / "h.toml").write_text('stages = ["sh -c \'echo $MLLM_BUDGET >&2\'"]\n')
    assert sh("group h.toml --max-cost 5").err == "day_usd=100,run_usd=5\n"
    assert sh("group h.toml --max-cost 5", MLLM_BUDGET="run_usd=2,day_tokens=7").err == "run_usd=2,day_tokens=7\n"


@pytest.mark.parametrize("most, calls, status", [("0.000046", 1, 4), ("0.000052", 2, 4), ("0.00008", 3, 0)])
def test_what_one_stage_has_spent_the_next_one_has_not(sh, work, most, calls, status):
    """Each call takes $0.000006 in truth, and might take $0.00004."""
    who = "openai/gpt-5-nano --max-tokens 100"
    (work / "g.toml").write_text(f'stages = ["dispatch --to {who} --as a", "dispatch --to {who} --as b Go.", "dispatch --to {who} --as c On."]\n')
    with serve("responses") as server:
        there = {"OPENAI_API_KEY": "sk-x", "OPENAI_BASE_URL": server.url("ok") + "/v1"}
        ran = sh(f"group -q --new g.toml Hi --max-cost {most} > out", **there)
        assert (ran.status, len(server.calls())) == (status, calls), ran.err
        run = sh("jq -r 'select(.type == \"span\").parent_run_id' out | sort -u").out.strip()
        ran = sh(f"group -q --new g.toml Hi --max-cost 1 --resume {run} | trace", **there)
        assert (ran.status, len(server.calls()), ran.records[0]["cost_usd"]) == (0, 3, 3 * 6.435e-06)


def test_a_timeout_ends_all_stages(sh, work):
    """Of a stage that had asked by then: on a slow machine it takes a longer one."""
    (work / "slow").write_text("#!/bin/sh\ntouch asked\nexec sleep 600\n")
    (work / "slow").chmod(0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to exec:./slow", "judge --check json"]\n')
    limit = 0.35
    while not (work / "asked").exists():
        limit *= 2
        ran = sh(f"group -q g.toml Hi --timeout {limit:g} >/dev/null")
        assert ran.status == 124
        assert ran.err.splitlines()[-1].startswith(f"group: g: not done within {limit:g} s, which --timeout sets")
    assert "sets; the same line with --resume 0" in ran.err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_as_that_signal_and_no_stage_stays(work, home, signum):
    (work / "slow").write_text("#!/bin/sh\nmkfifo never\necho $$ > pid.new\nmv pid.new pid\ncat never\n")
    os.chmod(work / "slow", 0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to exec:./slow", "judge --check json"]\n')
    with subprocess.Popen(["group", "-q", "g.toml", "Hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=work,
                          env=environment(home), stdin=subprocess.DEVNULL) as child:  # fmt: skip
        while not (work / "pid").exists():
            assert child.poll() is None
        pid = int((work / "pid").read_text())
        child.send_signal(signum)
        _, said = child.communicate()
    assert child.returncode == -signum
    assert masked(said.decode()) == "group: g: ended by a signal; the same line with --resume ID goes on\n"
    with pytest.raises(ProcessLookupError):
        while True:  # it was killed by the stage that had started it, and is gone as soon as somebody has waited for it
            os.kill(pid, 0)
    journal = (home / ".local/state/mllm-pipe/journal.jsonl").read_text().splitlines()
    assert [orjson.loads(line)["type"] for line in journal] == ["intent", "outcome"]


def test_a_reader_that_leaves_ends_it(sh, work):
    (work / "g.toml").write_text('stages = ["cat", "cat"]\n')
    assert sh("yes | group g.toml | head -n 1; echo ${PIPESTATUS[@]}") == (0, "y\n141 141 0\n", "")


def test_a_reader_that_leaves_ends_a_loop_in_silence(sh, work):
    (work / "slow").write_text("#!/bin/sh\ngrep -q now && echo good && exit\nmkfifo never\ncat never\n")
    os.chmod(work / "slow", 0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to exec:./slow"]\nuntil = "judge --check contains:good"\n')
    sh("thread-append in --thread a now; thread-append in --thread b later")
    assert sh("group -q g.toml < in | head -n 2 | wc -l; echo ${PIPESTATUS[@]}") == (0, "2\n141 0 0\n", "")


def test_resumed_it_asks_for_the_rest_alone(sh, work):
    (work / "count").write_text("#!/bin/sh\necho x >> $1\ncat >/dev/null\necho answer of $1\n")
    os.chmod(work / "count", 0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to \'exec:./count one\' --as a", "dispatch --to \'exec:./count two\' --as b Go.", "sh -c \'cat >/dev/null; exit 9\'"]\n')
    ran = sh("group -q g.toml Hi >/dev/null")
    assert ran.status == 9
    run = ran.err.split("--resume ")[1].split()[0]
    (work / "g.toml").write_text((work / "g.toml").read_text().replace("sh -c 'cat >/dev/null; exit 9'", "dispatch --to 'exec:./count three' --as c End."))
    again = sh(f"group -q g.toml Hi --resume {run[:30]} | trace")
    (found,) = again.records
    assert (again.status, found["id"]) == (0, run)
    assert [(work / name).read_text() for name in ("one", "two", "three")] == ["x\n", "x\n", "x\n"]
    assert of_run(sh, run) == [("1", "dispatch", "a", "ok"), ("2", "dispatch", "b", "ok"), ("3", "dispatch", "c", "ok")]


def test_a_group_in_a_group_begins_the_run_that_is_gone_on_with(sh, work):
    (work / "in.toml").write_text('stages = ["dispatch --to echo --as a Again."]\n')
    (work / "g.toml").write_text('stages = ["group -q ./in.toml", "dispatch --to exec:false --as b Go."]\n')
    sh("thread-append t Hi")
    ran = sh("group -q g.toml < t > /dev/null")
    assert (ran.status, masked(ran.err.splitlines()[-1])) == (
        3, "group: g: stage 2 (dispatch) ended with status 3; the same line with --resume ID goes on")  # fmt: skip
    run = ran.err.split("--resume ")[1].split()[0]
    assert of_run(sh, run) == [("1", "dispatch", "a", "ok"), ("2", "dispatch", "b", "unknown")]


# -- showing it


def test_print_is_lines_of_shell_that_do_the_same(sh, configured):
    configured(REVIEW)
    printed = sh("group --print review \"It's.\"")
    assert printed == (0, "MLLM_GROUP=review MLLM_STAGE=0 thread-append --new -- 'It'\"'\"'s.' |\n"
                          "  MLLM_GROUP=review MLLM_STAGE=1 dispatch --to echo:small --as writer |\n"
                          "  MLLM_GROUP=review MLLM_STAGE=2 dispatch --to 'exec:echo Quotes are missing.' --as reviewer 'Review it.' |\n"
                          "  MLLM_GROUP=review MLLM_STAGE=3 judge --check contains:Quotes\n", "")  # fmt: skip
    (by_shell,) = sh('eval "$(group --print review "It\'s.")" 2>/dev/null | trace').records
    (by_group,) = sh('group -q review "It\'s." | trace').records

    def told(run):
        return [(stage["stage"], stage["agent"], stage["runtime"]) for stage in run["stages"]], run["group"], run["status"]

    assert told(by_shell) == told(by_group)


@pytest.mark.parametrize("flag", ["--max-cost 3", "--timeout 5", "--resume 01", "--retry-unknown"])
def test_what_the_lines_do_not_hold_to_is_not_printed_away(sh, configured, flag):
    configured(REVIEW)
    said = f"--print shows the stages, and {flag.split()[0]} is in none of them; leave it out"
    assert sh(f"group --print {flag} review Hi") == (2, "", f"group: {said}\n")


def test_a_dry_run_sends_nothing(sh, work):
    (work / "g.toml").write_text('stages = ["dispatch --to \'exec:touch fired\'", "judge --check json"]\n')
    ran = sh("group g.toml --dry-run Hi")
    assert (ran.status, ran.err, (work / "fired").exists()) == (0, "", False)
    assert ran.out.splitlines()[:3] == ["# 0: thread-append --new -- Hi", "# 1: dispatch --to 'exec:touch fired'", "# 2: judge --check json"]
    assert orjson.loads(ran.out.splitlines()[3])["argv"] == ["touch", "fired"]


# -- loops

LOOP = """
stages = ["dispatch --to exec:./writer --as writer"]
until = "judge --check contains:third"
max_rounds = %d
"""
WRITER = "#!/bin/sh\n[ -e n ] || echo 0 > n\nread n < n; echo $((n + 1)) > n\ncat > asked.$n\nset -- first second third\nshift $n; echo the $1 draft\n"


def test_a_loop_goes_round_until_the_judge_says_yes(sh, work):
    (work / "g.toml").write_text(LOOP % 5)
    (work / "writer").write_text(WRITER)
    os.chmod(work / "writer", 0o755)
    ran = sh("group -q g.toml Write. | thread-append t | trace")
    (run,) = ran.records
    assert (ran.status, ran.err, run["status"]) == (0, "", "ok")
    assert [stage["stage"] for stage in run["stages"]] == ["1.1", "2.1", "3.1"]
    assert (work / "n").read_text() == "3\n"
    asked = (work / "asked.1").read_text()
    assert "the first draft" in asked and "contains:third" in asked and "<<<" in asked
    contents = sh("jq -r 'select(.role == \"assistant\").content' t").out
    assert contents == "the first draft\nthe second draft\nthe third draft\n"


def test_a_loop_ends_after_its_rounds_with_no(sh, work):
    (work / "g.toml").write_text(LOOP % 2)
    (work / "writer").write_text(WRITER)
    os.chmod(work / "writer", 0o755)
    ran = sh("group g.toml Write. | cat; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.kinds()) == (1, "begin user assistant span verdict user assistant span verdict no end")
    assert ran.err.endswith(": still no after 2 rounds\n")


def test_what_a_gate_among_the_stages_says_makes_no_round_of_an_answer_that_passes(sh, work):
    (work / "writer").write_text("#!/bin/sh\necho x >> asked; echo 42\n")
    (work / "writer").chmod(0o755)
    (work / "g.toml").write_text('stages = ["dispatch --to exec:./writer", "judge --check max-chars:1"]\nuntil = "judge --check regex:[0-9]"\n')
    ran = sh("group -q g.toml Write. | tee out | cat; exit ${PIPESTATUS[0]}")
    assert (ran.status, ran.err, ran.kinds()) == (1, "", "begin user assistant span verdict verdict no end")
    assert (work / "asked").read_text() == "x\n"
    (work / "in.toml").write_text('stages = ["dispatch --to exec:./writer", "judge --check max-chars:1"]\n')
    (work / "g.toml").write_text('stages = ["group ./in.toml"]\nuntil = "judge --check regex:x"\nmax_rounds = 2\n')
    assert (sh("group -q g.toml --new Write. > out").status, (work / "asked").read_text()) == (1, "x\nx\nx\n")


def test_in_a_loop_each_thread_goes_round_by_itself(sh, work):
    (work / "g.toml").write_text(LOOP % 3)
    (work / "writer").write_text('#!/bin/sh\ntext=$(cat)\ncase $text in *bad*) exit 4 ;; *now*|*third*) echo third ;; *) echo draft ;; esac\n')
    os.chmod(work / "writer", 0o755)
    for name, text in (("a", "now"), ("b", "later"), ("c", "bad")):
        sh(f"thread-append in --thread {name} {text}")
    ran = sh("group -q g.toml < in | jq -rc 'select(.type == \"handoff\" or .type == \"end\") | [.thread, .status, .threads] | @tsv'; exit ${PIPESTATUS[0]}")
    assert ran.status == 3
    assert ran.out.splitlines() == ["a\tok\t", "c\tfailed\t", "b\tok\t", "\t\t3"]


@pytest.mark.parametrize("stage, status, why", [
    ("exit 9", 9, "it did not come back from round 2: stage 2.2 (sh) ended with status 9"),
    ("exit 1", 3, "it did not come back from round 2: stage 2.2 (sh) ended with status 1"),
    ("kill -9 $$", 137, "it did not come back from round 2: stage 2.2 (sh) ended with status 137"),
    ("head -n 5; exit 9", 9, "input ended early"),
])  # fmt: skip
def test_a_stage_that_dies_in_a_later_round_loses_no_thread(sh, work, stage, status, why):
    stages = ["dispatch --to 'exec:echo bad' --as writer", f"sh -c 'case $MLLM_STAGE in 2.*) {stage};; *) cat;; esac'"]
    (work / "g.toml").write_text(f"stages = {orjson.dumps(stages).decode()}\nuntil = 'judge --check contains:good'\n")
    ran = sh("group -q g.toml Write. 2>err | tee out | cat; exit ${PIPESTATUS[0]}")
    assert ran.status == status
    assert ran.kinds().startswith("begin user assistant span verdict user ") and ran.kinds().endswith("error failed end")
    assert [record["message"] for record in ran.records if record["type"] == "error"][-1] == why
    assert len({record["id"] for record in ran.records if "id" in record}) == len([one for one in ran.records if "id" in one])


def test_where_nothing_was_asked_there_is_nothing_to_go_on_with(sh, work):
    (work / "g.toml").write_text('stages = ["dispatch"]\n')
    assert sh("group g.toml Hi 2>&1 >/dev/null | tail -n 1").out == "group: g: stage 1 (dispatch) ended with status 2\n"


def test_a_run_whose_answers_were_not_kept_is_not_to_be_gone_on_with(sh, work):
    (work / "g.toml").write_text('stages = ["dispatch --to echo", "dispatch --to exec:false --as b Go."]\n')
    failed = "group: g: stage 2 (dispatch) ended with status 3"
    assert sh("group -q g.toml Hi 2>&1 >/dev/null | tail -n 1", MLLM_JOURNAL="spans").out == f"{failed}\n"
    assert masked(sh("group -q g.toml Hi 2>&1 >/dev/null | tail -n 1").out) == f"{failed}; the same line with --resume ID goes on\n"


def test_where_stdout_is_full_a_loop_says_how_to_go_on_too(sh, work):
    (work / "g.toml").write_text("stages = [\"dispatch --to 'exec:echo 42'\"]\nuntil = 'judge --check contains:42'\n")
    ran = sh("group -q g.toml Hi > /dev/full")
    said = "group: stdout cannot be written: No space left on device; the same line with --resume ID goes on\n"
    assert (ran.status, masked(ran.err)) == (74, said)


def test_stdin_is_not_both_the_threads_and_the_prompt(sh, work):
    (work / "g.toml").write_text('stages = ["dispatch --to echo --text"]\n')
    said = "group: PROMPT @- is all of stdin, so no thread is left there; to start one with it, say --new @-\n"
    assert sh("echo plain | group -q g.toml @-") == (2, "", said)
    assert sh("echo plain | group -q g.toml --new @-") == (0, "plain\n", "")


def test_the_lines_of_a_loop_do_the_same_for_one_thread(sh, work):
    (work / "g.toml").write_text(LOOP % 4)
    (work / "writer").write_text(WRITER)
    os.chmod(work / "writer", 0o755)
    ran = sh('sh -c "$(group --print g.toml Write.)" 2>/dev/null')
    assert ran.status == 0
    assert [record.get("role", record["type"]) for record in ran.records] == [
        "user", "assistant", "span", "verdict", "user", "assistant", "span", "verdict", "user", "assistant", "span", "verdict"]  # fmt: skip
    spans = [record for record in ran.records if record["type"] == "span"]
    assert [span["stage"] for span in spans] == ["1.1", "2.1", "3.1"]
    assert len({span["parent_run_id"] for span in spans}) == 1


@pytest.mark.parametrize(("flags", "stage", "said"), [
    ("", "", "one\ntwo\n"),  # as they came
    ("", "-q", "two\n"), ("", "-j 2", "two\n"), ("-q", "", "two\n"),  # nobody has seen it
])  # fmt: skip
def test_an_answer_of_a_loop_is_shown_once_at_a_terminal(sh, work, flags, stage, said):
    (work / "bot").write_text("#!/bin/sh\necho x >> n; [ $(wc -l < n) = 1 ] && echo one || echo two\n")
    (work / "bot").chmod(0o755)
    (work / "g.toml").write_text(f'stages = ["dispatch --to exec:./bot {stage}"]\nuntil = "judge --check contains:two"\n')
    ran = sh(f"{AT_TERMINAL} group {flags} ./g.toml Hi")
    assert (ran.status, ran.out.replace("\r\n", "\n")) == (0, said)
    if not flags and not stage:  # what the journal has comes at once, and is not seen before
        run = sh("trace --format ndjson | jq -r .id").out.strip()
        assert sh(f"{AT_TERMINAL} group --resume {run} ./g.toml Hi").out.replace("\r\n", "\n") == said.replace("one\n", "")
