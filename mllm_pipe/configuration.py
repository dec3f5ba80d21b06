"""mllm.toml: where it is found, what may stand in it, and from which file and line each of its values comes.

In force are the user's file and over it the project's, if that one is trusted (mllm_pipe.trust); or $MLLM_CONFIG alone.
An entry such as [agents.writer] is taken whole from one file: a key of one is never used with an address of the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from mllm_pipe import places, trust
from mllm_pipe.errors import Usage
from mllm_pipe.files import whole
from mllm_pipe.terminal import note

Configuration = dict[str, Any]
Keys = tuple[str | int, ...]
Wrong = Callable[..., Usage]

SLOTS = ("response", "router", "summarizer", "evaluator")

# What may stand in the entries of a section, and in a section of plain values.
_TEXT, _TEXTS, _NUMBER, _COUNT = "a text", "a list of texts", "a number", "a whole number from 1"
_WORDS, _SHARE, _TABLE, _TABLES = "a text or a list of texts", "a number from 0 to 1", "a table", "a list of tables"
_AMOUNT, _PAIRS, _ALLOWED = "an amount, a number from 0", "a table of texts", "read, write or all"
ENTRIES: dict[str, dict[str, str]] = {
    "agents": {"description": _TEXT, "runtime": _TEXT, "system": _TEXT, "instruction": _TEXT, "models": _TABLE},
    # "" is told in other words by mllm_pipe.agents
    "runtimes": {"kind": "", "command": _WORDS, "model": _TEXT, "base_url": _TEXT, "key_env": "", "key_command": "",
                 "pass_env": _TEXTS, "max_tokens": _COUNT, "headers": _PAIRS, "options": _TABLE, "cwd": _TEXT,
                 "allow": _ALLOWED, "path": _TEXT, "profile": _TABLE, "protocol": "", "timeout_s": "",
                 "first_byte_s": ""},
    "routers": {"description": _TEXT, "runtime": _TEXT, "models": _TABLE, "children": _TEXTS, "default": _TEXT,
                "min_confidence": _SHARE, "rules": _TABLES},
    "groups": {"description": _TEXT, "stages": _TEXTS, "until": _TEXT, "max_rounds": _COUNT},
    "prompts": {"description": _TEXT, "text": _TEXT, "system": _TEXT},
}  # fmt: skip
# A condition of a router's rule: all that stands in it must hold, and of a list any.
CONDITION = {"keywords": _WORDS, "regex": _WORDS, "has": _WORDS, "language": _WORDS, "meta": _TABLE,
             "longer_than": _COUNT, "shorter_than": _COUNT, "tokens_over": _COUNT, "all": _TABLES, "any": _TABLES,
             "not": _TABLE}  # fmt: skip
RULE = {"name": _TEXT, "target": _TEXT, "priority": _NUMBER, "learned": _TEXT, "above": _SHARE} | CONDITION
DEEPEST = 40  # keys that lead to a condition in conditions
PLAIN = {"defaults": {"to": _TEXT},
         "budget": dict.fromkeys(("day_usd", "day_tokens", "run_usd", "run_tokens"), _AMOUNT)}  # fmt: skip


class Source(NamedTuple):
    """A file that is in force: whose it is (project, user or MLLM_CONFIG), its path, its text, and what it says."""

    origin: str
    path: str
    text: str
    tables: dict[str, Any]


@cache
def read() -> Configuration:
    """What is in force: {"agents": {name: entry}, ..., "budget": {...}, "file": path, "sources": [Source, ...]}.

    Read once, and not to be changed. Every section is there. `file` is where the user would add something. A project's
    file that is not trusted is told of and not used. Usage if a file is no TOML, or holds what it may not.
    """
    sources = []
    user = os.path.join(places.configuration(), "mllm.toml")
    chosen = os.environ.get("MLLM_CONFIG")
    if chosen:
        sources.append(checked("MLLM_CONFIG", chosen, _bytes(chosen, "MLLM_CONFIG: ")))
    else:
        if _is_there(user):
            sources.append(checked("user", user, _bytes(user)))
        if project := project_file():
            content = _bytes(project)
            if trust.is_trusted(project, content):
                sources.append(checked("project", project, content))
            else:
                note(f"{project} is not trusted, so nothing of it is used; read it, then say: mllm trust")
    found: Configuration = {section: {} for section in (*ENTRIES, *PLAIN)}
    for source in sources:
        for section, entries in source.tables.items():
            found[section] |= entries
    return found | {"file": chosen or user, "sources": sources}


def configured_budget() -> dict[str, Any]:
    """[budget], a trusted project's limits over the user's; nothing is read where there is no file."""
    user = os.path.join(places.configuration(), "mllm.toml")
    project = project_file()
    trusted = project and trust.is_trusted(project, _bytes(project))
    if not (os.environ.get("MLLM_CONFIG") or _is_there(user) or trusted):
        return {}
    budget: dict[str, Any] = read()["budget"]
    return budget


def project_file() -> str | None:
    """The mllm.toml found by walking up from the current directory to the root of its repository."""
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        return None
    while True:
        candidate = os.path.join(folder, "mllm.toml")
        if os.path.isfile(candidate):
            return candidate
        parent = os.path.dirname(folder)
        if parent == folder or os.path.exists(os.path.join(folder, ".git")):
            return None
        folder = parent


def untrusted() -> str | None:
    """The project's file, if nothing but trust keeps it from being in force; $MLLM_CONFIG asks for none."""
    project = None if os.environ.get("MLLM_CONFIG") else project_file()
    return project if project and not trust.is_trusted(project, _bytes(project)) else None


def came_along(source: Source) -> bool:
    """True of the file that came with this directory, also where MLLM_CONFIG names it."""
    if source.origin == "MLLM_CONFIG":
        project = project_file()
        return project is not None and os.path.realpath(source.path) == os.path.realpath(project)
    return source.origin == "project"


def source_of(configuration: Configuration, section: str, name: str) -> Source:
    """The file that an entry was taken from: the last one that has it."""
    sources: list[Source] = configuration["sources"]
    return [source for source in sources if name in source.tables.get(section, {})][-1]


def where(configuration: Configuration, section: str, name: str, *keys: str | int) -> str:
    """FILE:LINE of a value, for a message."""
    source = source_of(configuration, section, name)
    return f"{source.path}:{line_of_key(source.text, (section, name, *keys))}"


def nearest(name: str, known: list[str]) -> str:
    """"; did you mean X?" for a name that looks like a known one, else ""."""
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _is_there(path: str) -> bool:
    """True also where that cannot be seen: who reads it is told why, and no budget is overlooked."""
    try:
        os.stat(path)
    except OSError as error:
        return not isinstance(error, (FileNotFoundError, NotADirectoryError))
    return True


def _bytes(path: str, named_by: str = "") -> bytes:
    return whole(path, f"{named_by}{path}", Usage)


def checked(origin: str, path: str, content: bytes) -> Source:
    """The file as a source. Usage if it is no TOML, or holds what it may not."""
    source = _parsed(origin, path, content)
    _check(source)
    return source


def _parsed(origin: str, path: str, content: bytes) -> Source:
    import tomllib

    try:
        text = content.decode("utf-8-sig")  # an editor may have put a mark there
        return Source(origin, path, text, tomllib.loads(text))
    except UnicodeDecodeError:
        raise Usage(f"{path}: no UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        at = re.fullmatch(r"(.*) \(at line (\d+), (column \d+)\)", str(error), re.DOTALL)
        raise Usage(f"{path}:{at[2]}: {at[1]} ({at[3]})" if at else f"{path}: {error}") from None
    except RecursionError:
        raise Usage(f"{path} is nested too deeply") from None


# -- what may stand in it


def _check(source: Source) -> None:
    """Usage, with file and line, for the first thing that has no meaning there."""
    wrong = fault_in(source)
    for section, entries in source.tables.items():
        known = [*ENTRIES, *PLAIN]
        if section not in known:
            raise wrong(f"is no section{nearest(section, known)}; there are {', '.join(known)}", section)
        if not isinstance(entries, dict):
            raise wrong(f"is no table; say [{section}{'.NAME' if section in ENTRIES else ''}]", section)
        for name, entry in entries.items():
            if unfit := _unfit(entry, (section, name)):
                raise wrong(unfit[1], *unfit[0])
            if section in PLAIN:
                _check_entry({name: entry}, PLAIN[section], wrong, (section,))
                continue
            if not isinstance(entry, dict):
                raise wrong(f"is no table; say [{section}.NAME]", section, name)
            if section != "groups" and (mark := re.search(r"[:/\s]", name)):
                raise wrong(f"has {mark[0]!r} in its name, which names no {section[:-1]}", section, name)
            if section in ("agents", "runtimes"):
                _check_name(section, name, entry, wrong)
            _check_entry(entry, ENTRIES[section], wrong, (section, name))


def _check_name(section: str, name: str, entry: dict[str, Any], wrong: Wrong) -> None:
    """Usage if the name is taken, so that nobody would be asked as it says here, or a runtime is of no such kind."""
    from mllm_pipe.builtin import builtin, kinds, presets

    if name in (*builtin(), *kinds(), *presets()):
        taken = "is" if section == "runtimes" else "has the name of a runtime that is"
        raise wrong(f"{taken} built in and cannot be redefined; give it another name", section, name)
    if section == "runtimes" and "kind" in entry and entry["kind"] not in kinds():
        there_are = f"is no kind{nearest(str(entry['kind']), kinds())}; there are {', '.join(kinds())}"
        raise wrong(there_are, "runtimes", name, "kind")


def _unfit(value: Any, at: Keys) -> tuple[Keys, str] | None:
    """Where in a value is what nobody could take, whatever it is for, and why; None if nowhere."""
    if len(at) > 2 * DEEPEST:
        return at[:4], "is nested too deeply"
    if isinstance(value, str) and "\0" in value:
        return at, "has a NUL in it, which no program or path can have"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:  # TOML has no others, but tomllib takes them
        return at, "is beyond 64 bits"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next(filter(None, (_unfit(one, (*at, key)) for key, one in inner)), None)


def _check_entry(entry: Any, form: dict[str, str], wrong: Wrong, at: Keys) -> None:
    """Usage for the first key of an entry, or of what stands in it, that has no meaning there or no such value."""
    for key, value in entry.items():
        if key not in form:
            raise wrong(f"means nothing{nearest(key, list(form))}", *at, key)
        if not form[key]:
            continue
        if not _is(value, form[key]):
            raise wrong(f"is not {form[key]}", *at, key)
        if len(at) > DEEPEST:
            raise wrong("is nested too deeply", *at[:4])
        if key in ("rules", "all", "any"):
            for place, inner in enumerate(value):
                _check_entry(inner, RULE if key == "rules" else CONDITION, wrong, (*at, key, place))
        elif key == "not":
            _check_entry(value, CONDITION, wrong, (*at, key))
        elif key == "models":
            for slot, model in value.items():
                if slot not in SLOTS:
                    there_are = f"is no slot{nearest(slot, list(SLOTS))}; there are {', '.join(SLOTS)}"
                    raise wrong(there_are, *at, key, slot)
                if not isinstance(model, str):
                    raise wrong("is not a text", *at, key, slot)


def entry_in(path: str, section: str) -> Source:
    """A file of its own with what may stand in an entry of the section, as [routers.NAME]. Usage as for mllm.toml."""
    source = _parsed("file", path, _bytes(path))
    wrong = fault_in(source)
    if unfit := _unfit(source.tables, ()):
        raise wrong(unfit[1], *unfit[0])
    _check_entry(source.tables, ENTRIES[section], wrong, ())
    return source


def fault_in(source: Source) -> Wrong:
    """Makes Usage of why a value has no meaning, and the keys that lead to it: FILE:LINE: KEYS WHY."""

    def wrong(why: str, *keys: str | int) -> Usage:
        what = f"{'.'.join(map(str, keys))} " if keys else ""
        return Usage(f"{source.path}:{line_of_key(source.text, keys)}: {what}{why}")

    return wrong


def _is(value: Any, form: str) -> bool:
    many = isinstance(value, list)
    return {
        _TEXT: isinstance(value, str),
        _TEXTS: many and all([isinstance(one, str) for one in value]),
        _WORDS: isinstance(value, str) or many and bool(value) and all([isinstance(one, str) for one in value]),
        _SHARE: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1,
        _AMOUNT: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"),
        _NUMBER: isinstance(value, (int, float)) and not isinstance(value, bool) and value == value,  # no NaN
        _COUNT: isinstance(value, int) and not isinstance(value, bool) and value > 0,
        _TABLE: isinstance(value, dict),
        _PAIRS: isinstance(value, dict) and all([type(one) in (str, int, float) for one in value.values()]),
        _ALLOWED: value in ("read", "write", "all"),
        _TABLES: many and all([isinstance(one, dict) for one in value]),
    }[form]


# -- where it stands

_HEADER = r"\s*(\[{1,2})([^\[\]]+)\]{1,2}\s*(?:#.*)?$"
_KEY = r"\s*([\w\-.\"' ]+?)\s*="


def line_of_key(text: str, keys: tuple[str | int, ...]) -> int:
    """The line, from 1, that sets what the keys lead to, or the nearest above; a number is a place in a list of tables.

    tomllib says no lines; this reads headers and the keys before =, which is where people write them.
    """
    table: tuple[str | int, ...] = ()
    seen: dict[tuple[str | int, ...], int] = {}
    best, line, inside = 0, 1, ""
    for number, content in enumerate(text.split("\n"), 1):
        if inside:
            inside = "" if content.count(inside) % 2 else inside
            continue
        if header := re.match(_HEADER, content):
            table = _path(header[2])
            if header[1] == "[[":
                seen[table] = seen.get(table, -1) + 1
                table = (*table, seen[table])
            path = table
        elif key := re.match(_KEY, content):
            path = (*table, *_path(key[1]))
        else:
            continue
        inside = next((quotes for quotes in ('"""', "'''") if content.count(quotes) % 2), "")
        common = 0
        while common < min(len(path), len(keys)) and path[common] == keys[common]:
            common += 1
        if common > best and common == len(path) or common > best and header:
            best, line = common, number
    return line


def _path(dotted: str) -> tuple[str | int, ...]:
    return tuple(word.strip().strip("\"'") for word in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", dotted))
