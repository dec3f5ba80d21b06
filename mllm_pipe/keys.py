"""The key files of `mllm keys`: $XDG_CONFIG_HOME/mllm-pipe/keys/NAME, one for each runtime, mode 0600.

NAME is the runtime as `--to` has it. A key is never said: not by an error, not by a list.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from mllm_pipe import places
from mllm_pipe.errors import Failure, Missing, Usage, WriteFailed

LONGEST = 1 << 16  # characters of a key
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"


class Exposed(Failure):
    """A key file that others can read: what is in it is no secret."""

    status, code = 77, "auth"


def path_of(name: str) -> str:
    """Where the key of a runtime lies."""
    return os.path.join(_folder(), name)


def why_no_key(value: str) -> str:
    """Why a text cannot be a key, or ""."""
    if not value:
        return "is empty"
    if len(value) > LONGEST:
        return "is longer than 64 KiB; it is no key"
    if not value.isascii() or not value.isprintable() or value != value.strip():
        return "holds a line break, an outer blank or a character outside of ASCII; it is no key"
    return ""


def without_secrets(url: str) -> str:
    """A URL as it may be shown: without name and password, and without what its query calls a key."""
    url = re.sub(r"://[^/@\s]*@", "://***@", url)
    return re.sub(r"(?i)([?&][^=&\s]*(?:key|token|secret)[^=&\s]*=)[^&\s]*", r"\1***", url)


def names_variable(name: str) -> bool:
    """True if a variable of the environment can have this name; what cannot may be the key itself."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None


def kept(name: str) -> str:
    """The key that is kept for a runtime, "" if none is. Exposed for a file that others can read or write."""
    if not re.fullmatch(_NAME, name):
        return ""
    try:
        value, fault = _read(name)
    except FileNotFoundError:
        return ""
    if fault:
        raise Exposed(f"the key file {path_of(name)} {fault}")
    return value


def is_kept(name: str) -> bool:
    """True if there is a key file for a runtime, be it one that is not used."""
    return re.fullmatch(_NAME, name) is not None and os.path.lexists(path_of(name))


def keep(name: str, value: str) -> None:
    """Keep the key of a runtime, in place of an older one. Usage if it is no key; WriteFailed if that cannot be."""
    if not re.fullmatch(_NAME, name):
        raise Usage("NAME can be no name of a key file; it takes letters, digits, _, . and -")
    if fault := why_no_key(value):
        raise Usage(f"what was given {fault}")
    beside = f"{path_of(name)}~{os.getpid()}"
    try:
        os.makedirs(_folder(), mode=0o700, exist_ok=True)
        _sweep(name)
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(value.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path_of(name))
        except OSError:
            if os.path.lexists(beside):
                os.unlink(beside)
            raise
    except OSError as error:
        raise WriteFailed(f"{path_of(name)}: {error.strerror}") from None


def forget(name: str) -> None:
    """Remove the key of a runtime. Missing if there is none."""
    try:
        if not re.fullmatch(_NAME, name):
            raise FileNotFoundError
        _sweep(name)
        os.unlink(path_of(name))
    except FileNotFoundError:
        raise Missing("no key is kept by that name; mllm keys list shows the names") from None
    except OSError as error:
        raise WriteFailed(f"{path_of(name)}: {error.strerror}") from None


def _sweep(name: str) -> None:
    """Remove what those have left beside the key of a runtime who were killed while they kept it."""
    for entry in os.listdir(_folder()):
        kept_for, _, process = entry.partition("~")
        if kept_for == name and process.isascii() and process.isdigit():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(_folder(), entry))
            except (PermissionError, OverflowError):
                pass  # it lives, or is none


def listed() -> list[tuple[str, str]]:
    """(name, why its file is not used or "") of every key that is kept, by name. Exposed if that cannot be seen."""
    try:
        names = sorted(name for name in os.listdir(_folder()) if re.fullmatch(_NAME, name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Exposed(f"{_folder()} cannot be read: {error.strerror}") from None
    return [(name, _why_not(name)) for name in names]


def _folder() -> str:
    return os.path.join(places.configuration(), "keys")


def _read(name: str) -> tuple[str, str]:
    """(the key of a runtime, why its file is not used or ""). FileNotFoundError if there is none."""
    try:
        descriptor = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    try:
        if fault := _fault(os.fstat(descriptor)):
            return "", fault
        value = os.read(descriptor, LONGEST + 2).decode(errors="replace").removesuffix("\n")
    finally:
        os.close(descriptor)
    fault = why_no_key(value)
    return value, fault and f"{fault}; mllm keys set {name} writes it anew"


def _why_not(name: str) -> str:
    try:
        return _read(name)[1]
    except FileNotFoundError as error:  # a link to nowhere
        return f"cannot be read: {error.strerror}"


def _fault(seen: os.stat_result) -> str:
    """Why a key file is not used, with the way out, or ""."""
    if not stat.S_ISREG(seen.st_mode):
        return "is no regular file; remove it"
    if seen.st_uid not in (os.geteuid(), 0):
        return "belongs to another user; remove it"
    if seen.st_mode & 0o077:
        return f"has mode {stat.S_IMODE(seen.st_mode):04o}, so others can reach it; say chmod 600, or set a new key"
    return ""
