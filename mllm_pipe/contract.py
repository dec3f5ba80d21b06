"""The user's JSON Schema as a contract: that it is one, and whether a value holds to it.

The value is another's, so it may be made to keep a search busy for ever, or to be nested deeper than Python can follow:
neither may end the command, nor keep it for longer than it is given.
"""

from __future__ import annotations

import sys
from typing import Any

import orjson

from mllm_pipe.bounded import Late, possible, within
from mllm_pipe.envelope import DEEPEST, depth
from mllm_pipe.errors import CallFailed, Usage

Schema = dict[str, Any]

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SEARCHED = (b'"pattern', b'"uniqueItems"')  # keywords that can take far longer than the value is long


class TooDeep(Exception):
    """A value cannot be held to its schema; the message says why."""


class _Nowhere(Exception):
    """A schema refers to what is not in it; the message is the reference."""


def sound(schema: Any, where: str) -> Schema:
    """The schema, if it is one that stands by itself and comes to an end. Usage, which `where` begins."""
    import jsonschema

    if not isinstance(schema, dict):
        raise Usage(f"{where}: a JSON Schema is an object")
    try:
        _validator(schema).check_schema(schema)
        foreign = [ref for ref in _references(schema) if not ref.startswith("#")]
        if foreign:  # the validator would fetch it
            raise Usage(f"{where}: it refers to {foreign[0]}; nothing is fetched, put the definition into its $defs")
        if _goes_round(_graph(schema, below=False)):
            raise Usage(f"{where}: it refers to itself without end: a $ref comes back to where it stands")
    except jsonschema.SchemaError as error:
        raise Usage(f"{where}: no JSON Schema: {error.json_path}: {error.message}") from None
    except _Nowhere as reference:
        raise Usage(f"{where}: it refers to {reference}, which is nowhere in it") from None
    except RecursionError:
        raise Usage(f"{where}: it is nested too deeply") from None
    return schema


def fault(value: Any, schema: Schema, seconds: float) -> str:
    """Where and why a value does not hold to a schema, "" if it does.

    CallFailed("timeout") if that takes longer than so many seconds; TooDeep if it cannot be said. Time is kept in the
    main thread alone: in another one, what might take long is done by a program of its own.
    """
    if depth(value) > DEEPEST:
        raise TooDeep(f"it is nested deeper than {DEEPEST} levels")
    try:
        if possible():
            with within(seconds):
                return _fault(value, schema)
        return _apart(value, schema, seconds) if _may_take_long(schema) else _fault(value, schema)
    except Late:
        why = f"to hold the answer to its schema took longer than {seconds:g} s; --timeout sets the limit"
        raise CallFailed("timeout", why, billed="no") from None


def _apart(value: Any, schema: Schema, seconds: float) -> str:
    from mllm_pipe.calling.span import Io
    from mllm_pipe.runtimes import load

    argv, stdin = [sys.executable, "-c", _PROGRAM, *sys.path], orjson.dumps([value, schema])
    try:
        status, said, complaint = load("command").run_tool(argv, stdin, Io(seconds).left)
    except CallFailed as failed:
        raise (Late if failed.code == "timeout" else failed) from None
    if status:
        raise CallFailed("exit", f"the answer could not be held to its schema: {complaint}", billed="no")
    kind, why = orjson.loads(said)
    if kind == "deep":
        raise TooDeep(why)
    return str(why)


_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from mllm_pipe.contract import held; held()"


def held() -> None:
    """`fault` as a program: [value, schema] is on stdin; stdout gets ["fault", why], or ["deep", why]."""
    value, schema = orjson.loads(sys.stdin.buffer.read())
    try:
        said = ["fault", _fault(value, schema)]
    except TooDeep as deep:
        said = ["deep", str(deep)]
    sys.stdout.buffer.write(orjson.dumps(said))


def _fault(value: Any, schema: Schema) -> str:
    from jsonschema.exceptions import best_match

    try:
        found = best_match(_validator(schema)(schema).iter_errors(value))
        return f"{found.json_path}: {found.message}"[:300] if found else ""
    except RecursionError:
        raise TooDeep("it is nested too deeply for its schema") from None


def _validator(schema: Schema) -> Any:
    import jsonschema

    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)


def _may_take_long(schema: Schema) -> bool:
    """True if a value can be made for it that takes far longer than it is long."""
    text = orjson.dumps(schema)
    return any(keyword in text for keyword in _SEARCHED) or _goes_round(_graph(schema, below=True))


def _references(schema: Any) -> list[str]:
    """All references of a schema."""
    found, level = [], [schema]
    while level:
        for value in level:
            if isinstance(value, dict):
                found += [value[key] for key in _REFERENCES if isinstance(value.get(key), str)]
        level = [inner for value in level if isinstance(value, (dict, list))
                 for inner in (value.values() if isinstance(value, dict) else value)]  # fmt: skip
    return found


def _graph(schema: Schema, *, below: bool) -> dict[int, list[int]]:
    """For each schema in it, by id(), those that it holds the same value to; with `below`, or parts of the value.

    _Nowhere if it refers to what is not in it.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    specification = specification_with(str(schema.get("$schema", "")), default=DRAFT202012)
    root = specification.create_resource(schema)
    waiting = [(root, Registry().resolver_with_root(root))]
    graph: dict[int, list[int]] = {}
    while waiting:
        resource, resolver = waiting.pop()
        if type(resource.contents) is not dict or id(resource.contents) in graph:
            continue
        one, resolver = resource.contents, resolver.in_subresource(resource)
        references = [one[key] for key in _REFERENCES if isinstance(one.get(key), str)]
        try:
            there = [resolver.lookup(reference) for reference in references]
        except Unresolvable:
            raise _Nowhere(" or ".join(references)) from None
        subs = list(resource.subresources())
        followed = [sub.contents for sub in subs] if below else _in_place(one)
        graph[id(one)] = [id(next_one) for next_one in (*(target.contents for target in there), *followed)]
        waiting += [(specification.create_resource(target.contents), target.resolver) for target in there]
        waiting += [(sub, resolver) for sub in subs]
    return graph


def _in_place(schema: Schema) -> list[Any]:
    """The schemas in a schema that the same value is held to."""
    lists = [schema[key] for key in ("allOf", "anyOf", "oneOf") if isinstance(schema.get(key), list)]
    named = schema.get("dependentSchemas", {})
    return [*(one for some in lists for one in some), *named.values(),
            *(schema[key] for key in ("not", "if", "then", "else") if key in schema)]  # fmt: skip


def _goes_round(graph: dict[int, list[int]]) -> bool:
    from graphlib import CycleError, TopologicalSorter

    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False

