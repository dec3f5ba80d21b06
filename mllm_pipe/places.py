"""Where our files lie: the XDG directories, by the rules of the XDG Base Directory specification. Where we are."""

from __future__ import annotations

import os

from mllm_pipe.errors import Missing


def home() -> str:
    """The user's home, also where $HOME is empty."""
    found = os.environ.get("HOME")
    if found:
        return found
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def base(variable: str, *default: str) -> str:
    """An XDG directory; one that is empty or relative counts as unset."""
    named = os.environ.get(variable, "")
    return named if os.path.isabs(named) else os.path.join(home(), *default)


def directory(named: str = "") -> str:
    """The real path of a directory; of the working directory if none is named. Missing if that is gone, and needed."""
    try:
        return os.path.realpath(named if os.path.isabs(named) else os.path.join(os.getcwd(), named))
    except OSError as error:
        raise Missing(f"the working directory is gone ({error.strerror}); cd to one that is there") from None


def state() -> str:
    """$XDG_STATE_HOME/mllm-pipe: the journal."""
    return os.path.join(base("XDG_STATE_HOME", ".local", "state"), "mllm-pipe")


def configuration() -> str:
    """$XDG_CONFIG_HOME/mllm-pipe: mllm.toml."""
    return os.path.join(base("XDG_CONFIG_HOME", ".config"), "mllm-pipe")


def of_program(variable: str, folder: str) -> str:
    """Where an agent program keeps its state: what its own variable names, else a folder of the home."""
    return os.environ.get(variable) or os.path.join(home(), folder)
