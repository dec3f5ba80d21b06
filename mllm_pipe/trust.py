"""Trust in a project's mllm.toml: it came with the directory, so it may name any program, and the user has to say yes.

As with direnv, what is trusted is a path together with its content: a digest over both. One changed byte, or the same
file elsewhere, is another file. $XDG_STATE_HOME/mllm-pipe/trusted has one file for each, named by the digest, with the
path in it.
"""

from __future__ import annotations

import os

from mllm_pipe import places
from mllm_pipe.errors import Missing, WriteFailed
from mllm_pipe.files import whole
from mllm_pipe.lines import digest


def is_trusted(path: str, content: bytes) -> bool:
    """True if the user trusts this content at this path."""
    return os.path.exists(os.path.join(_folder(), _mark(path, content)))


def add(path: str, content: bytes) -> None:
    """Trust the content at the path, and no older one of it. WriteFailed if that cannot be kept."""
    revoke(path)
    place = os.path.join(_folder(), _mark(path, content))
    try:
        os.makedirs(_folder(), mode=0o700, exist_ok=True)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(os.fsencode(_named(path)))
    except OSError as error:
        raise WriteFailed(f"{place}: {error.strerror}") from None


def revoke(path: str) -> bool:
    """Trust no content at the path any more; False if none was trusted."""
    marks = [mark for mark, trusted in _all() if trusted == _named(path)]
    for mark in marks:
        try:
            os.unlink(os.path.join(_folder(), mark))
        except OSError as error:
            raise WriteFailed(f"{os.path.join(_folder(), mark)}: {error.strerror}") from None
    return bool(marks)


def listed() -> list[tuple[str, str]]:
    """(path, "trusted", "changed" or "gone") of every file that was trusted, by path."""
    found = []
    for mark, path in _all():
        try:
            found.append((path, "trusted" if _mark(path, whole(path)) == mark else "changed"))
        except Missing:
            found.append((path, "gone"))
    return sorted(found)


def _all() -> list[tuple[str, str]]:
    """(digest, path) of every file that was trusted."""
    try:
        marks = os.listdir(_folder())
    except FileNotFoundError:
        return []
    return [(mark, os.fsdecode(whole(os.path.join(_folder(), mark)))) for mark in marks]


def _folder() -> str:
    return os.path.join(places.state(), "trusted")


def _named(path: str) -> str:
    """The path of the file itself: its directory is resolved, but not a link that bears its name: that may be moved."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def _mark(path: str, content: bytes) -> str:
    return digest(os.fsencode(_named(path)) + b"\n" + content)
