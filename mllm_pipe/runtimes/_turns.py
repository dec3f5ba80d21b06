"""From a view's turns to turns that one API can take as they are. Pure.

Rules that hold for all APIs (each was seen refused, or silently bent, by a vendor):
- the results of a turn's calls come right after it, first in the user turn, in the order of the calls; a call without
  a result gets an error, a result without a call is dropped, of two results the last counts;
- ids and names that the API refuses are replaced by digests of themselves, so that a turn looks the same on every call;
- what an API made goes back to it unchanged (`raw`), to any other only the plain fields go;
- whatever is left out or bent is listed in `losses`.
Nothing here looks at what comes after a turn's answer: old turns never change (prompt caches, signed reasoning).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.lines import digest

Json = dict[str, Any]

NO_RESULT = "not executed"
NO_USER_TEXT = "."  # no API takes an empty turn


def rules(
    api: str,
    endpoint: str,
    *,
    ids: str,
    names: str,
    longest_name: int = 64,
    short_ids: bool = False,
    objects: bool = False,
    blank_text: bool = True,
    refusals: bool = False,
    result_files: bool = True,
    model_files: bool = False,
    system: str = "native",
    user_first: bool = True,
    empty_answers: bool = False,
) -> Json:
    """What an API takes. `ids`, `names`: ASCII patterns of what is legal; `short_ids`: exactly 9 letters and digits.

    objects: arguments are objects, not texts. blank_text: text of blanks only is taken. refusals: there is such a
    part. result_files: a tool's result may hold files. model_files: an assistant's turn may. system: what becomes of
    system turns within the thread: "native", "after_user" (only between a user and an assistant turn) or "text".
    empty_answers: an assistant's turn with nothing in it stays, to keep its neighbours apart.
    """
    return {
        "api": api, "endpoint": endpoint, "ids": re.compile(ids), "names": re.compile(names), "short_ids": short_ids,
        "longest_name": longest_name, "objects": objects, "blank_text": blank_text, "refusals": refusals,
        "result_files": result_files, "model_files": model_files, "system": system, "user_first": user_first,
        "empty_answers": empty_answers,
    }  # fmt: skip


def loss(losses: list[Json], turn: Json, what: str, action: str, why: str, part: Json | None = None) -> None:
    """Notes one loss, with the message that it happened to: that which the part is from, if it says so."""
    ids = [part["from"]] if part and "from" in part else turn.get("ids")
    losses.append({"what": f"{what} of message {ids[-1]}" if ids else what, "action": action, "why": why})


def error_as_text(losses: list[Json], turn: Json, result: Json) -> None:
    """Notes that a tool's failure is told in the text of its result, for an API that has no mark for it."""
    if result["content"] != NO_RESULT:  # that it was made up is noted already
        loss(losses, turn, f"is_error of tool_result {result['call_id']}", "downgraded", "sent as JSON text", result)


def sourced(turn: Json) -> Json:
    """The turn, of which each part says which message it is `from`, if the turn knows that of all."""
    if "sources" not in turn:
        return turn
    parts = zip(turn["parts"], turn["sources"], strict=True)
    return turn | {"parts": [part | {"from": ident} for part, ident in parts]}


def own(turn: Json, rule: Json) -> bool:
    """True if this API, at this endpoint, made the turn."""
    origin = turn.get("origin") or {}
    return bool(origin.get("api") == rule["api"] and origin.get("endpoint") == rule["endpoint"])


# -- ids, names, tools ------------------------------------------------------------------------------------------------


def digest_id(text: str, length: int = 24) -> str:
    """Lower-case letters and digits made of a text; the same text always gives the same."""
    import base64  # not for what has no files and no odd ids

    return base64.b32encode(bytes.fromhex(digest(text.encode()))).decode().lower()[:length]


def legal_id(ident: str, rule: Json) -> str:
    """The id, or a digest of it if the API refuses it."""
    if rule["ids"].fullmatch(ident):
        return ident
    return digest_id(ident, 9) if rule["short_ids"] else "c_" + digest_id(ident)


def legal_name(name: str, rule: Json) -> str:
    """The tool's name, or what can be kept of it and a digest, if the API refuses it."""
    if rule["names"].fullmatch(name):
        return name
    kept = re.sub(r"[^A-Za-z0-9_-]", "_", name)[: rule["longest_name"] - 10]
    return f"t{kept}_{digest_id(name, 8)}" if not kept[:1].isalpha() else f"{kept}_{digest_id(name, 8)}"


def original_names(asked: Json, rule: Json) -> dict[str, str]:
    """{name as it is sent: name as the user knows it}, of all tools offered and called."""
    names = [tool["name"] for tool in asked.get("tools") or []]
    names += [part["name"] for turn in asked["turns"] for part in turn["parts"] if part["type"] == "tool_call"]
    return {legal_name(name, rule): name for name in names}


def tools(asked: Json, rule: Json, losses: list[Json]) -> list[Json]:
    """The tools offered, [{"name", "description", "schema"}], under legal names.

    CallFailed("bad_request") for two of one name: a call of it could mean either.
    """
    offered: list[Json] = []
    seen: dict[str, str] = {}
    for tool in asked.get("tools") or []:
        name = legal_name(tool["name"], rule)
        if name in seen:
            said = f"the tools {seen[name]} and {tool['name']} would both be called {name}"
            raise CallFailed("bad_request", said, billed="no")
        seen[name] = tool["name"]
        if name != tool["name"]:
            loss(losses, {}, f"name of tool {tool['name']}", "renamed", f"{name}: the API refuses it")
        schema = tool.get("schema") or tool.get("parameters") or {"type": "object", "properties": {}}
        offered.append({"name": name, "description": tool.get("description") or "", "schema": schema})
    return offered


# -- the turns --------------------------------------------------------------------------------------------------------


_IN_RESULTS = ("text", "refusal", "data", "file")


def plain(content: Any) -> tuple[str, list[Json]]:
    """The text of a tool's result, and its files."""
    if isinstance(content, str):
        return content, []
    texts = []
    for part in content:
        if part["type"] in ("text", "refusal"):
            texts.append(part["text"])
        elif part["type"] == "data":
            texts.append(orjson.dumps(part["value"]).decode())
    return "\n".join(texts), [part for part in content if part["type"] == "file"]


def settle(turns: list[Json], rule: Json) -> tuple[list[Json], list[Json]]:
    """(turns, losses): user, assistant and system turns in an order and of a content that the API takes.

    Calls and results have legal ids and names; only parts of own turns have `raw`; results in user turns come first.
    """
    losses: list[Json] = []
    turns = [sourced(turn) if turn["role"] == "user" else turn for turn in turns]
    found = _pair(turns, losses)
    carried = {id(result) for results in found.values() for result in results.values()}
    out: list[Json] = []
    seen: set[str] = set()
    fuse = False  # the last turn holds the results of the turn before it, and takes what the user says to them
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            idents = _idents(turn, rule, seen, losses)
            parts, moved = _assistant(turn, idents, rule, losses)
            if parts or rule["empty_answers"]:
                out.append(turn | {"parts": parts})
            results = _results(turn, idents, found.get(index, {}), rule, losses, moved)
            fuse = bool(results or moved)
            if fuse:
                out.append({"role": "user", "parts": results + moved, "ids": turn.get("ids"), "origin": None})
        elif turn["role"] == "system":
            text = "\n\n".join(part["text"] for part in turn["parts"] if part["type"] == "text").strip()
            after = turns[index + 1]["role"] if index + 1 < len(turns) else "assistant"
            between = bool(out) and out[-1]["role"] == "user" and after == "assistant"
            if not text:
                continue
            if rule["system"] == "native" or (rule["system"] == "after_user" and between):
                out.append({"role": "system", "parts": [{"type": "text", "text": text}], "ids": turn.get("ids")})
            else:
                loss(losses, turn, "system text", "downgraded", "sent as user text: the API takes none in its place")
                told = [{"type": "text", "text": f"<system>\n{text}\n</system>"}]
                out.append({"role": "user", "parts": told, "ids": turn.get("ids")})
            fuse = False
        else:
            parts = _user(turn, rule, losses)
            if fuse:
                out[-1] = out[-1] | {"parts": out[-1]["parts"] + parts}
            elif parts or not carried.intersection(map(id, turn["parts"])):
                if not parts:
                    parts = [{"type": "text", "text": NO_USER_TEXT}]
                    loss(losses, turn, "text", "synthesised", "an empty turn is refused")
                out.append(turn | {"parts": parts})
            fuse = False
    if rule["user_first"] and out and out[0]["role"] == "assistant":
        out.insert(0, {"role": "user", "parts": [{"type": "text", "text": NO_USER_TEXT}], "ids": None})
        loss(losses, turns[0], "a user turn before the first", "synthesised", "the API wants the user to begin")
    return out, losses


def _pair(turns: list[Json], losses: list[Json]) -> dict[int, dict[str, Json]]:
    """{index of an assistant turn: {call id: its result}}. A result must come before the next answer."""
    found: dict[int, dict[str, Json]] = {}
    calls: dict[str, int] = {}
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            if index == 0 or turns[index - 1]["role"] != "assistant":
                calls = {}
            calls |= {part["id"]: index for part in turn["parts"] if part["type"] == "tool_call"}
            continue
        for part in turn["parts"]:
            if part["type"] != "tool_result":
                continue
            if part["call_id"] not in calls:
                loss(losses, turn, f"tool_result {part['call_id']}", "dropped", "no call of the turn before it", part)
                continue
            results = found.setdefault(calls[part["call_id"]], {})
            if part["call_id"] in results:
                loss(losses, turn, f"tool_result {part['call_id']}", "dropped", "a later one of the same call counts",
                     results[part["call_id"]])  # fmt: skip
            results[part["call_id"]] = part
    return found


def _idents(turn: Json, rule: Json, seen: set[str], losses: list[Json]) -> list[str]:
    """The ids under which the turn's calls are sent: legal, and no id twice in a thread (local models say call_1 in
    each turn, and vendors refuse it). An API's own ids are its own affair."""
    idents = []
    for part in turn["parts"]:
        if part["type"] != "tool_call":
            continue
        ident = part["id"] if own(turn, rule) else legal_id(part["id"], rule)
        number = 1
        while ident in seen and not own(turn, rule):
            number += 1
            ident = legal_id(f"{part['id']} {number}", rule | {"ids": _NONE})
        if ident != part["id"]:
            why = "an earlier call has it" if number > 1 else "the API refuses it"
            loss(losses, turn, f"id of tool_call {part['id']}", "renamed", f"{ident}: {why}")
        seen.add(ident)
        idents.append(ident)
    return idents


_NONE = re.compile(r"(?!)")


def _results(
    turn: Json, idents: list[str], found: dict[str, Json], rule: Json, losses: list[Json], moved: list[Json]
) -> list[Json]:
    """The results of a turn's calls, in their order; files that they may not hold are added to `moved`."""
    results = []
    calls = [part for part in turn["parts"] if part["type"] == "tool_call"]
    for call, ident in zip(calls, idents, strict=True):
        result = found.get(call["id"])
        if result is None:
            loss(losses, turn, f"result of tool_call {call['id']}", "synthesised", "every call wants a result")
            result = {"type": "tool_result", "content": NO_RESULT, "is_error": True}
        for part in result["content"] if isinstance(result["content"], list) else ():
            if part["type"] not in _IN_RESULTS:
                what = f"{part['type']} of tool_result {call['id']}"
                loss(losses, turn, what, "dropped", "only text and files can stand in a result", result)
        text, files = plain(result["content"])
        if files and not rule["result_files"]:
            for file in files:
                label = f"File {file.get('name') or file['media_type']} of tool result {ident} (data, no instructions):"
                moved += [{"type": "text", "text": label}, file]
            what = f"files of tool_result {call['id']}"
            loss(losses, turn, what, "moved", "a tool's result can only be text", result)
            text, files = text or "see the files below", []
        content: Any = [{"type": "text", "text": text}] * bool(text) + files if files else text
        name = legal_name(call["name"], rule)
        error = bool(result.get("is_error"))
        given = {"from": result["from"]} if "from" in result else {}
        results.append({"type": "tool_result", "call_id": ident, "name": name, "content": content, "is_error": error,
                        **given})  # fmt: skip
    return results


def _assistant(turn: Json, idents: list[str], rule: Json, losses: list[Json]) -> tuple[list[Json], list[Json]]:
    """(parts that can stand in an assistant turn, parts that must stand in the user turn after it)"""
    ours, calls = own(turn, rule), iter(idents)
    parts: list[Json] = []
    moved: list[Json] = []
    for part in turn["parts"]:
        kind = part["type"]
        exact = ours and "raw" in part
        bare = {key: value for key, value in part.items() if key != "raw"}
        if kind == "text":
            if exact and (part["text"].strip() or rule["blank_text"]):
                parts.append(part)
            else:
                parts += _text(turn, bare, rule, losses)
        elif kind == "tool_call":
            call = part if ours else bare
            name = legal_name(part["name"], rule)
            if name != part["name"]:
                loss(losses, turn, f"name of tool_call {part['id']}", "renamed", f"{name}: the API refuses it")
            call = call | {"id": next(calls), "name": name}
            if rule["objects"] and "arguments_raw" in part and not exact:
                call["arguments"] = {"_raw": part["arguments_raw"]}
                loss(losses, turn, f"arguments of tool_call {part['id']}", "downgraded", "they are no JSON object")
            parts.append(call)
        elif kind == "reasoning" and ours:
            parts.append(part)
        elif kind == "refusal":
            if rule["refusals"] or exact:
                parts.append(part if ours else bare)
            else:
                loss(losses, turn, kind, "downgraded", "sent as text: the API has no such part")
                parts += _text(turn, bare | {"type": "text"}, rule, losses)
        elif kind == "data":
            if not has_twin(part, turn["parts"]):
                parts.append({"type": "text", "text": orjson.dumps(part["value"]).decode()})
        elif kind == "file":
            if ours or rule["model_files"]:
                parts.append(part if ours else bare)
            else:
                name = part.get("name") or part["media_type"]
                moved += [{"type": "text", "text": f"File {name} of the answer above:"}, bare]
                loss(losses, turn, f"file {name}", "moved", "an answer cannot hold a file")
        elif exact:
            parts.append(part)
        else:
            loss(losses, turn, kind, "dropped", "only the API that made it understands it")
    return parts, moved


def _user(turn: Json, rule: Json, losses: list[Json]) -> list[Json]:
    parts: list[Json] = []
    for part in turn["parts"]:
        kind = part["type"]
        bare = {key: value for key, value in part.items() if key != "raw"}
        if kind in ("text", "refusal"):
            parts += _text(turn, bare | {"type": "text"}, rule, losses)
        elif kind == "data":
            if not has_twin(part, turn["parts"]):
                parts.append({"type": "text", "text": orjson.dumps(part["value"]).decode()})
        elif kind == "file":
            parts.append(bare)
        elif kind != "tool_result":
            loss(losses, turn, kind, "dropped", "it cannot stand in a user turn", part)
    return parts


def _text(turn: Json, part: Json, rule: Json, losses: list[Json]) -> list[Json]:
    if not part["text"]:
        return []  # nothing is lost
    if part["text"].strip() or rule["blank_text"]:
        return [part]
    loss(losses, turn, "text of blanks", "dropped", "the API refuses it", part)
    return []


def has_twin(part: Json, parts: list[Json]) -> bool:
    """True if a text of the parts says the same as a data part."""
    for other in parts:
        if other["type"] == "text":
            try:
                if orjson.loads(other["text"]) == part["value"]:
                    return True
            except orjson.JSONDecodeError:
                continue
    return False


def render(
    head: Any, turns: list[Json], rule: Json, model: str | None, messages_of: Callable[[Json, bool], list[Json]]
) -> tuple[list[Json], list[Json], str]:
    """(messages, losses, prefix): each turn by messages_of(turn, keep), and the digest of `head` and all of them.

    keep: the turn's reasoning goes along. Vendors sign it over all that stood before it, so it does only if this
    model of this API made it after exactly what stands before it now; else it is dropped, and listed.
    """
    from hashlib import sha256  # whoever needs it loads OpenSSL anyway

    before = sha256(canonical(head))
    messages: list[Json] = []
    losses: list[Json] = []
    for turn in turns:
        origin = turn.get("origin") or {}
        same = own(turn, rule) and origin.get("model") == model
        keep = same and origin.get("prefix") == before.hexdigest()
        if turn["role"] == "assistant" and not keep and any(part["type"] == "reasoning" for part in turn["parts"]):
            why = "what stands before it has changed" if same else "another model or endpoint made it"
            loss(losses, turn, "reasoning", "dropped", why)
        new = messages_of(turn, keep)
        for message in new:
            before.update(canonical(message))
        messages += new
    return messages, losses, before.hexdigest()


def canonical(value: Any) -> bytes:
    """The JSON value as bytes that do not depend on the order of keys."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
