"""The parts of the manual that the code already says: `python -m mllm_pipe.manual` writes them, in a checkout.

    man/*.1, man/*.7        the lines between `.\\" OPTIONS of NAME` and `.\\" END`, from the options of the command;
                            the version in the .TH line
    man/envelope.5          whole, from the descriptions in schemas/envelope.schema.json
    completions/            whole, from click

Nothing imports this at run time. tests/test_docs.py asserts that writing it all again changes nothing.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from textwrap import wrap
from typing import Any

import click
import orjson

from mllm_pipe import __version__
from mllm_pipe.commands.mllm import COMMANDS, completion_source
from mllm_pipe.envelope import SCHEMA_PATH

ROOT = Path(__file__).resolve().parent.parent
NAMES = [*COMMANDS, "mllm"]
SHELLS = {"bash": "completions/bash/{}", "zsh": "completions/zsh/_{}", "fish": "completions/fish/{}.fish"}

Schema = dict[str, Any]


def made(root: Path = ROOT) -> dict[Path, str]:
    """Every file that is made, whole or in part, with the text that it should have."""
    pages = {page: _page(page.read_text()) for page in sorted((root / "man").glob("*.[17]"))}
    pages[root / "man" / "envelope.5"] = _envelope(orjson.loads(Path(SCHEMA_PATH).read_bytes()))
    scripts = {
        root / path.format(name): completion_source(shell, name).strip() + "\n"
        for shell, path in SHELLS.items()
        for name in NAMES
    }
    return pages | scripts


def command_of(name: str) -> click.Command:
    """The command of a name; "mllm doctor" is the subcommand."""
    first, *rest = name.split()
    found: click.Command = importlib.import_module(f"mllm_pipe.commands.{first.replace('-', '_')}").command
    for word in rest:
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


# -- roff --------------------------------------------------------------------------------------------------------------


def roff(text: str) -> str:
    """Prose as a line of roff: what would be read as markup is escaped, and the hyphens of flags are kept as typed."""
    text = text.replace("\\", "\\e")
    text = re.sub(r"(?<![\w\\])-(?=[-\w])", r"\\-", text)
    return "\\&" + text if text.startswith((".", "'")) else text


def bold(text: str) -> str:
    """The text as it is typed, in bold."""
    return "\\fB" + text.replace("-", "\\-") + "\\fR"


def italic(text: str) -> str:
    """The text as a place holder."""
    return f"\\fI{text}\\fR"


def prose(text: str) -> str:
    """Lines of roff: each sentence begins a new one, none is longer than 80 bytes."""
    sentences = re.split(r"(?<=\.) (?=[A-Z$])", text)
    return "".join(f"{roff(line)}\n" for sentence in sentences for line in wrap(sentence, 76, break_on_hyphens=False))


def _entry(tag: str, text: str) -> str:
    return f".TP\n{tag}\n{prose(text)}"


# -- commands ----------------------------------------------------------------------------------------------------------


def _page(page: str) -> str:
    """A page with its version and its OPTIONS written anew."""
    version = f"mllm\\-pipe {__version__}"
    page = re.sub(r'(?m)^(\.TH .*)"mllm\\-pipe [^"]*"', lambda found: f'{found[1]}"{version}"', page)
    return re.sub(
        r'(?ms)^(\.\\" OPTIONS of ([\w -]+)[^\n]*\n).*?^(?=\.\\" END$)',
        lambda found: found[1] + options(found[2].split(",")[0]),
        page,
    )


def options(name: str) -> str:
    """The options of a command, in the order of its --help."""
    entries = []
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            entries.append(_entry(_tag(parameter), _help(parameter)))
    return "".join(entries)


def _tag(option: click.Option) -> str:
    flags = ", ".join(bold(flag) for flag in option.opts)
    if option.is_flag:
        return flags
    if isinstance(option.type, click.Choice):
        return f"{flags} {'|'.join(map(italic, option.type.choices))}"
    return f"{flags} {italic(option.metavar or option.type.name.upper())}"


def _help(option: click.Option) -> str:
    text = str(option.help)
    if option.multiple:
        text += " May be given several times."
    if option.envvar:
        text += "" if f"${option.envvar}" in text else f" ${option.envvar} stands for it."
    return text


# -- the envelope ------------------------------------------------------------------------------------------------------

_CONTROL = ("begin", "handoff", "end")
_SHARED = ("author", "origin", "usage", "attempt", "loss", "criterion")
_INDENT = 20  # a .TP without a number keeps that of the one before it
_KINDS = {"string": "text", "integer": "whole number", "object": "object", "boolean": "true or false", "array": "list"}

_HEAD = r""".\" Made by python -m mllm_pipe.manual from schemas/envelope.schema.json. Change it there.
.TH ENVELOPE 5 2026-11-22 "mllm\-pipe {version}"
.SH NAME
envelope \- the records of a mllm\-pipe stream
.SH DESCRIPTION
{description}
.PP
The schema itself is
.IR schemas/envelope.schema.json ,
JSON Schema 2020\-12;
.B mllm validate
checks a stream against it.
What is only copied is checked for
.BR v ", " type ", " thread
and
.B id
alone; the whole schema is asked of the records that a command uses.
.PP
Below, an asterisk marks a field that must be there; brackets say what it holds.
An
.I id
is a text of 1 to 200 characters, a
.I time
looks like 2026\-11\-22T20:20:49.948Z.
"""

_TAIL = r""".SH EXAMPLES
A bare message is enough to begin with;
.BR thread\-append (1)
makes a record of it:
.PP
.EX
$ echo \(aq{"role": "user", "content": "hello"}\(aq | thread\-append \- > t.jsonl; cat t.jsonl
{"v":1,"type":"message","thread":"01a204ed\-b7b7\-79aa\-97aa\-17f01d5c931f","id":"01a204ed\-b7b7\-79aa\-97aa\-17f01d5c9320","at":"2026\-11\-22T20:20:49.948Z","role":"user","content":"hello"}
.EE
.PP
In a pipe, control records stand around the threads:
.PP
.EX
$ thread\-append \-\-new \-\-thread greeting hello | jq \-r .type
begin
message
handoff
end
.EE
.SH CAVEATS
An integer beyond 64 bits is refused where a record is used, since most programs
would change it in silence.
A record nested deeper than 128 levels is refused there too.
.PP
A record whose
.B v
is not 1 is no record to this version.
.SH SEE ALSO
.BR thread\-append (1),
.BR dispatch (1),
.BR judge (1),
.BR trace (1),
.BR mllm (1),
.BR mllm\-pipe (7)
"""


def _envelope(schema: Schema) -> str:
    definitions = schema["$defs"]
    head = _HEAD.replace("{version}", __version__).replace("{description}", prose(schema["description"]).rstrip())
    types = [rule["if"]["properties"]["type"]["const"] for rule in schema["allOf"]]
    pieces = [head, ".SH RECORDS\n.SS every record\n", _fields(schema, ("thread", "id"))]
    for kind in (kind for kind in types if kind not in _CONTROL):
        pieces += [f".SS {kind}\n{prose(definitions[kind]['description'])}", _fields(definitions[kind])]
    pieces.append(".SH CONTROL RECORDS\nNo command writes them to a regular file or a terminal. They have no id.\n")
    for kind in _CONTROL:
        pieces.append(f".SS {kind}\n{prose(definitions[kind]['description'].removeprefix('control: '))}")
        pieces.append(_fields(definitions[kind], common=schema["properties"]))
    pieces += [".SH CONTENT PARTS\n.SS every part\n", _fields(definitions["part"])]
    for rule in definitions["part"]["allOf"]:
        test = rule["if"]["properties"]["type"]
        pieces += [f".SS {', '.join(test.get('enum', [test.get('const')]))}\n", _fields(rule["then"])]
    pieces.append(".SH OBJECTS IN FIELDS\n")
    for name in _SHARED:
        pieces += [f".SS {name}\n", _fields(definitions[name])]
    return "".join(pieces) + _TAIL


def _fields(schema: Schema, also_required: tuple[str, ...] = (), common: Schema | None = None) -> str:
    """The fields of a schema; of `common`, those that it requires beyond its own."""
    required = (*schema.get("required", ()), *also_required)
    members = schema.get("properties", {})
    members = members | {name: (common or {})[name] for name in required if name not in members}
    entries = []
    for name, member in members.items():
        kind = _kind(member)
        text = member["description"] + (f" [{kind}]" if kind else "")
        entries.append(_entry(bold(name) + "*" * (name in required), text))
    return f".PD 0\n{''.join(entries).replace('.TP', f'.TP {_INDENT}', 1)}.PD\n" if entries else ""


def _kind(member: Schema) -> str:
    """What a field holds, in words."""
    if "$ref" in member:
        return str(member["$ref"].removeprefix("#/$defs/"))
    if "enum" in member:
        return ", ".join(member["enum"])
    if "const" in member:
        return str(member["const"])
    names = member.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names == ["array"] and "items" in member:
        return f"list of {_kind(member['items'])}"
    kind = " or ".join(_KINDS.get(name, name) for name in names)
    if member.get("minimum") == 0 and "maximum" in member:
        kind += f", 0 to {member['maximum']}"
    return kind


def main() -> None:
    """Write every file."""
    if not (ROOT / "man").is_dir():
        raise SystemExit(f"{ROOT} is no checkout of mllm-pipe; the manual is made in one")
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
