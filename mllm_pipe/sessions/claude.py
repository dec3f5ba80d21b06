"""Sessions of Claude Code, as 2.1.197 writes and resumes them.

$CLAUDE_CONFIG_DIR/projects/<directory, with - for all but letters and digits>/<uuid>.jsonl. A line with a uuid hangs
from its parentUuid; one answer is several lines with the same message.id, and the results of its calls hang from the
line of their call, so that they are siblings in the file and one after the other here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mllm_pipe import places, sessions
from mllm_pipe.envelope import line_of
from mllm_pipe.runtimes import _files, _turns
from mllm_pipe.runtimes._program import FIXED_TIME, uuid_of
from mllm_pipe.sessions import TIME, UNKNOWN_MODEL, UUID, message, opaque, record, session_id, settled, told, word
from mllm_pipe.sessions.growing import Frozen, Growing
from mllm_pipe.sessions.store import Held, Reader, alone, files_in, held_in, lay, ndjson, says_first
from mllm_pipe.thread import parts_of as thread_parts

Json = dict[str, Any]

PROGRAM, KNOWN = "Claude Code", "2.1.197"
# What stands beside the conversation: bookkeeping of the program.
BESIDE = frozenset((
    "agent-name", "agent-setting", "ai-title", "attachment", "content-replacement", "custom-title",
    "file-history-delta", "file-history-snapshot", "last-prompt", "mode", "permission-mode", "pr-link", "progress",
    "queue-operation", "summary", "system", "tag", "worktree-state",
))  # fmt: skip
# User texts that the program itself wrote: its reminders, its own commands and what they printed.
OF_THE_PROGRAM = ("<system-reminder>", "<command-name>", "<command-message>", "<local-command-")
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool", "max_tokens": "length", "refusal": "refusal",
          "pause_turn": "pause"}  # fmt: skip
reader = Reader
__all__ = ["PROGRAM", "KNOWN", "held", "reader", "records", "session", "session_id", "keeps", "put", "go_on"]


# -- where they are ---------------------------------------------------------------------------------------------------


def held(cwd: str | None) -> list[Held]:
    """The sessions of a directory, or of all."""
    if cwd is None:
        return held_in(files_in(_projects(), 1, ".jsonl"), str)
    mine = files_in(os.path.join(_projects(), _slug(cwd)), 0, ".jsonl")
    return held_in([path for path in mine if says_first(path, "cwd") in (None, cwd)], str)  # /a-b has the name of /a/b


def go_on(ident: str, _path: str) -> list[str]:
    """The command that resumes a session, in its directory."""
    return ["claude", "--resume", ident]


def _projects() -> str:
    return os.path.join(places.of_program("CLAUDE_CONFIG_DIR", ".claude"), "projects")


def _slug(cwd: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "-", cwd)


def keeps(_answer: Json, own: bool) -> Sequence[str]:
    """What of an answer has a place beside what it says (see mllm_pipe.sessions)."""
    return sessions.BESIDE_TURNS if own else ()


def put(data: bytes, ident: str, cwd: str, _at: str) -> str | None:
    """Make the session's file (see mllm_pipe.sessions); it has to lie in the folder of its directory."""
    path = os.path.join(_projects(), _slug(cwd), f"{ident}.jsonl")
    with alone(_projects()):
        there = files_in(_projects(), 1, f"{ident}.jsonl")
        return lay(path, data, there) if there in ([], [path]) else None


# -- from a session ---------------------------------------------------------------------------------------------------


def records(entries: Iterable[Json], name: str) -> Json:
    """The session as records (see mllm_pipe.sessions). Of a session that was begun anew, what the last line is of: a
    thread of its own, which would else go on from the earlier one where both are stored."""
    tree = _Tree(name)
    take = tree.take
    for line in entries:
        take(line)
    whole, left_out = tree.out.whole(tree.last, tree.half)
    lost = f"of {sessions.counted(tree.lost, 'line')} what it hangs from is not there; each follows the one before it"
    begun = f"left out: {sessions.counted(left_out, 'message')} of an earlier beginning"
    notes = [lost] * bool(tree.lost) + [begun] * bool(left_out)
    notes += [sessions.HALF] * (tree.half is not None)
    root = next(iter(tree.out.ids_to(tree.last)), tree.first)
    if root != tree.first:
        name = f"{name}.{root}"[:200]
        whole = Frozen([line_of(one | {"thread": name})[:-1] for one in whole])
    return {"thread": name, "version": tree.version, "records": whole, "notes": notes}


class _Tree:
    """The lines of a session as messages, by number, each of which hangs from another one or from none."""

    def __init__(self, thread: str) -> None:
        self.thread, self.version = thread, ""
        self.out = Growing()
        self.stands: dict[str, int | None] = {}  # a line's uuid: the message that it stands for, or hangs from
        self.answers: dict[str, int] = {}  # by message.id
        self.owner: dict[int, int] = {}  # a message of results: the answer whose calls those are
        self.last_result: dict[int, int] = {}
        self.told: set[tuple[int, str]] = set()  # (answer, call) of all results
        self.last: int | None = None
        self.first = ""  # the id of the first message
        self.half: int | None = None  # the newest answer while it has not ended, and only its results came after it
        self.lost = 0

    def take(self, line: Json) -> None:
        """Take one line."""
        kind, uuid, version = word(line.get("type")), line.get("uuid"), line.get("version")
        if isinstance(version, str):
            self.version = version
        if not isinstance(uuid, str) or not 0 < len(uuid) <= 190:
            if kind not in BESIDE:
                self.out.beside(_unknown(self.thread, line))
            return
        if uuid in self.stands:
            return
        parent = line.get("parentUuid") or line.get("logicalParentUuid")
        aside, above = line.get("isSidechain"), None
        if isinstance(parent, str):
            if parent in self.stands:
                above = self.stands[parent]
            else:
                above = self.last
                self.lost += above is not None and not aside
        self.stands[uuid] = above
        said = line.get("message")
        if aside or kind in BESIDE or line.get("isMeta") or line.get("isApiErrorMessage"):
            return
        if not isinstance(said, dict) or kind not in ("user", "assistant"):
            self.out.beside(_unknown(self.thread, line))
        elif kind == "user":
            self._user(line, uuid, said, above)
        else:
            self._answer(line, uuid, said, above)

    def _user(self, line: Json, uuid: str, said: Json, above: int | None) -> None:
        """What the user said, or tools gave back, or the program wrote in the place of what it left out."""
        parts = _said(said.get("content"), of_user=True)
        if not parts:
            return
        at = line.get("timestamp")
        if line.get("isCompactSummary"):
            if covers := self.out.ids_to(above):
                content = thread_parts(parts)
                self.out.beside(record("summary", self.thread, uuid, at, content=content, covers=covers), above)
            return
        calls = [] if isinstance(parts, str) else [part["call_id"] for part in parts if part["type"] == "tool_result"]
        role = "tool" if calls and len(calls) == len(parts) else "user"
        self.half = self.half if calls else None
        above = self._among(above, calls) if calls and above is not None else self._after(above)
        self.first = self.first or uuid
        self.stands[uuid] = self.last = self.out.add(message(self.thread, uuid, at, role, parts), above, None)

    def _answer(self, line: Json, uuid: str, said: Json, above: int | None) -> None:
        """An answer, or more of one."""
        group, model, usage = said.get("id"), said.get("model"), said.get("usage")
        parts = _said(said.get("content"))
        used = _usage(usage) if isinstance(usage, dict) else None
        at = line.get("timestamp")
        if isinstance(group, str) and group in self.answers:
            self.stands[uuid] = self.answers[group]
            answer = self.out.again(self.answers[group], used)
            answer["content"] = [*thread_parts(answer["content"]), *thread_parts(parts)]
            if "at" in answer and isinstance(at, str) and TIME.fullmatch(at):
                answer["at"] = at
            _finish(answer, said.get("stop_reason"))
            if self.half == self.answers[group] and "raw_finish" in answer["origin"]:
                self.half = None
        elif parts and model != "<synthetic>":
            group = group if isinstance(group, str) else None
            named = model if isinstance(model, str) and model != UNKNOWN_MODEL else None
            made = message(self.thread, uuid, at, "assistant", parts)
            made["author"] = {"runtime": "claude", "model": named, "provider": "anthropic"}
            made["origin"] = {"api": "claude", "model": named, "response_id": group}
            _finish(made, said.get("stop_reason"))
            self.first = self.first or uuid
            self.stands[uuid] = self.last = number = self.out.add(made, self._after(above), used)
            tells = not sessions.newer(KNOWN, self.version)  # older versions do not say that an answer has ended
            self.half = number if tells and "raw_finish" not in made["origin"] else None
            if group:
                self.answers[group] = number

    def _after(self, above: int | None) -> int | None:
        """What a message hangs from that is said after this one: what comes after one result comes after all."""
        if above is None or above not in self.owner:
            return above
        return self.last_result[self.owner[above]]

    def _among(self, above: int, calls: list[str]) -> int | None:
        """What a message hangs from that has the results of these calls: results of one answer stand one after the
        other. The second result of a call is said after all of them."""
        answer = self.owner.get(above, above)
        results = {(answer, call) for call in calls}
        if not results.isdisjoint(self.told):
            return self._after(above)
        self.told |= results
        last = self.last_result.get(answer, answer)
        self.owner[len(self.out)], self.last_result[answer] = answer, len(self.out)
        return last


def _unknown(thread: str, line: Json) -> Json:
    """A line of a kind that is not known, kept as it is."""
    return record("opaque", thread, f"line-{uuid_of(line)}", line.get("timestamp"), program="claude", raw=line)


def _finish(answer: Json, reason: Any) -> None:
    """Why an answer ended, of its last line that says so."""
    if isinstance(reason, str):
        answer["origin"]["raw_finish"] = reason
        if reason in FINISH:
            answer["finish"] = FINISH[reason]


def parts_of(content: Any) -> list[Json]:
    """A message's content as parts."""
    return thread_parts(_said(content))


def _said(content: Any, of_user: bool = False) -> str | list[Json]:
    """A message's content, a text or parts, without what the program itself put in."""
    if isinstance(content, str):
        return "" if of_user and content.startswith(OF_THE_PROGRAM) else content
    if not isinstance(content, list):
        return [opaque(content)] if content is not None else []
    parts = []
    for block in content:
        part = _part(block)
        if part["type"] != "text" or part["text"] and not (of_user and part["text"].startswith(OF_THE_PROGRAM)):
            parts.append(part)
    return parts


def _part(block: Any) -> Json:
    """A content block of the Messages API as a part; one of another shape than is known is opaque."""
    if not isinstance(block, dict):
        return opaque(block)
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind == "tool_use":
        ident, name, given = block.get("id"), block.get("name"), block.get("input")
        if isinstance(ident, str) and isinstance(name, str) and ident and name and isinstance(given, dict):
            return {"type": "tool_call", "id": ident, "name": name, "arguments": given}
    if kind == "tool_result" and isinstance(block.get("tool_use_id"), str) and block["tool_use_id"]:
        inner = block.get("content") if block.get("content") is not None else ""
        content = inner if isinstance(inner, str) else parts_of(inner)
        failed = {"is_error": block["is_error"]} if isinstance(block.get("is_error"), bool) else {}
        return {"type": "tool_result", "call_id": block["tool_use_id"], "content": content, **failed}
    if kind == "thinking" and isinstance(block.get("thinking"), str):
        return {"type": "reasoning", "text": block["thinking"], "raw": block}
    if kind == "redacted_thinking":
        return {"type": "reasoning", "text": "", "raw": block}
    source = block.get("source")
    if kind in ("image", "document") and isinstance(source, dict) and source.get("type") == "base64":
        media_type, data = source.get("media_type"), source.get("data")
        if isinstance(media_type, str) and media_type and isinstance(data, str):
            named = {"name": block["title"]} if isinstance(block.get("title"), str) and block["title"] else {}
            return {"type": "file", "media_type": media_type, "data": data, **named}
    return opaque(block)


def _usage(used: Json) -> Json:
    """Tokens as the envelope counts them: the input is all of it."""
    new, made = _count(used.get("input_tokens")), _count(used.get("output_tokens"))
    read, write = _count(used.get("cache_read_input_tokens")), _count(used.get("cache_creation_input_tokens"))
    return {"input_tokens": new + read + write, "cache_read_tokens": read, "cache_write_tokens": write,
            "output_tokens": made}  # fmt: skip


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


# -- to a session -----------------------------------------------------------------------------------------------------


def rules(endpoint: str) -> Json:
    """What turns have to be like that claude reads, of an answer's endpoint."""
    return _turns.rules("claude", endpoint, ids="[a-zA-Z0-9_-]+", names="[a-zA-Z0-9_-]{1,64}", objects=True,
                        blank_text=False, system="text", user_first=False)  # fmt: skip


def session(messages: list[Json], spans: dict[str, Json], ident: str, cwd: str, agent: str) -> tuple[bytes, list[Json]]:
    """A branch as a session file, and what of it is lost. spans: by the id of the answer."""
    rule = rules("")
    pieces, losses = settled(messages, agent, rule)
    times = {one["id"]: one.get("at") for one in messages}
    out: list[Json] = []
    time: str = FIXED_TIME
    for piece in pieces:
        ours, parts = told(piece, rule, losses)
        if not parts:
            continue
        time = times.get(piece["id"]) or time
        content: Any = [_explicit(block(part), part) for part in parts]
        if piece["role"] == "user" and len(content) == 1 and content[0]["type"] == "text":
            content = content[0]["text"]
        said: Json = {"role": piece["role"], "content": content}
        origin = (piece["origin"] or {}) if ours else {}
        if piece["role"] == "assistant":
            said |= {"type": "message", "model": origin.get("model") or UNKNOWN_MODEL}
            said["id"] = origin.get("response_id") or f"msg_{uuid_of(ident, piece['id'])}"
            ended = "tool_use" if any(part["type"] == "tool_call" for part in parts) else "end_turn"
            said |= {"stop_reason": origin.get("raw_finish") or ended, "stop_sequence": None}
            if ours and piece["id"] in spans:
                said["usage"] = _used(spans[piece["id"]]["usage"])
        uuid = piece["id"] if UUID.fullmatch(piece["id"]) else uuid_of(ident, piece["id"])
        out.append({"message": said, "uuid": uuid, "timestamp": time})
    if not out:
        raise sessions.nothing("claude")
    common = {"isSidechain": False, "userType": "external", "entrypoint": "cli", "cwd": cwd, "sessionId": ident,
              "version": KNOWN, "gitBranch": ""}  # fmt: skip
    before = None
    for one in out:
        one |= {"type": one["message"]["role"], "parentUuid": before, **common}
        before = one["uuid"]
    return ndjson(out), losses


def _explicit(made: Json, part: Json) -> Json:
    """A result says that it is no error where the session that it came from did."""
    return made | {"is_error": part["is_error"]} if part["type"] == "tool_result" and "is_error" in part else made


def _used(usage: Json) -> Json:
    read, write = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    return {"input_tokens": usage.get("input_tokens", 0) - read - write, "cache_creation_input_tokens": write,
            "cache_read_input_tokens": read, "output_tokens": usage.get("output_tokens", 0)}  # fmt: skip


def block(part: Json) -> Json:
    """A part as a content block; a file that claude has no block for is a CallFailed."""
    kind = part["type"]
    if kind == "tool_call":
        return {"type": "tool_use", "id": part["id"], "name": part["name"], "input": part["arguments"]}
    if kind == "tool_result":
        content = part["content"]
        inner = content if isinstance(content, str) else [block(p) for p in content]
        failed = {"is_error": True} if part.get("is_error") else {}
        return {"type": "tool_result", "tool_use_id": part["call_id"], "content": inner, **failed}
    if kind == "file":
        if (text := _files.as_text(part)) is not None:
            return {"type": "text", "text": text}
        form = "image" if part["media_type"] in _files.IMAGES else "document"
        if "data" not in part or (form == "document" and part["media_type"] != "application/pdf"):
            raise _files.not_taken(part, "claude")
        title = {"title": part["name"]} if form == "document" and part.get("name") else {}
        source = {"type": "base64", "media_type": part["media_type"], "data": part["data"]}
        return {"type": form, "source": source, **title}
    return part["raw"] if "raw" in part else {"type": "text", "text": part["text"]}


def lines(messages: Sequence[Json]) -> bytes:
    """A throw-away session: lines chained by ids that are digests of all that stands before them."""
    made: list[Json] = []
    before = None
    for one in messages:
        ident = uuid_of(before, one)
        first = made[0]["uuid"] if made else ident
        line = {"type": one["role"], "uuid": ident, "parentUuid": before, "sessionId": first}
        if one["role"] == "assistant":
            # Messages without an id of their own are merged. One without a model ends the program in silence where no
            # --model is given; the name of a real one would be taken for the model to go on with.
            one = {"model": UNKNOWN_MODEL, **one, "id": f"msg_{ident}"}
        made.append({**line, "timestamp": FIXED_TIME, "message": one})
        before = ident
    return ndjson(made)
