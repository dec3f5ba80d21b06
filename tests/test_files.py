"""Files that are read whole: one that never ends is refused, a pipe is as good as a file."""

from __future__ import annotations

import os

import pytest

ASKED = "dispatch -q --to echo --new '{\"a\": 1}' | judge "
TOO_MUCH = "it has more than 64 MiB; is it the file that was meant?"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("MLLM_CONFIG=/dev/zero dispatch --to mine x", f"dispatch: MLLM_CONFIG: /dev/zero: {TOO_MUCH}"),
        ("ln -s /dev/zero ~/.config/mllm-pipe/mllm.toml; dispatch --to mine x",
         f"dispatch: HOME/.config/mllm-pipe/mllm.toml: {TOO_MUCH}"),
        ("truncate -s 1T mllm.toml; dispatch --to mine x", f"dispatch: WORK/mllm.toml: {TOO_MUCH}"),
        ("mllm trust /dev/zero", f"mllm: /dev/zero: {TOO_MUCH}"),
        ("thread-append --new @/dev/zero", f"thread-append: /dev/zero: {TOO_MUCH}"),
        ("thread-append --new @- < /dev/zero", f"thread-append: stdin: {TOO_MUCH}"),
        ("thread-append --new --system @/dev/zero x", f"thread-append: /dev/zero: {TOO_MUCH}"),
        ("thread-append --new -a /dev/zero x", f"thread-append: /dev/zero: {TOO_MUCH}"),
        ("dispatch --to echo -a - x < /dev/zero", f"dispatch: stdin: {TOO_MUCH}"),
        ("dispatch --to echo --schema /dev/zero x", f"dispatch: --schema /dev/zero: {TOO_MUCH}"),
        ("dispatch --to echo --tool /dev/zero x", f"dispatch: --tool /dev/zero: {TOO_MUCH}"),
        ("thread-append --new --thread t x | dispatch -q --to replay:/dev/zero >/dev/null",
         "dispatch: thread t: /dev/zero: a line of it has more than 64 MiB"),
        (f"{ASKED}--by echo --rubric @/dev/zero", f"judge: --rubric @/dev/zero: {TOO_MUCH}"),
        (f"{ASKED}--check schema:/dev/zero", f"judge: --check schema:/dev/zero: {TOO_MUCH}"),
        (f"{ASKED}--check equals:a --reference /dev/zero", f"judge: --reference /dev/zero: {TOO_MUCH}"),
        (f"{ASKED}--by echo --rubric style --against /dev/zero",
         "judge: --against /dev/zero: a line of it has more than 64 MiB"),
        (f"{ASKED}--check json --labels /dev/zero", "judge: --labels /dev/zero: a line of it has more than 64 MiB"),
        ("thread-append --new x | route --rules /dev/zero", f"route: /dev/zero: {TOO_MUCH}"),
        ("thread-import --from google /dev/zero", f"thread-import: /dev/zero: {TOO_MUCH}"),
    ],
)  # fmt: skip
def test_a_file_without_an_end_is_refused_in_one_line(sh, home, work, line, said):
    (home / ".config/mllm-pipe").mkdir(parents=True)
    said = said.replace("HOME", str(home)).replace("WORK", str(work))
    assert sh(f"ulimit -v 2000000; {line}") == (2, "", f"{said}\n")


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("""MLLM_CONFIG=<(echo 'agents.critic = { runtime = "exec:echo Too short." }') dispatch -q --text --to critic x""",
         "Too short.\n"),
        ("thread-append --new @<(echo hello) | jq -r '.content // empty'", "hello\n\n"),
        ("thread-append --new -a <(echo hello) x | jq -r 'select(.content).content[1].data'", "aGVsbG8K\n"),
        ("dispatch -q --text --to echo --schema <(echo '{\"type\": \"object\"}') x", "{}\n"),
        ("dispatch -q --text --to replay:<(echo '{\"role\": \"assistant\", \"content\": \"as it was\"}') --new x",
         "as it was\n"),
        (f"{ASKED}--format text --check equals --reference <(echo '{{\"a\": 1}}') | tail -n +2",
         "      1.00  equals: it is equal\n"),
    ],
)  # fmt: skip
def test_a_pipe_is_as_good_as_a_file(sh, line, out):
    assert sh(line) == (0, out, "")


# root may read what it has locked itself out of, unless it gives that up
LESS = "setpriv --bounding-set=-dac_override,-dac_read_search " if os.geteuid() == 0 else ""


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("thread-append --new @locked", 66, "thread-append: "),
        ("thread-append --new -a locked x", 66, "thread-append: "),
        ("dispatch --to echo -a locked x", 66, "dispatch: "),
        ("dispatch --to echo --tool locked x", 66, "dispatch: --tool "),
        ("dispatch --to echo --schema locked x", 66, "dispatch: --schema "),
        ("judge --by echo --rubric @locked", 66, "judge: --rubric @"),
        ("mllm trust locked", 66, "mllm: "),
        ("thread-append locked x", 74, "thread-append: "),  # it is to be written
        ("route --rules locked", 2, "route: "),  # it is configuration
        ("env MLLM_CONFIG=locked dispatch --to mine x", 2, "dispatch: MLLM_CONFIG: "),
    ],
)  # fmt: skip
def test_a_file_that_may_not_be_read_is_as_one_that_is_not_there(sh, line, status, said):
    assert sh(f"echo '{{}}' > locked; chmod 0 locked; {LESS}{line} < /dev/null") == (
        status, "", f"{said}locked: Permission denied\n")  # fmt: skip
