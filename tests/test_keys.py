"""Where keys come from: a variable, a command, a file that only the user can read; and from nowhere else."""

from __future__ import annotations

import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from loopback import serve
from loopback.play import STREAM

KEY = "sk-canary-0123456789abcdef"


class Listening(HTTPServer):
    """Answers every call of the Chat Completions dialect and keeps the keys that it was shown."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.keys: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.keys.append(self.headers.get("authorization", "none").removeprefix("Bearer "))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write((STREAM % '"hi"').encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Listening() as listening:
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield listening
        listening.shutdown()


@pytest.fixture
def configured(home, server):
    def write(more: str) -> None:
        (home / ".config/mllm-pipe").mkdir(parents=True, exist_ok=True)
        text = f'[runtimes.work]\nkind = "openai-chat"\nbase_url = "{server.url}"\nmodel = "m"\n{more}\n'
        (home / ".config/mllm-pipe/mllm.toml").write_text(text)

    return write


SEE = "; see KEYS in mllm-pipe(7)\n"
ASK = "dispatch --to work --new q --text"


def test_the_four_places_of_a_key_and_their_order(sh, server, configured):
    """--key-env before the environment, that before key_command, that before the key file."""
    configured('key_env = "WORK_KEY"\nkey_command = "echo of-command"')
    assert sh("echo of-file | mllm keys set work") == (0, "", "")
    every = {"WORK_KEY": "of-environment", "OTHER_KEY": "of-flag"}
    assert sh(f"{ASK} --key-env OTHER_KEY", **every) == (0, "hi\n", "")
    assert sh(ASK, **every) == (0, "hi\n", "")
    assert sh(ASK, OTHER_KEY="of-flag") == (0, "hi\n", "")
    configured("")
    assert sh(ASK) == (0, "hi\n", "")
    assert server.keys == ["of-flag", "of-environment", "of-command", "of-file"]
    assert sh("mllm keys rm work") == (0, "", "")
    assert sh(ASK) == (0, "hi\n", "") and server.keys[-1] == "none"


def test_a_variable_that_is_named_on_the_line_is_the_only_place(sh, server, configured):
    configured('key_command = "echo of-command"')
    sh("echo of-file | mllm keys set work")
    ran = sh(f"{ASK} --key-env NOWHERE")
    assert (ran.status, server.keys) == (77, [])
    assert ran.err.endswith(f": work: NOWHERE is not set; it should hold the key{SEE}")


def test_a_program_sees_the_key_that_is_named_and_no_other(sh):
    keys = {"OPENAI_API_KEY": "sk-canary-openai", "GROQ_API_KEY": "sk-canary-groq"}
    ask = "dispatch -q --to 'exec:sh -c \"env | grep sk-canary\"' --new q --text"
    assert sh(f"{ask} --key-env GROQ_API_KEY", **keys).out == "GROQ_API_KEY=sk-canary-groq\n"
    ran = sh(f"{ask} --key-env MY_KEY", **keys)
    assert (ran.status, ran.err.endswith(f"exec: MY_KEY is not set; it should hold the key{SEE}")) == (77, True)


def test_a_key_that_is_kept_does_not_follow_base_url(sh, server, configured):
    """It was kept for the place that the configuration names."""
    configured("")
    sh(f"echo {KEY} | mllm keys set work; echo {KEY} | mllm keys set openai-chat")
    assert sh(f"{ASK} --base-url {server.url}/other/..").status == 0
    assert sh(f"dispatch --to openai-chat/m --base-url {server.url} --new q --text").status == 0
    assert server.keys == ["none", "none"]
    sh(f"echo {KEY} | mllm keys set groq")
    ran = sh(f"dispatch --to groq/m --base-url {server.url} --new q")
    said = "GROQ_API_KEY is not set; it should hold the key; the one that mllm keys has for groq is not sent to a --base-url"
    assert (ran.status, ran.err.split(": ", 2)[2]) == (77, f"groq: {said}{SEE}") and len(server.keys) == 2


def test_the_variable_of_openai_goes_to_no_other_server_unless_it_is_named(sh, server):
    """As KEYS in mllm-pipe(7) has it; what OPENAI_BASE_URL says is the user's word for where OpenAI is."""
    ask = "dispatch --to openai-chat/m --new q --text"
    assert sh(f"{ask} --base-url {server.url}", OPENAI_API_KEY=KEY).status == 0
    assert sh(f"{ask} --base-url {server.url} --key-env OPENAI_API_KEY", OPENAI_API_KEY=KEY).status == 0
    assert sh(ask, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url).status == 0
    assert sh(f"dispatch --to groq/m --base-url {server.url} --new q --text", GROQ_API_KEY="gsk").status == 0
    assert server.keys == ["none", KEY, KEY, "gsk"]


@pytest.mark.parametrize("command", ['"echo of-command"', '["echo", "of-command"]', '"./key.sh of-command"',
                                     '''"sh -c 'echo of-command | cat'"'''])  # fmt: skip
def test_a_key_command_is_words_or_a_list_of_them_and_runs_without_a_shell(sh, home, server, configured, command):
    configured(f"key_command = {command}")
    (home / ".config/mllm-pipe/key.sh").write_text('#!/bin/sh\necho "$1"\n')
    (home / ".config/mllm-pipe/key.sh").chmod(0o755)
    assert sh(ASK) == (0, "hi\n", "")
    assert server.keys == ["of-command"]


def test_a_key_command_is_asked_once_by_a_process_and_never_where_nothing_is_sent(sh, work, server, configured, batch):
    configured(f'''key_command = "sh -c 'echo asked >> {work}/asked; echo of-command'"''')
    batch(20)
    assert sh("dispatch -j 8 --to work < in > out") == (0, "", "")
    assert server.keys == ["of-command"] * 20
    assert (work / "asked").read_text() == "asked\n"
    ran = sh(f"{ASK} --dry-run; mllm doctor | grep work; mllm config runtimes.work.key_command --format text")
    assert ran.status == 0 and '"authorization":"Bearer ***"' in ran.out and "\n  work         usable\n" in ran.out
    assert 'key_command = "***"' in ran.out
    assert (work / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(("command", "why"), [
    ("sh -c 'echo locked >&2; exit 3'", "key_command sh: exit status 3: locked"),
    (f"sh -c 'echo {KEY}; echo no {KEY} >&2; exit 3'", "key_command sh: exit status 3: no ***"),
    ("true", "key_command true: what it prints is empty"),
    ("printf 'a\\\\nb'", "key_command printf: what it prints holds a line break, an outer blank or a character outside "
                         "of ASCII; it is no key"),
    ("nosuchprogram", "key_command nosuchprogram: nosuchprogram: no such program on PATH; install it or fix PATH"),
])  # fmt: skip
def test_a_key_command_that_gives_no_key_is_one_line_and_77(sh, server, configured, command, why):
    configured(f'key_command = "{command}"')
    ran = sh(ASK)
    assert (ran.status, ran.out, server.keys) == (77, "", [])
    assert ran.err.split(": ", 2)[2] == f"work: {why}{SEE}"


def test_a_key_command_that_hangs_ends_with_the_call(sh, server, configured):
    configured('key_command = "sleep 60"')
    ran = sh(f"{ASK} --timeout 0.5")
    assert (ran.status, server.keys) == (77, [])
    assert "work: key_command sleep: no whole answer within 0.5 s; --timeout sets the limit" in ran.err


def test_a_key_command_hears_nothing_of_stdin_and_has_no_other_key(sh, server, configured):
    configured('''key_command = "sh -c 'cat; echo got-$OPENAI_API_KEY$MINE'"''')
    assert sh("dispatch --to echo --new q | dispatch --to work more > out", OPENAI_API_KEY=KEY, MINE="1").status == 0
    assert server.keys == ["got-1"]


@pytest.mark.parametrize("command", ["5", '""', "[]", "[1]", "\"un'closed\""])
def test_a_key_command_that_is_none_is_told_with_its_line(sh, home, configured, command):
    configured(f"key_command = {command}")
    ran = sh(ASK)
    assert ran.status == 2 and f"{home}/.config/mllm-pipe/mllm.toml:5: runtimes.work.key_command" in ran.err


def test_a_project_names_no_key_command_before_it_is_trusted_and_no_key_file_after(sh, work, server):
    """What came with a directory must not have a key that the user keeps by some name sent to where it says."""
    sh(f"echo {KEY} | mllm keys set groq")
    (work / "mllm.toml").write_text(f'[runtimes.work]\nkind = "openai-chat"\nmodel = "m"\nbase_url = "{server.url}"\n'
                                    f'key_command = "touch {work}/ran"\n')  # fmt: skip
    assert sh(ASK).status == 2 and not (work / "ran").exists()
    text = (work / "mllm.toml").read_text().replace("key_command", "#")
    (work / "mllm.toml").write_text(text)
    sh("mkdir -p ~/.config/mllm-pipe; cp mllm.toml ~/.config/mllm-pipe; "
       f"echo {KEY} | mllm keys set work; script -qec 'mllm trust' /dev/null < /dev/null")  # fmt: skip
    assert sh(ASK) == (0, "hi\n", "") and server.keys == ["none"]
    for named in ("mllm.toml", f"{work}/./mllm.toml"):
        assert sh(ASK, MLLM_CONFIG=named) == (0, "hi\n", "") and {*server.keys} == {"none"}
    server.keys.clear()
    assert sh(ASK, MLLM_CONFIG="../home/.config/mllm-pipe/mllm.toml") == (0, "hi\n", "") and server.keys == [KEY]
    server.keys[:] = ["none"]
    assert sh(f"rm mllm.toml; {ASK}") == (0, "hi\n", "") and server.keys == ["none", KEY]


# -- the files


def test_a_key_is_kept_for_its_owner_alone_and_is_never_shown(sh, home):
    ran = sh(f"umask 000; printf {KEY} | mllm keys set anthropic; mllm keys list; stat -c %a ~/.config/mllm-pipe/keys "
             "~/.config/mllm-pipe/keys/anthropic; cat ~/.config/mllm-pipe/keys/anthropic")  # fmt: skip
    assert ran == (0, f"anthropic  ***  {home}/.config/mllm-pipe/keys/anthropic\n700\n600\n{KEY}\n", "")
    assert sh("mllm doctor | grep anthropic").out == "  anthropic    usable\n"
    assert sh("mllm config keys --format text").out == (
        f'keys.anthropic = "***"  # mllm keys: {home}/.config/mllm-pipe/keys/anthropic:1\n')  # fmt: skip
    ran = sh("mllm keys list --format json | jq -c '.[0] | [.runtime, .fault]'; mllm keys rm anthropic; mllm keys list")
    assert ran == (0, '["anthropic",null]\n', "")


@pytest.mark.parametrize("mode", ["644", "640", "602"])
def test_a_key_file_that_others_can_reach_is_refused(sh, home, server, configured, mode):
    configured("")
    path = home / ".config/mllm-pipe/keys/work"
    sh(f"echo {KEY} | mllm keys set work; chmod {mode} {path}")
    ran = sh(ASK)
    why = f"has mode 0{mode}, so others can reach it; say chmod 600, or set a new key"
    assert (ran.status, ran.out, server.keys) == (77, "", [])
    assert ran.err.split(": ", 2)[2] == f"work: the key file {path} {why}{SEE}"
    assert sh("mllm keys list").out == f"work  ***  {path} {why}\n"
    assert sh("mllm doctor | grep ' work '").out.endswith(f"no: the key file {path} {why}\n")
    assert sh(f"echo {KEY} | mllm keys set work; {ASK}") == (0, "hi\n", "") and server.keys == [KEY]


def test_a_key_is_typed_at_a_hidden_prompt(sh, home):
    ran = sh(f"(until grep -q 'Key of groq: ' shown 2>/dev/null; do sleep 0.05; done; echo {KEY}) | script -qefc 'mllm keys set groq' shown")
    assert ran.status == 0 and ran.out.startswith("Key of groq: ")
    assert (home / ".config/mllm-pipe/keys/groq").read_text() == f"{KEY}\n"


@pytest.mark.parametrize(("line", "status", "why"), [
    ("mllm keys set antropic < /dev/null", 2, "NAME is no runtime that a key is kept for; did you mean anthropic?; there are anthropic, "),
    ("mllm keys set echo < /dev/null", 2, "NAME is no runtime that a key is kept for; there are anthropic, "),
    (f"mllm keys set {KEY} < /dev/null", 2, "NAME is no runtime that a key is kept for; there are anthropic, "),
    ("mllm keys set groq < /dev/null", 2, "stdin is empty; the key comes from there: op read ... | mllm keys set groq\n"),
    ("mllm keys set groq <&-", 2, "stdin is empty; the key comes from there: op read ... | mllm keys set groq\n"),
    ("printf 'a\\nb' | mllm keys set groq", 2, "what was given holds a line break, an outer blank or a character outside"),
    ("mllm keys rm groq", 66, "no key is kept by that name; mllm keys list shows the names\n"),
    ("mllm keys rm ../mllm.toml", 66, "no key is kept by that name; mllm keys list shows the names\n"),
    (f"mllm keys rm {KEY}", 66, "no key is kept by that name; mllm keys list shows the names\n"),
    ("echo k | XDG_CONFIG_HOME=/proc mllm keys set groq", 74, "/proc/mllm-pipe/keys/groq: No such file or directory\n"),
])  # fmt: skip
def test_what_is_no_key_or_name_is_told(sh, line, status, why):
    ran = sh(line)
    assert (ran.status, ran.out) == (status, "") and ran.err.startswith(f"mllm: {why}")
    assert KEY not in ran.err


# -- the agent programs themselves


@pytest.mark.parametrize(("kind", "dialect", "tail", "header"), [
    ("claude", "anthropic", "", "x-api-key"), ("codex", "responses", "/v1", "authorization"),
    ("gemini", "google", "", "x-goog-api-key"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["command", "file"])
def test_an_agent_program_is_given_the_key_of_a_command_or_a_file(sh, home, kind, dialect, tail, header, place):
    programs = os.environ.get("MLLM_TEST_PROGRAMS", "")
    if not shutil.which(kind, path=programs):
        pytest.skip(f"{kind} is not in $MLLM_TEST_PROGRAMS")
    with serve(dialect) as server:
        text = f'[runtimes.work]\nkind = "{kind}"\nbase_url = "{server.url("ok", tail)}"\n'
        text += 'key_command = "printenv CANARY"\n' if place == "command" else ""
        (home / ".config/mllm-pipe").mkdir(parents=True)
        (home / ".config/mllm-pipe/mllm.toml").write_text(text)
        if place == "file":
            sh(f"echo {KEY} | mllm keys set work")
        ran = sh(f"PATH={programs}:$PATH; {ASK}", CANARY=KEY)
        assert (ran.status, ran.out[:11]) == (0, "LOOPBACK-OK"), ran.err
        assert KEY not in ran.out + ran.err
        assert all(header in call["headers"] for call in server.calls())


@pytest.mark.parametrize("line", [f"mllm keys set groq {KEY}", f"mllm keys set --{KEY} groq",
                                  f"dispatch --to groq/m --key-env {KEY} --new q"])  # fmt: skip
def test_a_key_in_the_wrong_place_is_not_said_again(sh, line):
    ran = sh(line)
    assert ran.status == 2 and ran.out == "" and KEY not in ran.err and ran.err.count("\n") == 1


def test_a_key_in_place_of_the_name_of_its_variable_is_not_said_again(sh, configured):
    configured(f'key_env = "{KEY}"')
    ran = sh(ASK)
    assert ran.status == 2 and KEY not in ran.err
    assert ran.err.endswith("key_env is no name of a variable; the key itself is not kept there\n")


def test_what_is_too_long_for_a_key_is_not_kept_in_part(sh):
    ran = sh("head -c 70000 /dev/zero | tr '\\0' k | mllm keys set groq; mllm keys list")
    assert ran == (0, "", "mllm: what was given is longer than 64 KiB; it is no key\n")


@pytest.mark.parametrize(("there", "why"), [
    ("mkdir F", "is no regular file; remove it"), ("mkfifo F", "is no regular file; remove it"),
    ("touch F; chmod 600 F", "is empty; mllm keys set work writes it anew"),
    ("printf 'a\\nb\\n' > F; chmod 600 F", "holds a line break, an outer blank or a character outside of ASCII; it is no key; "
                                          "mllm keys set work writes it anew"),
    ("ln -s nowhere F", "cannot be read: No such file or directory"),
    ("echo k > ../k; chmod 600 ../k; ln -s ../../../k F", "")])  # fmt: skip
def test_what_is_said_of_a_key_file_is_what_a_call_finds(sh, home, configured, server, there, why):
    """A link to a file that only the user can read is as good as the file; one to nowhere is no key."""
    configured("")
    path = home / ".config/mllm-pipe/keys/work"
    made = f"mkdir -p {path.parent}; {there.replace('F', str(path)).replace('../../../k', '$PWD/../k')}"
    ran = sh(f"{made}; mllm keys list; mllm doctor | grep work; {ASK}")
    listed, doctor, *answer = ran.out.splitlines()
    assert listed == f"work  ***  {path}{' ' + why if why else ''}"
    refused = why != "" and not why.startswith("cannot")
    if refused:
        assert doctor == f"  work         no: the key file {path} {why}"
        assert (ran.status, answer) == (77, []) and why in ran.err
    assert ("usable" in doctor) == (ran.status == 0) == (not refused)


@pytest.mark.parametrize("line", [f"echo {KEY} | mllm keys set openai", "mllm keys rm openai"])
def test_what_a_killed_set_has_left_goes_with_the_next(sh, home, line):
    sh(f"echo {KEY} | mllm keys set openai; echo {KEY} | mllm keys set groq")
    folder = home / ".config/mllm-pipe/keys"
    living, dead, other = f"openai~{os.getpid()}", f"openai~{2**31 - 1}", f"groq~{2**31 - 1}"
    for name in (living, dead, other):
        (folder / name).write_text(KEY)
    assert sh(line).status == 0
    assert sorted({file.name for file in folder.iterdir()} - {"openai"}) == sorted(["groq", living, other])
