"""What a flag is given on the command line is taken, or told: nothing at all, and what is no number, is Usage."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from mllm_pipe import cli
from mllm_pipe.errors import Usage
from mllm_pipe.manual import NAMES, command_of

EMPTY = "{} is empty; is a variable not set?\n"


def commands(name: str) -> Iterator[tuple[str, click.Command]]:
    """The command of this name, and those below it that are no commands of their own."""
    found = command_of(name)
    yield name, found
    for below in found.commands if isinstance(found, click.Group) else ():
        yield from commands(f"{name} {below}")


ALL = [(name, found, one) for top in NAMES for name, found in commands(top) for one in found.params]
VALUED = [(name, found, one) for name, found, one in ALL if isinstance(one, click.Option) and not one.is_flag]
NUMBERS = [(name, found, one) for name, found, one in VALUED if isinstance(one.type, (click.FloatRange, type(click.FLOAT)))]


def read(found: click.Command, *arguments: str) -> None:
    """Read a command line, and do nothing of it."""
    found.make_context(found.name, list(arguments))


@pytest.mark.parametrize("line, flag", [
    ('dispatch --to echo --resume "$UNSET" --new q', "--resume"),
    ("dispatch --to echo --schema= --new q", "--schema"),
    ("dispatch --to '' --new q", "--to"),
    ("dispatch --to echo --key-env '' --new q", "--key-env"),
    ("dispatch --to echo --base-url '' --new q", "--base-url"),
    ("dispatch --to echo --rate= --new q", "--rate"),
    ("dispatch --to echo --cache-ttl= --new q", "--cache-ttl"),
    ("dispatch --to echo --run-tools= --new q", "--run-tools"),
    ("dispatch --to echo -t '' --new q", "--template"),
    ("dispatch --to echo --pick '' --new q", "--pick"),
    ("dispatch --to echo --as '' --new q", "--as"),
    ("dispatch --to echo --max-cost= --new q", "--max-cost"),
    ("dispatch --to echo --fallback echo --fallback '' --new q", "--fallback"),
    ("dispatch --to echo -p '' x --new q", "--param"),
    ("dispatch -q --to echo --new q | judge --by echo --rubric '' --check json", "--rubric"),
    ("dispatch -q --to echo --new q | judge --check contains:q --baseline ''", "--baseline"),
    ("dispatch -q --to echo --new q | judge --check contains:q --against ''", "--against"),
    ("dispatch -q --to echo --new q | judge --check contains:q --junit= ", "--junit"),
    ("dispatch -q --to echo --new q | judge --check contains:q --labels= ", "--labels"),
    ("dispatch -q --to echo --new q | judge --check contains:q --reference= ", "--reference"),
    ("dispatch -q --to echo --new q | judge --by ''", "--by"),
    ("group --resume '' desk q", "--resume"),
    ("thread-append --thread '' --new q", "--thread"),
    ("thread-append --at '' t.jsonl q", "--at"),
    ("trace --group ''", "--group"),
    ("trace ''", "RUN"),
    ("mllm models --provider ''", "--provider"),
])  # fmt: skip
def test_an_empty_value_is_never_taken_for_no_flag(sh, line, flag):
    assert sh(line) == (2, "", f"{line.split('|')[-1].split()[0]}: {EMPTY.format(flag)}")


@pytest.mark.parametrize("name, found, option", [one for one in VALUED if one[2].name not in cli.MAY_BE_EMPTY.get(one[0], ())],
                         ids=lambda one: getattr(one, "name", one))  # fmt: skip
def test_every_option_of_every_command_tells_an_empty_value(name, found, option):
    for flag in option.opts:
        with pytest.raises(Usage) as told:
            read(found, flag, "", *["x"] * (option.nargs - 1))
        assert f"{told.value}\n" == EMPTY.format(option.opts[-1])


@pytest.mark.parametrize("line, out", [
    ("dispatch -q --to echo -s '' --new q --text", "q\n"),
    ("dispatch -q --to echo -o stop '' --new q --text", "q\n"),
    ("thread-append --system '' --new q | jq -r 'select(.role) | .content'", "q\n"),
    ("MLLM_TO= MLLM_RESUME= MLLM_TIMEOUT= dispatch -q --to echo --new q --text", "q\n"),
])  # fmt: skip
def test_an_empty_text_where_one_means_something_is_taken(sh, line, out):
    assert sh(line) == (0, out, "")


def test_names_that_are_empty_are_told_and_texts_say_why(sh):
    for line, said in {
        "mllm trust ''": "mllm: FILE is empty; is a variable not set?\n",
        "route '' < /dev/null": "route: NAME is empty; is a variable not set?\n",
        "thread-append '' q": "thread-append: no FILE; say FILE, - for the thread on stdin, or --new\n",
        "thread-append --new ''": "thread-append: TEXT is empty; an empty message is never sent\n",
        "dispatch --to echo --new ''": "dispatch: PROMPT is empty; an empty message is never sent\n",
    }.items():
        assert sh(line) == (2, "", said), line


# -- numbers


def test_a_gate_that_is_no_number_opens_for_nobody(sh):
    answer = "dispatch -q --to echo --new q | judge --check contains:z"
    assert sh(f"{answer} --min-pass-rate 0.5 > out").status == 1
    for flag in ("--min-pass-rate", "--pass-at"):
        assert sh(f"{answer} {flag} nan > out") == (
            2, "", f"judge: Invalid value for '{flag}': nan is no number; see judge --help\n")  # fmt: skip
    for flag in ("--min-confidence", "--strong-share"):
        assert sh(f"route --fit log -o model {flag} nan") == (
            2, "", f"route: Invalid value for '{flag}': nan is no number; see route --help\n")  # fmt: skip


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
@pytest.mark.parametrize("name, found, option", NUMBERS, ids=lambda one: getattr(one, "name", one))
def test_every_number_of_every_command_is_one(name, found, option, value):
    with pytest.raises(click.BadParameter) as told:
        read(found, option.opts[-1], value)
    assert told.value.param is option
    assert value != "nan" or told.value.message == "nan is no number"


def test_the_tests_above_saw_the_options_and_the_exceptions_are_some_of_them():
    assert len(NUMBERS) >= 12 and len(VALUED) > 100
    there = {(name, one.name) for name, _, one in ALL}
    assert {(name, one) for name, some in cli.MAY_BE_EMPTY.items() for one in some} <= there
