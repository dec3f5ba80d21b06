"""Who is at the other end of a descriptor, and what is said to a person: one line on stderr, safe for a terminal."""

from __future__ import annotations

import os
import re
import stat

from mllm_pipe.errors import WriteFailed

# C0 but tab and newline, DEL, C1, bidi controls, line separators, tags: what could move a cursor or hide text. As all
# patterns of what every command loads, it is compiled when one is used, and then kept by re: some take 1 ms.
_UNSAFE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]"


def safe(text: str) -> str:
    """The text with every character that could drive a terminal written out as \\u001b."""
    return re.sub(_UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The text as a line of a list or table, safe, and which cannot begin another."""
    return safe(text).replace("\n", " ")


def say(text: str) -> None:
    """One line for the person, on stderr: `command: object: reason`. A stderr that takes nothing is no failure."""
    line = f"{program()}: {one_line(text)}"
    _to_stderr(f"{_WIPE if _status else ''}{line}\n{''.join(_status)}")


def show_status(text: str) -> None:
    """A line that stays the last one on the terminal of stderr and is replaced by the next; "" takes it away."""
    _status[:] = [f"{program()}: {safe(text)}"[: (os.get_terminal_size(2).columns or 80) - 1]] if text else []
    _to_stderr(_WIPE + "".join(_status))


def _to_stderr(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "replace"))
    except OSError:
        pass


def note(text: str) -> None:
    """As `say`, for what is no error: nothing under -q."""
    if not _quiet:
        say(text)


def be_quiet() -> None:
    """From now on, notes are not said (-q)."""
    _quiet.append(True)


def program() -> str:
    """The name that the user called us by: dispatch, or mllm for its own subcommands."""
    return _program[0]


def call_me(name: str) -> None:
    """Set the name that stderr lines and `stage` fields bear."""
    _program[0] = name


_WIPE = "\r\x1b[K"  # to the beginning of the line, and erase it
_status: list[str] = []  # what stays the last line
_program = ["mllm"]  # both set once, at the start
_quiet: list[bool] = []


def kind_of(descriptor: int) -> str:
    """terminal, null, pipe (or socket), file, device or closed."""
    try:
        mode = os.fstat(descriptor)
    except OSError:
        return "closed"
    if stat.S_ISFIFO(mode.st_mode) or stat.S_ISSOCK(mode.st_mode):
        return "pipe"
    if stat.S_ISREG(mode.st_mode):
        return "file"
    if os.isatty(descriptor):
        return "terminal"
    null = os.stat(os.devnull)
    return "null" if stat.S_ISCHR(mode.st_mode) and mode.st_rdev == null.st_rdev else "device"


def guard_descriptors() -> None:
    """Fill closed standard descriptors with /dev/null, so that no file of ours gets their number.

    WriteFailed if stdout is closed: what we have to say would be lost.
    """
    stdout_closed = kind_of(1) == "closed"
    for descriptor in (0, 1, 2):
        if kind_of(descriptor) == "closed":
            os.open(os.devnull, os.O_RDWR)
    if stdout_closed:
        raise WriteFailed("stdout is closed; send it to a file, a pipe or /dev/null")
