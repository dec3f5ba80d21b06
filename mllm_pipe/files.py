"""Files that are read whole. They have an end: /dev/zero, or a log named by mistake, would take all memory there is."""

from __future__ import annotations

from collections.abc import Iterator

from mllm_pipe.errors import Failure, Missing, Usage
from mllm_pipe.lines import MAX_LINE


def whole(path: str | int, said: str = "", unread: type[Failure] = Missing) -> bytes:
    """The bytes of a file or a pipe, as <(...) is one, or of stdin for 0; at most MAX_LINE of them.

    said: how a message names it, if not by its path. `unread` if it cannot be read; Usage if it has more than that.
    """
    said = said or (str(path) if path else "stdin")
    try:
        with open(path, "rb", closefd=path != 0) as file:
            data = file.read(MAX_LINE + 1)
    except OSError as error:
        raise unread(f"{said}: {error.strerror}") from None
    if len(data) > MAX_LINE:
        raise Usage(f"{said}: it has more than {MAX_LINE >> 20} MiB; is it the file that was meant?")
    return data


def lines(path: str, said: str = "") -> Iterator[bytes]:
    """The lines of a file or a pipe, without their newline, as they come.

    said: how a message names it, if not by its path. Missing if it cannot be read; Usage if a line has more than
    MAX_LINE bytes.
    """
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise Usage(f"{said or path}: a line of it has more than {MAX_LINE >> 20} MiB")
                yield line.removesuffix(b"\n")
    except OSError as error:
        raise Missing(f"{said or path}: {error.strerror}") from None
