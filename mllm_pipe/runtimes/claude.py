"""Claude Code (`claude -p`), headless and stateless. Seen with 2.1.197.

The history is a session file of our own that `--resume` reads, the newest turn a `stream-json` message on stdin. Two
oddities shape how that message is written, both seen on loopback:

- A prompt that begins with / is a command. What is looked at is the last text block alone, so an empty one is put
  there; it is dropped again before the request is made, and the text arrives as it was.
- A result of a tool on stdin loses the call that it belongs to. Such a newest turn goes into the session file, stdin
  stays empty, and CLAUDE_CODE_RESUME_INTERRUPTED_TURN lets the program go on from there. It would put a sentence of
  its own after it; a blank one is dropped.

Nothing in either place is expanded as @file with --bare or CLAUDE_CODE_DISABLE_ATTACHMENTS. The program itself adds
two system blocks that name it, and today's date before the first user turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _child, _faults, _files, _turns
from mllm_pipe.runtimes._program import FIXED_TIME, distinct, key_for, uuid_of, wrong_program

STREAMS = True

SESSION = "00000000-0000-4000-8000-000000000000.jsonl"  # must be named like a UUID
SECRET = ("_KEY", "_TOKEN", "_HEADERS")
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
SYNTHETIC = "<synthetic>"  # the model of messages that the program wrote itself
# Of a Claude Code that we may run in: its session, not its login.
NOT_OURS = ("CLAUDE_CODE_SESSION", "CLAUDE_CODE_CHILD_SESSION", "CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_ENTRYPOINT",
            "CLAUDE_CODE_RESUME", "CLAUDE_CODE_SUPERVISED", "CLAUDE_BG_")  # fmt: skip
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "refusal": "refusal",
          "tool_use": "tool", "pause_turn": "pause", "model_context_window_exceeded": "length"}  # fmt: skip
WORDS = {"authentication_failed": "auth", "oauth_org_not_allowed": "permission", "billing_error": "billing",
          "rate_limit": "rate_limit", "overloaded": "overloaded", "model_not_found": "bad_model"}  # fmt: skip


# -- to the program ---------------------------------------------------------------------------------------------------


def session(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The request as {"history": the session file, b"" for none, "stdin": bytes, "losses", "prefix", "endpoint"}. Pure.

    The lines of a thread are a prefix of those of the same thread later on.
    """
    rule = _turns.rules("claude", _endpoint(target), ids="[a-zA-Z0-9_-]+", names="[a-zA-Z0-9_-]{1,64}", objects=True,
                        blank_text=False, system="text", user_first=False)  # fmt: skip
    turns, renamed = distinct(_files.embedded(request["turns"]))
    turns, bent = _turns.settle(turns, rule)
    rendered, dropped, prefix = _turns.render(request["system"], turns, rule, target.get("model"), _messages)
    messages: list[dict[str, Any]] = []
    for message in rendered:
        if message["role"] == "user" and messages and messages[-1]["role"] == "user":
            message = {**message, "content": [*messages.pop()["content"], *message["content"]]}
        messages.append(message)
    for message in messages:
        if message["content"][0]["type"] == "tool_result":
            message["content"].append({"type": "text", "text": ""})  # or the last text would gain a newline
    made = {"losses": [*renamed, *bent, *dropped], "prefix": prefix, "endpoint": rule["endpoint"]}
    if messages[-1]["content"][0]["type"] == "tool_result":
        return {**made, "history": _lines(messages), "stdin": b""}
    newest = {"role": "user", "content": [*messages[-1]["content"], {"type": "text", "text": ""}]}
    prompt = {"type": "user", "message": newest, "parent_tool_use_id": None}
    return {**made, "history": _lines(messages[:-1]), "stdin": orjson.dumps(prompt) + b"\n"}


def _messages(turn: dict[str, Any], keep: bool) -> list[dict[str, Any]]:
    """A settled turn as messages of the Messages API: one, or none. keep: with its reasoning."""
    parts = [part for part in turn["parts"] if part["type"] != "reasoning" or (keep and "raw" in part)]
    content = [_block(part) for part in parts]
    # Without the model's name the program takes the reasoning for another model's, and drops it.
    named = {"model": turn["origin"]["model"]} if keep else {}
    return [{"role": turn["role"], "content": content, **named}] if content else []


def _block(part: dict[str, Any]) -> dict[str, Any]:
    """A part as a content block; a file that claude has no block for is a CallFailed."""
    kind = part["type"]
    if kind == "tool_call":
        return {"type": "tool_use", "id": part["id"], "name": part["name"], "input": part["arguments"]}
    if kind == "tool_result":
        content = part["content"]
        inner = content if isinstance(content, str) else [_block(p) for p in content]
        failed = {"is_error": True} if part["is_error"] else {}
        return {"type": "tool_result", "tool_use_id": part["call_id"], "content": inner, **failed}
    if kind == "file":
        if (text := _files.as_text(part)) is not None:
            return {"type": "text", "text": text}
        form = "image" if part["media_type"] in _files.IMAGES else "document"
        if "data" not in part or (form == "document" and part["media_type"] != "application/pdf"):
            raise _files.not_taken(part, "claude")
        return {"type": form, "source": {"type": "base64", "media_type": part["media_type"], "data": part["data"]}}
    return part["raw"] if "raw" in part else {"type": "text", "text": part["text"]}


def _lines(messages: Sequence[dict[str, Any]]) -> bytes:
    """The session file: lines chained by ids that are digests of all that stands before them."""
    lines: list[dict[str, Any]] = []
    before = None
    for message in messages:
        ident = uuid_of(before, message)
        first = lines[0]["uuid"] if lines else ident
        line = {"type": message["role"], "uuid": ident, "parentUuid": before, "sessionId": first}
        if message["role"] == "assistant":
            # Messages without an id of their own are merged. One without a model ends the program in silence where no
            # --model is given; the name of a real one would be taken for the model to go on with.
            message = {"model": "assistant", **message, "id": f"msg_{ident}"}
        lines.append({**line, "timestamp": FIXED_TIME, "message": message})
        before = ident
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


def arguments(target: dict[str, Any], bare: bool, system: str, resume: str) -> list[str]:
    """The command line. system: the file of the system text, which may be empty. resume: the session file, or ""."""
    return [
        "claude", "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose",
        "--include-partial-messages", "--no-session-persistence", "--tools", "", "--strict-mcp-config",
        "--setting-sources", "", "--disable-slash-commands", "--system-prompt-file", system,
        *(["--bare"] if bare else []),
        *([f"--model={target['model']}"] if target.get("model") else []),
        *([f"--resume={resume}"] if resume else []),
    ]  # fmt: skip


def environment(target: dict[str, Any], key: tuple[str, str] | None, private: str, resumed: bool) -> dict[str, str]:
    """The child's variables. private: the directory of its state, "" for the user's own, which holds the login."""
    extra = {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",  # no second, paid call for a title either
        "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",  # a cut answer would be asked for again, and paid twice
        "DISABLE_AUTOUPDATER": "1",
    }
    if private:
        extra |= {"CLAUDE_CONFIG_DIR": private, "HOME": private}
    if key and key[0] not in KEYS:
        extra |= {"ANTHROPIC_API_KEY": key[1], "ANTHROPIC_AUTH_TOKEN": "", "CLAUDE_CODE_OAUTH_TOKEN": ""}
    if target.get("base_url"):
        extra["ANTHROPIC_BASE_URL"] = target["base_url"]
    if target.get("max_tokens"):
        extra["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(target["max_tokens"])
    if resumed:
        extra |= {"CLAUDE_CODE_RESUME_INTERRUPTED_TURN": "1", "CLAUDE_CODE_RESUME_PROMPT": " "}
    env = _child.allowed_env(("ANTHROPIC_", "CLAUDE_"))
    return {name: value for name, value in env.items() if not name.startswith(NOT_OURS)} | extra


# -- from the program -------------------------------------------------------------------------------------------------


def reply(
    events: Sequence[dict[str, Any]], made: Mapping[str, Any] | None = None, secrets: Sequence[str] = ()
) -> dict[str, Any]:
    """The result that the events of a run say (see mllm_pipe.runtimes), the last of type `result`. Pure.

    Success is `is_error` false, whatever `subtype` says, and some text. Else CallFailed, in which no secret is told.
    """
    final, result = events[-1], partial(events, made)
    text = _faults.tidy(str(final.get("result") or "; ".join(map(str, final.get("errors") or []))), secrets)
    finish = FINISH.get(final.get("stop_reason") or "", "stop")
    if not final.get("is_error"):
        if any(part["type"] == "text" and part["text"].strip() for part in result["parts"]):
            return {**result, "finish": finish}
        message = f"it ended without an answer{': ' + text if text else ''}"
        raise CallFailed("empty", message, billed="yes" if result["usage"] else "no", result=_worth(result))
    word = next((e["error"] for e in reversed(events) if e["type"] == "assistant" and e.get("error")), "")
    if word == "max_output_tokens":  # it has asked for more three times by then
        return {**result, "finish": "length"}
    if finish == "refusal":
        refusal = [] if result["parts"] else [{"type": "refusal", "text": text}]
        return {**result, "parts": [*result["parts"], *refusal], "finish": finish}
    begun = any(e["type"] == "stream_event" and e["event"]["type"] == "message_start" for e in events)
    code, status = _code(final.get("api_error_status"), word, text, begun), final.get("api_error_status")
    sent = begun or code in ("timeout", "malformed", "exit")
    billed = "unknown" if sent else "no"
    hint = "; check ANTHROPIC_API_KEY, or log in with: claude" if code == "auth" else ""
    message = f"{text or 'no reason given'}{hint}"
    raise CallFailed(code, message, billed=billed, http_status=status, result=_worth(result))


def partial(events: Sequence[dict[str, Any]], made: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What had come by the last of the events, as a result with finish "error". made: what `session` gave."""
    final = events[-1] if events and events[-1]["type"] == "result" else {}
    answers = [e["message"] for e in events if e["type"] == "assistant" and e["message"].get("model") != SYNTHETIC]
    begun = [e["event"].get("message", {}) for e in events if e["type"] == "stream_event"]
    said: dict[str, Any] = next((message for message in [*answers[::-1], *begun[::-1]] if message), {})
    usage, cost = _usage(final.get("usage")), final.get("total_cost_usd")
    made = made or {"losses": [], "prefix": None, "endpoint": None}
    origin = {"api": "claude", "endpoint": made["endpoint"], "model": said.get("model"),
              "response_id": said.get("id"), "prefix": made["prefix"], "raw_finish": final.get("stop_reason")}
    return {
        "parts": _parts(events),
        "finish": "error",
        "model": said.get("model"),
        "provider": "anthropic",
        "usage": usage,
        "cost_usd": cost if usage else None,
        "cost_source": "runtime" if usage and cost is not None else None,
        "origin": {name: value for name, value in origin.items() if value is not None} if said else None,
        "losses": list(made["losses"]),
    }  # fmt: skip


def with_end(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of a run that ended well, with a `result` in the place of one that was lost.

    The program ends before its last, long lines are out, when nobody reads fast enough. The vendor's own end of the
    answer came before them.
    """
    last: dict[str, Any] = next((e["event"] for e in reversed(events) if e["type"] == "stream_event"), {})
    if (events and events[-1]["type"] == "result") or last.get("type") != "message_delta":
        return events
    stop, usage = last["delta"].get("stop_reason"), last.get("usage")
    return [*events, {"type": "result", "is_error": False, "stop_reason": stop, "usage": usage}] if stop else events


def _worth(result: dict[str, Any]) -> dict[str, Any] | None:
    """The partial result, if it says anything."""
    return result if result["parts"] or result["usage"] else None


def _code(status: int | None, word: str, text: str, begun: bool) -> str:
    """Why a run failed: by the HTTP status, the program's own name of the error, its sentence. `begun`: mid-answer."""
    if status:
        code = _faults.of_reply(status, {}, orjson.dumps({"error": {"message": text}})).code
        return "billing" if code == "bad_request" and "credit balance" in text else code
    if word in WORDS:
        return WORDS[word]
    if "timed out" in text:
        return "timeout"
    if begun:
        return "cut"
    if "onnect" in text:  # Unable to connect to API (ConnectionRefused), Connection error
        return "network"
    return "malformed" if "Stream ended" in text else "exit"


def _parts(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answer: whole blocks where they came, and the pieces of the last where it did not end."""
    parts: list[dict[str, Any]] = []
    pending = ""
    for event in events:
        if event["type"] == "stream_event":
            begins = event["event"]["type"] == "message_start"
            pending = "" if begins else pending + event["event"]["delta"].get("text", "")
        elif event["type"] == "assistant" and event["message"].get("model") != SYNTHETIC:
            pending = ""
            for block in event["message"]["content"]:
                if block.get("type") == "text":
                    _say(parts, block["text"])
                elif block.get("type") in ("thinking", "redacted_thinking"):
                    parts.append({"type": "reasoning", "text": block.get("thinking", ""), "raw": block})
                else:
                    parts.append({"type": "opaque", "raw": block})
    _say(parts, pending)
    return parts


def _say(parts: list[dict[str, Any]], text: str) -> None:
    """Adds text, as one part with the text before it: what the program asked for in several calls is one answer."""
    if text and parts and parts[-1]["type"] == "text":
        parts[-1] = {"type": "text", "text": parts[-1]["text"] + text}
    elif text:
        parts.append({"type": "text", "text": text})


def _usage(usage: dict[str, Any] | None) -> dict[str, int] | None:
    """Tokens in our terms: their input_tokens leaves out what a cache held. None when nothing was used."""
    if not usage or not (usage.get("input_tokens") or usage.get("output_tokens")):
        return None
    read, write = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    return {
        "input_tokens": (usage.get("input_tokens") or 0) + read + write,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "output_tokens": usage.get("output_tokens") or 0,
    }


# -- the call ---------------------------------------------------------------------------------------------------------


def usable(target: dict[str, Any]) -> str:
    """ "" when claude is here and has a key or a login, else why it cannot be called."""
    try:
        if not key_for(target, KEYS) and not _logged_in():
            return "no key (export ANTHROPIC_API_KEY) and no login (run claude once)"
    except CallFailed as failed:
        return str(failed)
    return wrong_program("claude", "Claude Code")


def preview(target: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What `call` would run: argv, the variables of the vendor (keys masked), the session file and stdin as text."""
    made, key = session(target, request), key_for(target, KEYS)
    env = environment(target, key, "DIRECTORY/state" if key else "", not made["stdin"])
    secret = {name: "***" for name in env if name.endswith(SECRET)}
    resume = f"DIRECTORY/{SESSION}" if made["history"] else ""
    return {
        "argv": arguments(target, _bare(key), "DIRECTORY/system", resume),
        "env": {name: value for name, value in (env | secret).items() if name.startswith(("ANTHROPIC_", "CLAUDE_"))},
        "files": {"system": request["system"] or "", "session": made["history"].decode()},
        "stdin": made["stdin"].decode(),
    }


def call(target: dict[str, Any], request: dict[str, Any], io: Any) -> dict[str, Any]:
    """Runs claude in an empty directory of its own; see mllm_pipe.runtimes."""
    made, key = session(target, request), key_for(target, KEYS)
    events: list[dict[str, Any]] = []
    streamed: set[Any] = set()

    def on_line(line: bytes) -> None:
        event = _event(line)
        if event is None:
            return
        events.append(event)
        if event["type"] == "stream_event":
            if event["event"]["type"] == "message_start":
                streamed.add(event["event"].get("message", {}).get("id"))
            elif piece := event["event"].get("delta", {}).get("text"):
                io.text(piece)
        elif event["type"] == "assistant" and event["message"].get("model") != SYNTHETIC:
            for block in event["message"]["content"]:
                if block.get("type") == "text" and event["message"].get("id") not in streamed:
                    io.text(block["text"])

    bare = _bare(key)
    with _child.scratch() as directory:
        cwd, state, system, resume = (os.path.join(directory, n) for n in ("cwd", "state", "system", SESSION))
        os.mkdir(cwd)
        for path, data in ((system, (request["system"] or "").encode()), (resume, made["history"])):
            with open(path, "wb") as file:
                file.write(data)
        env = environment(target, key, state if key else "", not made["stdin"])
        argv = arguments(target, bare, system, resume if made["history"] else "")
        secrets = [value for name, value in env.items() if name.endswith(SECRET) and value]
        try:
            ended = _child.run(
                argv, stdin=made["stdin"], env=env, cwd=cwd, left=io.left, on_bytes=_child.by_line(on_line)
            )
        except CallFailed as failed:
            if events and events[-1]["type"] == "result":  # it had said all, and would not end
                return reply(events, made, secrets)
            failed.result = failed.result or _worth(partial(events, made))
            raise
    if ended.status == 0:
        events = with_end(events)
    if events and events[-1]["type"] == "result":
        return reply(events, made, secrets)
    said = _child.last_line(ended.tail, secrets)
    message = f"exit status {ended.status} without a result{': ' + said if said else ''}"
    lost = _worth(partial(events, made))
    raise CallFailed("exit", message, billed="unknown" if events else "no", result=lost)


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a line, if it is one that says something here; the others are many."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    kind = event.get("type") if isinstance(event, dict) else None
    if kind == "assistant":
        known = isinstance(event.get("message", {}).get("content"), list)
    elif kind == "stream_event":
        inner = event.get("event", {})
        of_text = inner.get("delta", {}).get("type") == "text_delta"
        wanted = of_text or inner.get("type") in ("message_start", "message_delta")
        known = wanted and event.get("parent_tool_use_id") is None
    else:
        known = kind == "result"
    return event if known else None


def _endpoint(target: dict[str, Any]) -> str:
    return str(target.get("base_url") or os.environ.get("ANTHROPIC_BASE_URL") or "https://api.anthropic.com")


def _bare(key: tuple[str, str] | None) -> bool:
    """True with an API key: --bare reads no login, no keychain, no CLAUDE.md and no hooks."""
    return key is not None and key[0] != "CLAUDE_CODE_OAUTH_TOKEN"


def _logged_in() -> bool:
    """True if there is a login of the user's, in a file or (macOS) noted as being in the keychain."""
    home = os.path.expanduser("~")
    state = os.environ.get("CLAUDE_CONFIG_DIR")
    if os.path.exists(os.path.join(state or os.path.join(home, ".claude"), ".credentials.json")):
        return True
    try:
        with open(os.path.join(state or home, ".claude.json"), "rb") as file:
            return b'"oauthAccount"' in file.read()
    except OSError:
        return False
