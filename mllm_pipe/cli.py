"""How every command starts and ends: names, signals, and one line on stderr with the right exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from types import TracebackType
from typing import Any, NoReturn

import click

from mllm_pipe import __version__, places, times
from mllm_pipe.errors import DEFECT, USAGE, WRITE_FAILED, Failure, Stopped, Usage
from mllm_pipe.lines import MAX_LINE
from mllm_pipe.reader import reader_left
from mllm_pipe.signals import die_by, ending, listen
from mllm_pipe.stream import write
from mllm_pipe.terminal import be_quiet, call_me, guard_descriptors, say
from mllm_pipe.times import LONGEST_S

Options = Callable[[Callable[..., Any]], Callable[..., Any]]


def run(command: click.Command, arguments: list[str] | None = None, name: str | None = None) -> NoReturn:
    """Run a command whose callback gives its exit status, and end the process with it.

    A failure is one line on stderr; a signal ends us as that signal; what we did not foresee is status 70.
    """
    name = name or str(command.name)
    call_me(name)
    sys.excepthook = _defect
    listen()
    try:
        guard_descriptors()
        given = sys.argv[1:] if arguments is None else arguments
        for argument in given:
            if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
                raise Usage(f"the argument {argument!r} is no UTF-8")
        status = _result_of(command, arguments, name)
        if sys.stdout is not None:
            sys.stdout.flush()
        leave(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as done:
        leave(done.exit_code)
    except SystemExit as done:  # click's own, from completion, and for a reader that left
        code = done.code if isinstance(done.code, int) else 1
        if code == 1 and reader_left():
            die_by(signal.SIGPIPE)
        leave(code)
    except click.exceptions.NoArgsIsHelpError as bare:
        write(f"{bare.format_message()}\n".encode(), 2)
        leave(USAGE)
    except click.ClickException as wrong:
        say(f"{_blamed(wrong).rstrip('.')}; see {name} --help")
        leave(USAGE)
    except Failure as failure:
        inflight = _let_go()
        say(f"{failure}{inflight.where_answers_are() if inflight and failure.status == WRITE_FAILED else ''}")
        leave(failure.status)
    except click.Abort:
        die_by(signal.SIGINT)
    except Stopped as stopped:
        _let_go()
        die_by(stopped.signum)
    except OSError as error:  # from click, which prints help and completion itself
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        if error.errno == errno.EPIPE:
            die_by(signal.SIGPIPE)
        say(f"stdout cannot be written: {error.strerror}")
        leave(WRITE_FAILED)
    raise AssertionError("unreachable")


def _blamed(wrong: click.ClickException) -> str:
    """What click says is wrong; of a value from the environment by the name of its variable, not of a flag."""
    context, parameter = (getattr(wrong, name, None) for name in ("ctx", "param"))
    if context and parameter and isinstance(parameter.envvar, str):
        source = context.get_parameter_source(parameter.name)
        if source is click.core.ParameterSource.ENVIRONMENT:
            return f"{parameter.envvar}: {wrong.message}"
    return wrong.format_message()


def _result_of(command: click.Command, arguments: list[str] | None, name: str) -> Any:
    """What the command's callback gives. Where it fails, the calls that are in flight are heard out first."""
    _check_completion(name)
    try:
        return command.main(arguments, prog_name=name, standalone_mode=False, terminal_width=_width(command))
    except Failure:
        pool = sys.modules.get("mllm_pipe.calling.pool")
        if pool:
            pool.hear_out()
        raise


def completion_variable(name: str) -> str:
    """What a shell sets to ask a command for completions, or for the script that does."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def _check_completion(name: str) -> None:
    """Usage where completions are asked for by no shell: click takes what a shell sets beside for granted."""
    shell, _, wish = os.environ.get(completion_variable(name), "").partition("_")
    words, place = os.environ.get("COMP_WORDS"), os.environ.get("COMP_CWORD")
    told = words is not None and place is not None and (shell == "fish" or place.isdecimal())  # to fish it is the word
    if wish == "complete" and not told:
        raise Usage(f"{completion_variable(name)} is for a shell, which sets COMP_WORDS and COMP_CWORD too; unset it")


def _width(command: click.Command) -> int:
    """How wide help is written: as click does it, which asks shutil, and that loads three compressors."""
    try:
        columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(1).columns or 80
    except (ValueError, OSError):
        columns = 80
    return max(min(columns, int(command.context_settings.get("max_content_width", 80))) - 2, 50)


def _let_go() -> Any:
    """The module of the calls in flight, if any was made: they are written down and ended."""
    ending()
    inflight = sys.modules.get("mllm_pipe.calling.inflight")
    if inflight:
        inflight.abandon()
    return inflight


def leave(status: int) -> NoReturn:
    """End at once: all writes are done by then, and what the interpreter would tidy up costs a user 10 ms."""
    os._exit(status)


def _defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _let_go()
    if os.environ.get("MLLM_DEBUG"):
        sys.__excepthook__(kind, error, trace)
    say(f"a defect of ours, please report it: {kind.__name__}: {error}; MLLM_DEBUG=1 shows where")
    leave(DEFECT)


# -- what flags and names are read as

MOST_TOKENS = 10**9  # of an answer; no model comes near, and JSON has a number for it

# By command, what may be given an empty text: a system text, which then adds nothing, and PROMPT and TEXT, with FILE
# where --new makes it TEXT, which have an answer of their own to it. Of a KEY VALUE, VALUE may be empty.
MAY_BE_EMPTY = {"dispatch": {"prompt", "system"}, "group": {"prompt"}, "thread-append": {"file", "system", "text"}}


class _Filled(click.Parameter):
    """A parameter that is Usage where the command line gives it nothing: what a variable that is not set leaves of
    `--resume "$RUN"` is not the same as no flag."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> Any:
        value, source = super().consume_value(ctx, opts)
        if source is click.core.ParameterSource.COMMANDLINE and not ctx.resilient_parsing:
            given = value if self.multiple or self.nargs == -1 else [value]
            empty = any((one[0] if self.nargs > 1 else one) == "" for one in given)
            if empty and self.name not in MAY_BE_EMPTY.get(str(ctx.command.name), ()):
                raise Usage(f"{self._said()} is empty; is a variable not set?")
        return value, source

    def _said(self) -> str:
        return self.opts[-1] if isinstance(self, click.Option) else self.human_readable_name.strip("[]")


class _Option(_Filled, click.Option):
    pass


class _Argument(_Filled, click.Argument):
    pass


option = partial(click.option, cls=_Option)
argument = partial(click.argument, cls=_Argument)


NAMED_FILE = click.Path(allow_dash=True, readable=False)  # why it cannot be read is told by who reads it


class Number(click.FloatRange):
    """A number of a range: nan, which no comparison holds of, and inf are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not isfinite(number):
            self.fail(f"{number} is no number", param, ctx)
        return number


# -- what several commands' flags share


def stream_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--grouped, --max-line, -q, --version and -h, which every filter has."""
    return _with(
        function,
        option("--grouped", is_flag=True, help="The threads stand together: act when the next one begins."),
        option("--max-line", type=click.IntRange(1), default=MAX_LINE, metavar="BYTES",
               help="Longest line that is taken (default 64 MiB)."),
        option("-q", "--quiet", is_flag=True, callback=hush, envvar="MLLM_QUIET",
               help="Say nothing on stderr but errors."),
        *_COMMON,
    )  # fmt: skip


def _duration(_: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """90s, 15m, 12h or 7d in seconds."""
    found = times.seconds(text) if text else None
    if text and found is None:
        raise Usage(f"{parameter.opts[0]} {text}: no duration; say 90s, 15m, 12h or 7d")
    return found


def _rate(_: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """10/s or 500/m in calls a second."""
    found = times.rate(text) if text else None
    if text and found is None:
        raise Usage(f"{parameter.opts[0]} {text}: no rate; say 10/s, 500/m or 1000/h")
    return found


def _variable(_: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """The name of a variable. What looks like none may be the key itself, so it is not said again."""
    if name:
        from mllm_pipe.keys import names_variable

        if not names_variable(name):
            raise Usage(f"{parameter.opts[0]} takes the name of the variable that holds the key, not the key")
    return name


def resolved(_: click.Context, __: click.Parameter, directory: str | None) -> str | None:
    """The callback of --cwd."""
    return directory and places.directory(directory)


def hush(_: click.Context, __: click.Parameter, quiet: bool) -> bool:
    """The callback of -q."""
    if quiet:
        be_quiet()
    return quiet


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--version and -h."""
    return _with(function, *_COMMON)


def runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every call of a runtime can be told, from -m to --timeout."""
    return _with(
        function,
        option("-m", "--model", metavar="MODEL", help="The model, by the name that the runtime has for it."),
        option("--base-url", metavar="URL", help="Where the API is."),
        option("--key-env", callback=_variable, metavar="NAME",
               help="The environment variable that holds the key; an exec: program sees it."),
        option("--pass-env", multiple=True, metavar="NAME", help="Let an exec: program see this key."),
        option("--max-tokens", type=click.IntRange(1, MOST_TOKENS), metavar="N",
               help="Longest answer; codex and exec: programs take no notice."),
        option("--cwd", type=click.Path(exists=True, file_okay=False), callback=resolved, metavar="DIR",
               help="Where an agent program works (default: an empty directory)."),
        option("--allow", type=click.Choice(["read", "write", "all"]),
               help="What an agent program may do by itself (default: nothing)."),
        option("--fallback", "fallbacks", multiple=True, metavar="SPEC",
               help="Who is asked where that one fails; in order."),
        option("--max-retries", type=click.IntRange(0), default=2, metavar="N",
               help="How often a target that was busy or out of reach is asked again (default 2)."),
        option("--retry-after-cap", "retry_after_cap_s", type=Number(0, LONGEST_S), default=60.0,
               metavar="SECONDS", help="Longest wait that it may ask for (default 60)."),
        option("--first-token", "first_byte_s", type=Number(0, LONGEST_S, min_open=True),
               metavar="SECONDS", help="Limit until it begins to answer."),
        option("--retry-unknown", is_flag=True, envvar="MLLM_RETRY_UNKNOWN",
               help="Ask again also what may have been billed: silent and cut answers."),
        option("--rate", callback=_rate, metavar="N/s|N/m", help="Most calls in that time, to each target."),
        option("--resume", metavar="RUN", envvar="MLLM_RESUME",
               help="Take what RUN has an answer for from the journal; ask for the rest."),
        option("--cache", is_flag=True, help="Take what any run has a whole answer for from the journal."),
        option("--cache-ttl", callback=_duration, metavar="TIME",
               help="The same for answers no older than this: 90s, 15m, 12h, 7d."),
        option("--max-cost", type=Number(0), metavar="USD",
               help="Send nothing that could take the command beyond this."),
        option("--max-tokens-total", type=click.IntRange(0), metavar="N",
               help="The same in tokens, of prompts and answers."),
        option("--timeout", type=Number(0, LONGEST_S, min_open=True), default=600.0,
               envvar="MLLM_TIMEOUT", metavar="SECONDS",
               help="Limit of a whole call (default 600, or $MLLM_TIMEOUT)."),
    )  # fmt: skip


_COMMON = (
    click.version_option(__version__, message="%(prog)s %(version)s", help="Show the version and end."),
    click.help_option("-h", "--help", help="Show this and end."),
)


def _with(function: Callable[..., Any], *options: Options) -> Callable[..., Any]:
    """The function with options that its help lists in this order: click puts each new one first."""
    for one in reversed(options):
        function = one(function)
    return function
