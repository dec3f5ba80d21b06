"""The documents tell the truth: their examples are run, and help, pages, bin/, entry points and completions agree.

What a document may hold, so that it can be checked:

    README      ```console   `$ ` begins a command, `> ` goes on with it; what follows is what a terminal shows
                ```sh        examples that need a vendor or a network: the shell has to understand them
                ```make      written to the file that its first line names: `# gate.mk`
                ```toml      mllm.toml, where the commands run
    man pages   .EX ... .EE  with `$ ` lines as console, with [sections] as toml, the user's mllm.toml, else as sh
    --help      `$ ` begins a command that has to end with status 0

All examples of a document are run in one shell, in order, at a terminal, in an empty home, offline. Ids, times,
durations and long counts are masked, runs of blanks are made even. An example with a filter (jq) that is not installed
is left out.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import termios
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from mllm_pipe import agents, errors, manual

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.findall(r'(?m)^__version__ = "(.*)"$', (ROOT / "mllm_pipe" / "__init__.py").read_text())[0]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMANDS = sorted(PROJECT["project"]["scripts"])
PAGES = sorted(page.name for page in (ROOT / "man").iterdir())
SIGNALS = {130, 141, 143}  # 128 + SIGINT, SIGPIPE, SIGTERM
FILTERS = ("jq",)
ESCAPES = {r"\-": "-", r"\(aq": "'", r"\(ga": "`", r"\(ha": "^", r"\(ti": "~", r"\&": "", r"\e": "\\"}
LIMIT_S = 600.0  # of all examples of a document: only what hangs takes so long


class Block(NamedTuple):
    kind: str  # console, sh, make or toml
    text: str


class Example(NamedTuple):
    command: str
    shown: str


# -- reading the documents ---------------------------------------------------------------------------------------------


def readme_blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", text)]


def page_blocks(page: str) -> list[Block]:
    blocks = []
    for found in re.findall(r"(?ms)^\.EX\n(.*?)^\.EE$", page):
        text = plain(found)
        kind = "console" if text.startswith("$ ") else "toml" if text.startswith("[") else "sh"
        blocks.append(Block(kind, text))
    return blocks


def plain(roff: str) -> str:
    """What a page shows of its source, but for the macros."""
    for escape, shown in ESCAPES.items():
        roff = roff.replace(escape, shown)
    return re.sub(r"\\f[BIRP]", "", roff)


def examples(block: str) -> list[Example]:
    found: list[list[str]] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0] += line[2:]
        else:
            found[-1][1] += line
    return [Example(*pair) for pair in found]


def document(name: str) -> list[Block]:
    if name == "README.md":
        return readme_blocks((ROOT / name).read_text())
    return page_blocks((ROOT / "man" / name).read_text())


# -- running them ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has just come, with this interpreter's commands first on the PATH."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR")}
    path = os.pathsep.join([str(Path(sys.executable).parent), str(ROOT / "bin"), os.environ["PATH"]])
    home = {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "100"}
    for name, folder in {"XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}.items():
        home[name] = str(tmp_path / folder)
    return kept | home


def run(command: list[str], home: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=home, cwd=home["HOME"], stdin=subprocess.DEVNULL, capture_output=True, text=True)


def at_a_terminal(script: str, folder: Path, home: dict[str, str]) -> str:
    """What a terminal shows of a shell script."""
    ours, its = pty.openpty()
    modes = termios.tcgetattr(its)
    modes[1] &= ~termios.OPOST  # newlines stay what they are
    termios.tcsetattr(its, termios.TCSANOW, modes)
    shell = subprocess.Popen(["sh", "-c", script], stdin=its, stdout=its, stderr=its, cwd=folder, env=home,
                             start_new_session=True)  # fmt: skip
    os.close(its)
    shown, deadline = b"", time.monotonic() + LIMIT_S
    try:
        while True:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], f"no end; so far: {shown!r}"
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the last one at the terminal has left
                break
            if not piece:
                break
            shown += piece
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    return shown.decode()


def masked(text: str) -> str:
    text = re.sub(r"\x1b\[[\d;]*m", "", text)  # jq colours what a terminal gets
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"\b[0-9a-f]{24}\b", "MARK", text)  # of a fence
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"\b\d+(\.\d+)?m?s\b", "DURATION", text)
    text = re.sub(r"(?<=  )\d{3,}(?=  )", "TOKENS", text)  # of a judge's whole question
    text = re.sub(r"\[[\w.]+:\d+: (\w+)\] Error", r"[\1] Error", text)  # make says where, or does not
    return re.sub(r"(?m) +$", "", re.sub(r" {2,}", "  ", text))


def transcript(of: list[Example]) -> list[str]:
    return [line for one in of for line in f"$ {one.command}{masked(one.shown)}".splitlines()]


def runnable(example: Example) -> bool:
    return all(shutil.which(name) or not re.search(rf"\b{name}\b", example.command) for name in FILTERS)


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_every_example_shows_what_it_says(name: str, home: dict[str, str], tmp_path: Path) -> None:
    blocks = document(name)
    folder = tmp_path / "work"
    folder.mkdir()
    for block in blocks:
        if block.kind == "make":
            (folder / block.text.split()[1]).write_text(block.text)
        elif block.kind == "toml" and name == "README.md":
            (folder / "mllm.toml").write_text(block.text)
        elif block.kind == "toml":
            configuration = tmp_path / "config" / "mllm-pipe" / "mllm.toml"
            configuration.parent.mkdir(parents=True, exist_ok=True)
            configuration.write_text(block.text)
    said = [one for block in blocks if block.kind == "console" for one in examples(block.text) if runnable(one)]
    script = "".join(f"{example.command}status=$?; printf '\\036'; (exit $status)\n" for example in said)
    shown = at_a_terminal(script, folder, home).split("\036")
    found = [Example(example.command, text) for example, text in zip(said, shown, strict=False)]
    assert transcript(found) == transcript(said)


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_the_shell_understands_the_other_examples(name: str, home: dict[str, str]) -> None:
    for block in document(name):
        if block.kind == "sh":
            checked = subprocess.run(["sh", "-n"], input=block.text, env=home, capture_output=True, text=True)
            assert (checked.stderr, checked.returncode) == ("", 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_help_end_well(name: str, home: dict[str, str]) -> None:
    for line in help_of(name, home).splitlines():
        if line.lstrip().startswith("$ "):
            ended = run(["sh", "-c", line.lstrip()[2:]], home)
            assert (ended.stderr, ended.returncode) == ("", 0), line


# -- one source for each fact ------------------------------------------------------------------------------------------


def help_of(name: str, home: dict[str, str]) -> str:
    shown = run([*name.split(), "--help"], home)
    assert (shown.stderr, shown.returncode) == ("", 0)
    return shown.stdout


def subcommands(home: dict[str, str]) -> list[str]:
    """Those of mllm that are no commands of their own."""
    listed = re.findall(r"(?m)^  ([a-z-]+) ", help_of("mllm", home).partition("Commands:")[2])
    return [f"mllm {name}" for name in listed if name not in COMMANDS]


def statuses(page: str) -> set[int]:
    """The exit statuses that the page of a command, or mllm-pipe(7), names."""
    section = page.partition(".SH EXIT STATUS")[2].partition("\n.SH ")[0]
    tags = re.findall(r"(?m)^\.TP.*\n(.*)$", section)
    return {int(number) for tag in tags for number in re.findall(r"\d+", tag)}


def known_statuses() -> set[int]:
    constants = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)}
    return constants | set(errors.STATUS_OF_CODE.values())


def test_what_is_made_from_the_code_is_up_to_date() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in manual.made().items()
             if not path.exists() or path.read_text() != text]  # fmt: skip
    assert stale == [], "python -m mllm_pipe.manual writes them anew"


def test_every_command_has_launcher_page_completion_and_entry_point(home: dict[str, str]) -> None:
    assert sorted(path.name for path in (ROOT / "bin").iterdir()) == COMMANDS
    assert sorted(path.stem for path in (ROOT / "man").glob("*.1")) == COMMANDS
    assert sorted(path.name for path in (ROOT / "completions" / "bash").iterdir()) == COMMANDS
    assert sorted(path.name.removeprefix("_") for path in (ROOT / "completions" / "zsh").iterdir()) == COMMANDS
    assert sorted(path.stem for path in (ROOT / "completions" / "fish").iterdir()) == COMMANDS
    for name in COMMANDS:
        launcher = ROOT / "bin" / name
        assert launcher.stat().st_mode & stat.S_IXUSR
        assert run([str(launcher), "--help"], home).stdout == help_of(name, home)


def test_every_option_of_help_stands_in_the_page(home: dict[str, str]) -> None:
    for name in [*COMMANDS, *subcommands(home)]:
        page = plain((ROOT / "man" / f"{name.split()[0]}.1").read_text())
        lines = re.findall(r"(?m)^  (-.*)$", help_of(name, home))
        flags = {flag for line in lines for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line.split("  ")[0])}
        assert [flag for flag in sorted(flags) if not re.search(rf"(?<![\w-]){flag}(?![\w-])", page)] == [], name


def test_every_subcommand_stands_in_the_page_of_mllm(home: dict[str, str]) -> None:
    page = (ROOT / "man" / "mllm.1").read_text()
    assert re.findall(r"(?m)^\.SS ([a-z]+)$", page.partition(".SH OPTIONS")[0]) == \
        [name.split()[1] for name in subcommands(home)]  # fmt: skip


def test_pages_name_exit_statuses_that_there_are() -> None:
    whole = statuses((ROOT / "man" / "mllm-pipe.7").read_text())
    assert whole == known_statuses() | SIGNALS
    for name in COMMANDS:
        given = statuses((ROOT / "man" / f"{name}.1").read_text())
        assert given and given <= whole, name
    table = re.findall(r"\| (\d+) \|", (ROOT / "README.md").read_text())
    assert {int(number) for number in table} <= whole


def test_pages_name_one_another_and_this_version() -> None:
    for name in PAGES:
        page = (ROOT / "man" / name).read_text()
        assert f'"mllm\\-pipe {VERSION}"' in page.split("\n.SH", 1)[0], name
        others = re.findall(r"(?m)^\.BR ([\w\\-]+) \(([157])\)", page.partition(".SH SEE ALSO")[2])
        ours = [f"{plain(other)}.{section}" for other, section in others if plain(other) != "jq"]
        assert set(ours) <= set(PAGES) - {name}, name


def test_readme_lists_the_runtimes_that_there_are() -> None:
    table = re.search(r"(?ms)^\| `--to` \|.*?\n\n", (ROOT / "README.md").read_text())
    assert table
    cells = re.findall(r"(?m)^\| (`.*?) \|", table[0])
    names = {re.split(r"[:/]", name)[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert names - {"--to"} == {*agents.builtin(), *agents.presets()}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_sound(name: str) -> None:
    checks = {"groff": ["groff", "-man", "-ww", "-Tutf8", "-z"], "mandoc": ["mandoc", "-T", "lint"]}
    there = [command for program, command in checks.items() if shutil.which(program)]
    if not there:
        pytest.skip("neither groff nor mandoc is installed")
    for command in there:
        checked = subprocess.run([*command, str(ROOT / "man" / name)], capture_output=True, text=True)
        assert checked.stdout + checked.stderr == ""
