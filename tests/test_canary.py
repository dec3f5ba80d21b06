"""A key that is a canary, through every path that is known to have leaked one somewhere: it is nowhere but on the wire.

Each path is a line of shell. Then its two streams, every file that it made, and, while it ran, the command line and the
environment of every process that it started are searched for the key.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from loopback.chaos import KEY, Chaos

API = "--key-env CANARY --max-retries 0 --timeout 20"
CHAT = f"{API} --to openai-chat/m --base-url $CHAT"

# By what may leak it: the line. $CHAT, $MESSAGES, $RESPONSES and $GOOGLE are servers that play $FAULT.
PATHS = {
    "an answer": f"dispatch {CHAT} --new q > t",
    "an answer on a terminal": f"script -qec 'dispatch {CHAT} --new q' /dev/null < /dev/null",
    "a fan-out": f"CANARY2=$CANARY; dispatch {API} --to echo --to openai-chat/m --new q > t",
    "the echo of the key under 401": f"FAULT 401-echo dispatch {CHAT} --new q | cat",
    "the same, anthropic": f"FAULT 401-echo dispatch {API} --to anthropic/m --base-url $MESSAGES --new q | cat",
    "the same, openai": f"FAULT 401-echo dispatch {API} --to openai/m --base-url $RESPONSES --new q | cat",
    "the same, google": f"FAULT 401-echo dispatch {API} --to google/m --base-url $GOOGLE --new q | cat",
    "the same, judged": f"dispatch --to echo --new q | FAULT 401-echo judge {API} --by openai-chat/m --base-url $CHAT "
                        "--rubric correctness | cat",  # fmt: skip
    "the same, routed": f"FAULT 401-echo dispatch {CHAT} --new q | trace",
    "the same, and a fallback": f"FAULT 401-echo dispatch {CHAT} --fallback echo --new q > t",
    "a redirect": f"FAULT redirect-307 dispatch {CHAT} --new q | cat",
    "a redirect, google": f"FAULT redirect-302 dispatch {API} --to google/m --base-url $GOOGLE --new q | cat",
    "a reset": f"FAULT reset-at-once dispatch {CHAT} --new q | cat",
    "garbage for an answer": f"FAULT no-http dispatch {CHAT} --new q | cat",
    "an error within a stream": f"FAULT error-mid-stream dispatch {CHAT} --new q | cat",
    "a cut stream": f"FAULT cut dispatch {CHAT} --new q | cat",
    "a host that is not there": f"dispatch {API} --to openai-chat/m --base-url http://127.0.0.1:1/v1 --new q | cat",
    "a URL that is none": f"dispatch {API} --to openai-chat/m --base-url 'http://[::/v1' --new q | cat",
    "a key in the URL": f"export OPENAI_BASE_URL=\"http://me:$CANARY@127.0.0.1:1/v1?key=$CANARY\"; "
                        f"dispatch {API} --to openai/m --new q | cat; dispatch {API} --to openai/m --new q --dry-run",  # fmt: skip
    "a key with a newline": f"CANARY=$(printf '%s\\nx' $CANARY) dispatch {CHAT} --new q | cat",
    "a key with a blank at its end": f"CANARY=\"$CANARY \" dispatch {CHAT} --new q | cat",
    "a key outside of ASCII": f"CANARY=ü$CANARY dispatch {CHAT} --new q | cat",
    "a dry run": f"dispatch {CHAT} --dry-run --new q",
    "a dry run, anthropic": f"dispatch {API} --to anthropic/m --base-url $MESSAGES --dry-run --new q",
    "a dry run, google": f"dispatch {API} --to google/m --base-url $GOOGLE --dry-run --new q",
    "a dry run of a program": "ANTHROPIC_API_KEY=$CANARY dispatch --to claude --dry-run --new q",
    "a dry run of codex": "OPENAI_API_KEY=$CANARY dispatch --to codex --dry-run --new q",
    "a dry run of gemini": "GEMINI_API_KEY=$CANARY dispatch --to gemini --dry-run --new q",
    "a dry run of opencode": "OPENAI_API_KEY=$CANARY dispatch --to opencode:openai/m --dry-run --new q",
    "a traceback": f"MLLM_DEBUG=1 FAULT 401-echo dispatch {CHAT} --new q | cat",
    "a defect": "OPENAI_API_KEY=$CANARY MLLM_DEBUG=1 dispatch --to replay:/proc/self/mem --new q | cat",
    "doctor": "export ANTHROPIC_API_KEY=$CANARY OPENAI_API_KEY=$CANARY GEMINI_API_KEY=$CANARY XAI_API_KEY=$CANARY; "
              "mllm doctor; mllm doctor --format json",  # fmt: skip
    "the configuration": "mllm config --format text; mllm config --format ndjson; OPENAI_API_KEY=$CANARY mllm config",
    "a header of the configuration": "dispatch --to headed --new q > t; dispatch --to headed --dry-run --new q",
    "a key command": "dispatch --to commanded --new q > t; dispatch --to commanded --dry-run --new q; mllm config",
    "a key command that fails": "dispatch --to failing --new q | cat",
    "a kept key": "cp -r kept .config && XDG_CONFIG_HOME=$PWD/.config dispatch --to work --new q > t; rm -r .config",
    "a kept key, listed": "XDG_CONFIG_HOME=$PWD/kept mllm keys list; XDG_CONFIG_HOME=$PWD/kept mllm config keys; "
                          "XDG_CONFIG_HOME=$PWD/kept mllm doctor",  # fmt: skip
    "a kept key that others can read": "cp -r kept open; chmod 644 open/mllm-pipe/keys/work; "
                                       "XDG_CONFIG_HOME=$PWD/open dispatch --to work --new q | cat; rm -r open",  # fmt: skip
    "a kept key that is none": "printf '%s\\nand more' $CANARY | mllm keys set groq",
    "a program of the user's": "export OPENAI_API_KEY=$CANARY; unset CANARY; dispatch --to 'exec:sh -c env' --new q > t",
    "a tool": "export OPENAI_API_KEY=$CANARY; unset CANARY; dispatch --to echo --new q | judge --check 'exec:sh -c \"env; false\"'",
    "the journal and the trace": f"dispatch {CHAT} --new q > t; trace --journal; trace --journal --format html > t.html || :",
    "a run that is resumed": f"export MLLM_PARENT_RUN_ID=r; dispatch {CHAT} --resume r --new q > t; "
                             f"dispatch {CHAT} --resume r --new q > t",  # fmt: skip
    "the cache": f"dispatch {CHAT} --cache --new q > t; dispatch {CHAT} --cache --new q > t",
    "a budget": f"dispatch {CHAT} --max-tokens-total 1 --new q | cat",
    "a progress line": f"seq 9 | jq -c '{{role: \"user\", content: \"\\(.)\"}}' | thread-append - > in; "
                       f"script -qec 'dispatch -j 3 --rate 9/s {CHAT} < in > t' /dev/null",  # fmt: skip
    "a signal": f"FAULT stall-mid-body dispatch {CHAT} --new q > t & sleep 1; kill $!; wait $!",
    "an exported session": f"dispatch {CHAT} --new q > t; thread-export --to claude t -o x || :",
    "tools and schemas": f"dispatch {CHAT} --schema 'name' --new q | cat",
    "what is wrong on the line": f"dispatch {CHAT} --nosuch; dispatch {CHAT} --timeout x --new q; dispatch {CHAT} --to nosuch --new q",
}  # fmt: skip


class Watch:
    """What the processes below this one say of themselves, in /proc, while a line runs."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def look(self) -> None:
        while not self.ended.wait(0.002):
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        self.seen.add(Path(f"/proc/{entry}/cmdline").read_bytes())
                    except OSError:
                        continue


@pytest.fixture(scope="module")
def chaos():
    with Chaos() as server:
        yield server


def configuration(server: Chaos) -> tuple[str, str]:
    """What stands in mllm.toml: runtimes that have the key in some way, and one that has it from a file."""
    here = f'kind = "openai-chat"\nmodel = "m"\nbase_url = "{server.url("early-hints", "openai-chat", "/v1")}"\n'
    failing = "sh -c 'echo no $CANARY >&2; echo $CANARY; exit 1'"
    return (f'[runtimes.headed]\n{here}headers = {{ "x-key" = "{KEY}" }}\n'
            f'[runtimes.commanded]\n{here}key_command = "printenv CANARY"\n'
            f'[runtimes.failing]\n{here}key_command = "{failing}"\n'), f"[runtimes.work]\n{here}"  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_key_is_nowhere_but_on_the_wire(sh, home, work, chaos, path):
    several, one = configuration(chaos)
    (home / ".config/mllm-pipe").mkdir(parents=True)
    (home / ".config/mllm-pipe/mllm.toml").write_text(several)
    (work / "kept/mllm-pipe/keys").mkdir(parents=True)
    (work / "kept/mllm-pipe/mllm.toml").write_text(one)
    (work / "kept/mllm-pipe/keys/work").write_text(KEY + "\n")
    (work / "kept/mllm-pipe/keys/work").chmod(0o600)
    line, fault = PATHS[path], "early-hints"
    if "FAULT " in line:
        fault = line.partition("FAULT ")[2].split()[0]
        line = line.replace(f"FAULT {fault} ", "")
    urls = {"CHAT": ("openai-chat", "/v1"), "RESPONSES": ("openai", "/v1"), "MESSAGES": ("anthropic", ""), "GOOGLE": ("google", "")}
    with Watch() as watch:
        ran = sh(line, CANARY=KEY, **{name: chaos.url(fault, dialect, tail) for name, (dialect, tail) in urls.items()})
    ours = {home / ".config/mllm-pipe/mllm.toml", work / "kept/mllm-pipe/keys/work"}
    files = [file for folder in (home, work) for file in folder.rglob("*") if file.is_file() and file not in ours]
    said = {"stdout": ran.out.encode(), "stderr": ran.err.encode(), "argv": b"\n".join(watch.seen - {b""})}
    said |= {str(file): file.read_bytes() for file in files if not stat.S_ISFIFO(file.stat().st_mode)}
    assert [where for where, text in said.items() if KEY.encode() in text] == []
    assert ran.out or ran.err or files, "a path that did nothing shows nothing"
    assert chaos.elsewhere == b""
    assert "a defect of ours" not in ran.err and "Traceback" not in ran.err


def test_there_are_forty_paths():
    assert len(PATHS) >= 40
