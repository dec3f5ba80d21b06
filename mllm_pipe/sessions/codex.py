"""Sessions of Codex (rollouts), as 0.169.0 writes and resumes them.

$CODEX_HOME/sessions/YYYY/MM/DD/rollout-<time>-<uuid>.jsonl. What the model saw are the `response_item` lines; what the
program itself wrote among them is told by its kind (`content_item_kinds`) or, in older files, by its first words. One
answer is several items, up to the next text or result that comes from outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from mllm_pipe import places
from mllm_pipe.runtimes import _files, _turns
from mllm_pipe.runtimes._program import FIXED_TIME, uuid_of
from mllm_pipe.sessions import HALF, message, newer, nothing, opaque, record, session_id, settled, span, told, word
from mllm_pipe.sessions.store import Held, Reader, alone, files_in, held_in, lay, ndjson, says_first

Json = dict[str, Any]

PROGRAM, KNOWN = "Codex", "0.169.0"
# What stands beside the conversation: bookkeeping of the program.
BESIDE = frozenset(("session_meta", "event_msg", "turn_context", "world_state", "token_usage_record", "ghost_snapshot"))
NOBODY = "?"  # the role of a message of no role that is known
MARK = "internal_chat_message_metadata_passthrough"  # of an item: it says of each content what kind it is
ENDED = ("task_complete", "turn_aborted")  # events after which an answer does not grow
OF_THE_PROGRAM = ("<environment_context>", "<skills_instructions>", "<skill>", "<turn_aborted>", "<user_instructions>",
                  "<permissions instructions>", "# AGENTS.md instructions", "<user_shell_command>")  # fmt: skip
USAGE = {"input_tokens": "input_tokens", "cached_input_tokens": "cache_read_tokens",
         "cache_write_input_tokens": "cache_write_tokens", "output_tokens": "output_tokens",
         "reasoning_output_tokens": "reasoning_tokens"}  # fmt: skip
PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs",
          "custom_tool_call": "ctc", "custom_tool_call_output": "ctco"}  # fmt: skip
ITEM_ID = re.compile(r"(msg|fc|fco|rs|ctc|ctco)_[A-Za-z0-9_-]{1,180}", re.ASCII)
reader = Reader
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records", "session", "session_id", "keeps", "put", "go_on"]


# -- where they are ---------------------------------------------------------------------------------------------------


def held(cwd: str | None) -> list[Held]:
    """The rollouts of a directory, or of all."""
    paths = files_in(os.path.join(_home(), "sessions"), 3, ".jsonl")
    paths = [path for path in paths if cwd is None or says_first(path, "cwd", "payload") in (None, cwd)]
    return held_in(paths, lambda stem: stem[-36:])


def go_on(ident: str, _path: str) -> list[str]:
    """The command that resumes a session."""
    return ["codex", "resume", ident]


def _home() -> str:
    return places.of_program("CODEX_HOME", ".codex")


def keeps(_answer: Json, own: bool) -> Sequence[str]:
    """What of an answer has a place beside what it says (see mllm_pipe.sessions)."""
    return ("model", "usage") if own else ()


def put(data: bytes, ident: str, _cwd: str, at: str) -> str | None:
    """Make the rollout (see mllm_pipe.sessions); the program finds one by the end of its name, of whatever day."""
    stored, endings = os.path.join(_home(), "sessions"), (f"-{ident}.jsonl", f"-{ident}.jsonl.zst")
    path = os.path.join(stored, at[:10].replace("-", "/"), f"rollout-{at[:19].replace(':', '-')}-{ident}.jsonl")
    with alone(stored):
        archived = files_in(os.path.join(_home(), "archived_sessions"), 0, endings)
        return lay(path, data, [*files_in(stored, 3, endings), *archived])


# -- from a session ---------------------------------------------------------------------------------------------------


def records(entries: Iterable[Json], name: str) -> Json:
    """The rollout as records (see mllm_pipe.sessions)."""
    thread, version, model = name, "", None
    out: list[Json] = []
    idents: set[str] = set()
    items: dict[str, int] = {}  # of those that name themselves a hash
    alike: dict[int, int] = {}  # how often one that does not was there before, by a hash
    answer: Json | None = None  # the one that may still grow
    line: list[Json] = []  # the messages that were not taken back
    back = False  # some just were: what is said next is said instead
    asked_at = None
    number = 0

    def add(made: Json) -> Json:
        nonlocal back
        if back and line:
            made["reply_to"] = line[-1]["id"]
        back = False
        line.append(made)
        out.append(made)
        return made

    def ident_of(payload: Json) -> str:
        given = payload.get("id")
        fits = isinstance(given, str) and 0 < len(given) <= 190 and given not in idents
        prefix = PREFIX.get(str(payload.get("type")), "msg")
        made = str(given)
        if not fits:
            mark = hash(orjson.dumps(payload))
            alike[mark] = alike.get(mark, -1) + 1  # no number of its line: written anew, it may stand in another one
            made = f"{prefix}_{uuid_of(thread, alike[mark], payload)}"
        idents.add(made)
        return made

    for entry in entries:
        number += 1
        kind, payload, at = word(entry.get("type")), entry.get("payload"), entry.get("timestamp")
        if not isinstance(payload, dict):
            kind = "?"
        elif kind == "session_meta":
            version = payload["cli_version"] if isinstance(payload.get("cli_version"), str) else version
        elif kind == "turn_context":
            model = payload["model"] if isinstance(payload.get("model"), str) else model
        elif kind == "event_msg":
            answer = None if payload.get("type") in ENDED else answer
            turns, asked = payload.get("num_turns"), [index for index, one in enumerate(line) if one["role"] == "user"]
            if payload.get("type") == "thread_rolled_back" and type(turns) is int and 0 < turns < len(asked):
                del line[asked[-turns] :]
                answer, back = None, True
        elif kind == "token_usage_record":
            used = payload.get("usage")
            if answer is not None and isinstance(used, dict):
                usage = {USAGE[key]: n for key, n in used.items() if key in USAGE and type(n) is int and n >= 0}
                if isinstance(payload.get("response_id"), str):
                    answer["origin"]["response_id"] = payload["response_id"]
                out.append(span(answer | {"run_id": f"span-{answer['id']}"}, asked_at, usage))
                answer["run_id"] = f"span-{answer['id']}"
            answer = None
        elif kind == "response_item":
            given = payload.get("id")
            if isinstance(given, str):
                mark = hash(orjson.dumps(payload))
                if items.get(given) == mark:
                    continue  # the very same one again
                items.setdefault(given, mark)
            role, parts = turn_of(payload)
            if role == NOBODY:
                kind = role
            elif parts and role == "assistant":
                if answer is None:
                    asked_at = next((one.get("at") for one in reversed(out) if one["type"] == "message"), None)
                    answer = add(record("message", thread, ident_of(payload), at, role=role, content=[]))
                    answer["author"] = {"runtime": "codex", "model": model, "provider": "openai"}
                    answer["origin"] = {"api": "codex", "model": model}
                answer["content"] += parts
            elif parts:
                answer = None
                add(message(thread, ident_of(payload), at, role, parts))
        elif kind == "compacted" and isinstance(payload.get("message"), str) and payload["message"]:
            covers = [one["id"] for one in line]
            answer = None
            if covers:
                ident = ident_of({"compacted": payload["message"]})
                out.append(record("summary", thread, ident, at, content=payload["message"], covers=covers))
            continue
        if kind not in BESIDE and kind != "response_item":
            out.append(record("opaque", thread, f"line-{uuid_of(number, entry)}", at, program="codex", raw=entry))
    notes = []
    if answer is not None and not newer(KNOWN, version):  # it tells the tokens of an answer that has ended
        out.remove(answer)
        notes.append(HALF)
    for one in out:
        if one["type"] == "message" and one["role"] == "assistant":
            parts = one["content"]
            calls = any(part["type"] == "tool_call" for part in parts)
            one["finish"] = "tool" if calls else "stop"
            if len(parts) == 1 and parts[0].keys() == {"type", "text"} and parts[0]["type"] == "text":
                one["content"] = parts[0]["text"]
    return {"thread": thread, "version": version, "records": out, "notes": notes}


def turn_of(payload: Json) -> tuple[str, list[Json]]:
    """(role, parts) of a response item; no parts for what the program itself wrote, and for what nobody says."""
    kind = payload.get("type")
    if kind == "message":
        role, content = payload.get("role"), payload.get("content")
        if role not in ("user", "assistant", "developer", "system"):
            return NOBODY, []
        blocks = content if isinstance(content, list) else [{"type": "input_text", "text": content}]
        told = payload.get(MARK)
        kinds = told.get("content_item_kinds") if isinstance(told, dict) else None
        known = kinds if role != "assistant" and isinstance(kinds, list) and len(kinds) == len(blocks) else None
        if role in ("developer", "system"):  # the program's own text, but for what `session` marks
            role, known = "system", known or [""] * len(blocks)
        parts = [
            part_of(block) for index, block in enumerate(blocks) if not known or str(known[index]).startswith("user.")
        ]
        skipped = OF_THE_PROGRAM if role == "user" else ()
        return role, [
            part for part in parts if part["type"] != "text" or part["text"] and not part["text"].startswith(skipped)
        ]
    if kind == "reasoning":
        shown = payload.get("summary")
        texts = [str(one.get("text", "")) for one in shown if isinstance(one, dict)] if isinstance(shown, list) else []
        return "assistant", [{"type": "reasoning", "text": "\n\n".join(texts), "raw": payload}]
    call, called = payload.get("call_id"), payload.get("name")
    named = isinstance(call, str) and isinstance(called, str) and call and called
    if kind in ("function_call", "custom_tool_call") and named:
        return "assistant", [_call(payload, str(call), str(called))]
    if kind in ("function_call_output", "custom_tool_call_output") and isinstance(call, str) and call:
        output = payload.get("output")
        custom = {"raw": {"type": kind}} if kind != "function_call_output" else {}
        if isinstance(output, (str, list)):
            content = output if isinstance(output, str) else [part_of(one) for one in output]
            return "tool", [{"type": "tool_result", "call_id": call, "content": content, **custom}]
    return "assistant", [opaque(payload)]


def _call(payload: Json, call: str, called: str) -> Json:
    if payload["type"] == "custom_tool_call":
        given = payload.get("input")
        return {"type": "tool_call", "id": call, "name": called, "arguments": {}, "arguments_raw": str(given),
                "raw": {"type": "custom_tool_call"}}  # fmt: skip
    given = payload.get("arguments")
    try:
        arguments = orjson.loads(given) if isinstance(given, str) else None
    except orjson.JSONDecodeError:
        arguments = None
    if isinstance(arguments, dict):
        same = orjson.dumps(arguments).decode() == given
        exact = {} if same else {"raw": {"type": "function_call", "arguments": given}}
        return {"type": "tool_call", "id": call, "name": called, "arguments": arguments, **exact}
    return {"type": "tool_call", "id": call, "name": called, "arguments": {}, "arguments_raw": str(given)}


def part_of(block: Any) -> Json:
    """A content item as a part; one of another shape than is known is opaque."""
    if isinstance(block, dict):
        kind, url = block.get("type"), str(block.get("image_url"))
        if kind in ("input_text", "output_text", "text") and isinstance(block.get("text"), str):
            return {"type": "text", "text": block["text"]}
        found = re.match(r"data:([\w.+-]+/[\w.+-]+);base64,", url)
        if kind == "input_image" and found:
            return {"type": "file", "media_type": found[1], "data": url[found.end() :]}
    return opaque(block)


# -- to a session -----------------------------------------------------------------------------------------------------


def rules(endpoint: str) -> Json:
    """What turns have to be like that codex reads, of an answer's endpoint. An answer with nothing in it stays: the
    user's turns around it would else be one, and be told otherwise when it is old than when it was the newest."""
    return _turns.rules("codex", endpoint, ids="[a-zA-Z0-9_-]{1,64}", names="[a-zA-Z0-9_-]{1,64}", result_files=False,
                        user_first=False, empty_answers=True)  # fmt: skip


def failures_told(turn: Json, losses: list[Json]) -> Json:
    """A user turn whose results say in their text that a tool failed: there is no other place for it."""

    def told(part: Json) -> Json:
        if not part.get("is_error"):
            return part
        _turns.error_as_text(losses, turn, part)
        return {**part, "content": orjson.dumps({"error": part["content"]}).decode()}

    return {**turn, "parts": [told(part) for part in turn["parts"]]}


def session(messages: list[Json], spans: dict[str, Json], ident: str, cwd: str, agent: str) -> tuple[bytes, list[Json]]:
    """A branch as a rollout, and what of it is lost. spans: by the id of the answer."""
    rule = rules("")
    pieces, losses = settled(messages, agent, rule)
    times = {one["id"]: one.get("at") for one in messages}
    time: str = next((one["at"] for one in messages if "at" in one), FIXED_TIME)
    out: list[tuple[str, str, Json]] = [(time, "session_meta", _meta(ident, time, cwd, "codex_cli_rs", "cli"))]
    model: Any = None
    for piece in pieces:
        piece = failures_told(piece | {"ids": [piece["id"]]}, losses)
        ours, parts = told(piece, rule, losses)
        if not parts:
            continue
        time = times.get(piece["id"]) or time
        role = "developer" if piece["role"] == "system" else piece["role"]
        origin = (piece["origin"] or {}) if ours else {}
        spoken = origin.get("model")
        if spoken and spoken != model:
            model = spoken
            out.append((time, "turn_context", _context(model, cwd)))
        marked = {MARK: {"content_item_kinds": ["user.text"]}} if piece["role"] == "system" else {}
        for number, made in enumerate(_together([_own_item(part, role) | marked for part in parts])):
            prefix = PREFIX.get(made["type"], "msg")
            first = not number and ITEM_ID.fullmatch(piece["id"])
            own = piece["id"] if first else made.get("id") or f"{prefix}_{uuid_of(ident, piece['id'], number)}"
            as_it_was = any(made == part.get("raw") for part in parts)  # older versions gave reasoning no id
            out.append((time, "response_item", made if as_it_was else {**made, "id": own}))
            if shown := _shown(made):
                out.append((time, "event_msg", shown))
        if ours and piece["id"] in spans:
            used = {theirs: spans[piece["id"]]["usage"][own] for theirs, own in USAGE.items()
                    if own in spans[piece["id"]]["usage"]}  # fmt: skip
            out.append((time, "token_usage_record", _tokens(used, ident, origin.get("response_id"))))
    if len(out) == 1:
        raise nothing("codex")
    return _written(out), losses


def _shown(made: Json) -> Json | None:
    """What `codex resume` puts on the screen of an item; the items themselves it only sends. None for no message."""
    if made["type"] != "message" or made["role"] not in ("user", "assistant"):
        return None
    text = "\n\n".join(word(part["text"]) for part in made["content"] if isinstance(part, dict) and "text" in part)
    if made["role"] == "user":
        return {"type": "user_message", "message": text, "images": [], "local_images": [], "text_elements": []}
    return {"type": "agent_message", "message": text, "phase": None}


def _own_item(part: Json, role: str) -> Json:
    """As `item`, and what codex made as it made it."""
    raw = part.get("raw")
    own: Json = raw if isinstance(raw, dict) else {}
    kind = word(own.get("type"))
    if part["type"] == "reasoning" or (part["type"] == "opaque" and "raw" in part):
        # What is no item stood in the content of one.
        return {"type": "message", "role": role, "content": [raw]} if kind in ("", "message") else own
    if part["type"] == "tool_result" and part.get("raw") == {"type": "custom_tool_call_output"}:
        return {**item(part, role), "type": "custom_tool_call_output"}
    if part["type"] == "tool_call" and kind == "function_call":
        return {**item(part, role), **own}
    if part["type"] == "tool_call" and kind == "custom_tool_call" and "arguments_raw" in part:
        return {"type": "custom_tool_call", "name": part["name"], "input": part["arguments_raw"], "call_id": part["id"]}
    return item(part, role)


def _together(items: list[Json]) -> list[Json]:
    """Texts and images of one message, that stand together, as one item."""
    out: list[Json] = []
    for one in items:
        if one["type"] == "message" and out and out[-1]["type"] == "message":
            out[-1] = {**out[-1], "content": [*out[-1]["content"], *one["content"]]}
        else:
            out.append(one)
    return out


def _context(model: str, cwd: str) -> Json:
    return {"cwd": cwd, "approval_policy": "on-request", "sandbox_policy": {"type": "read-only"}, "model": model,
            "summary": "auto"}  # fmt: skip


def _tokens(used: Json, ident: str, response: Any) -> Json:
    total = used | {"total_tokens": used.get("input_tokens", 0) + used.get("output_tokens", 0)}
    return {"thread_id": ident, "turn_id": "t1", "session_id": ident, "root_turn_id": "t1", "response_id": response,
            "usage": total, "turn_token_usage": total, "thread_token_usage": total}  # fmt: skip


def _meta(ident: str, time: str, cwd: str, originator: str, source: str) -> Json:
    return {"id": ident, "timestamp": time, "cwd": cwd, "originator": originator, "cli_version": KNOWN,
            "source": source}  # fmt: skip


def _written(lines: Sequence[tuple[str, str, Json]]) -> bytes:
    """A rollout of (time, type, payload) lines. Without an end codex inserts a turn that says it was aborted."""
    end = lines[-1][0], "event_msg", {"type": "task_complete", "turn_id": "t1", "last_agent_message": None}
    return ndjson({"timestamp": time, "type": kind, "payload": payload} for time, kind, payload in [*lines, end])


def item(part: Json, role: str) -> Json:
    """A part as an input item; a file that codex has no item for is a CallFailed."""
    if part["type"] == "tool_call":
        given = part.get("arguments_raw")
        given = orjson.dumps(part["arguments"]).decode() if given is None else given
        return {"type": "function_call", "name": part["name"], "arguments": given, "call_id": part["id"]}
    if part["type"] == "tool_result":
        return {"type": "function_call_output", "call_id": part["call_id"], "output": part["content"]}
    content = {"type": "output_text" if role == "assistant" else "input_text", "text": part.get("text")}
    if part["type"] == "file":
        content["text"] = _files.as_text(part)
        if content["text"] is None:
            if "data" not in part or part["media_type"] not in _files.IMAGES:
                raise _files.not_taken(part, "codex")
            content = {"type": "input_image", "image_url": f"data:{part['media_type']};base64,{part['data']}"}
    return {"type": "message", "role": role, "content": [content]}


def rollout(items: Sequence[Json], ident: str) -> bytes:
    """The session file of a history. The ids of its items are digests of all that stands before them."""
    lines = [(FIXED_TIME, "session_meta", _meta(ident, FIXED_TIME, "/", "codex_exec", "exec"))]
    before = ""
    for item in items:
        before = uuid_of(before, item)
        lines.append((FIXED_TIME, "response_item", {**item, "id": f"{PREFIX[item['type']]}_{before}"}))
    return _written(lines)
