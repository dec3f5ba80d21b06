"""Which processes are still at work: each holds a lock on a byte of its own, which the kernel takes from it whatever
ends it.

$XDG_STATE_HOME/mllm-pipe/living has no content; the byte is the number of the process. It is opened once and never
closed, for with any descriptor of a file a process loses all its locks on it (POSIX, fcntl).
"""

from __future__ import annotations

import fcntl
import os
from threading import Lock

from mllm_pipe import places

_file: list[int] = []
_mine: list[int | None] = []
_once = Lock()


def ours() -> int | None:
    """The number by which others can tell that this process lives; None if there is no telling (a file system without
    locks, a process of the same number in another container)."""
    if not _mine:
        with _once:
            if not _mine:  # another thread may have come first
                _mine.append(os.getpid() if _locked(os.getpid(), fcntl.LOCK_EX) else None)
    return _mine[0]


def lives(process: int) -> bool:
    """True if the process with this number is at work, or there is no telling."""
    if process in _mine:
        return True
    with _once:
        if not _locked(process, fcntl.LOCK_SH):
            return True
        fcntl.lockf(_file[0], fcntl.LOCK_UN, 1, process)
    return False


def _locked(process: int, kind: int) -> bool:
    try:
        if not _file:
            os.makedirs(places.state(), mode=0o700, exist_ok=True)
            path = os.path.join(places.state(), "living")
            _file.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
        fcntl.lockf(_file[0], kind | fcntl.LOCK_NB, 1, process)
    except OSError:
        return False
    return True
