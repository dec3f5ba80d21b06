"""A loopback server for the dialects of the vendors (standard library only, binds 127.0.0.1, any free port).

The first segment of the path is the scenario, so one server serves many tests at once and needs no state:
http://127.0.0.1:PORT/SCENARIO[~TAG]/..., for example /ok, /401, /tool~case7. Scenarios of every dialect:

    ok       one text answer: "LOOPBACK-OK turns=N chars=N" (the sizes of what was received); a verdict, if the last
             user text asks for one (MARKER), a router's choice of the first agent if it lists agents
    verdict  a judge's finding: one JSON object with one criterion, score 5
    echo     the last user text
    json     {"answer": 42}
    think    some reasoning, then as `ok`
    tool     asks for one tool call; once its result has come, as `ok`
    slow     the text of `ok` in four pieces, each after SLOW_S seconds
    length   as `ok`, but ended by the token limit
    refusal  as `ok`, but ended by the vendor's filter
    hang     takes the request and says nothing until the server is closed
    stall    begins a stream, then says nothing more
    cut      begins a stream and ends it (EOF) without a finish reason
    reset    begins a stream and resets the connection
    empty    a whole answer without any text
    html     a page of HTML under status 200
    NNN      that HTTP status with the vendor's own error body; 429 with `retry-after: 1`
    NNNxK    that status for the first K calls with the same tag, then as `ok`

`cut`, `reset` and `stall` are for streamed calls; a call that asks for no stream is answered as `ok`.

A dialect is a module with `is_call(method, path) -> bool`, true for the paid call, and `answer(handler, path, body)`,
which uses the methods of Handler that have no underscore.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from .unread import await_read

MARKER = "Answer with one JSON object"
MASKED = {"authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie"}
SLOW_S = 0.5

_ids = itertools.count(1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Loopback
    scenario = "ok"

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        raw = self._body()
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = {"_not_json": len(raw)}
        match = re.match(r"/([^/~?]+)(?:~([^/?]*))?(/[^?]*)?(?:\?(.*))?$", self.path)
        scenario, tag, path, query = match.groups() if match else ("ok", None, self.path, None)
        path = path or "/"
        call = self.server.dialect.is_call(self.command, path)
        self.scenario = self.server.note(scenario, tag or "", call, {
            "method": self.command, "scenario": scenario, "tag": tag or "", "path": path, "call": call,
            "query": [(name, "***" if name == "key" else value) for name, value in parse_qsl(query or "")],
            "headers": {k.lower(): "***" if k.lower() in MASKED else v for k, v in self.headers.items()}, "body": body,
        })
        try:
            if call and self.scenario == "html":
                self._send(200, "text/html", b"<!doctype html><title>Welcome to the hotel</title>")
            else:
                self.server.dialect.answer(self, path, body if isinstance(body, dict) else {})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _handle

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _send(self, status: int, media_type: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- for the dialects ---------------------------------------------------------------------------------------------

    def error_status(self) -> int | None:
        """The HTTP status that the scenario asks for, if it is one."""
        return int(self.scenario) if re.fullmatch(r"[0-9]{3}", self.scenario) else None

    def send_json(self, value: Any, status: int = 200) -> None:
        """One JSON answer; 429 says `retry-after: 1`."""
        headers = {"Retry-After": "1"} if status == 429 else None
        self._send(status, "application/json", json.dumps(value).encode(), headers)

    def send_sse(self, events: Iterable[dict[str, Any] | str | float], named: bool = True) -> None:
        """A stream: dicts become events (named by their "type"), texts go out as they are, a number is a pause in s."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in events:
            if isinstance(event, (int, float)):
                self.server.closing.wait(event)
                continue
            if isinstance(event, dict):
                name = f"event: {event['type']}\n" if named else ""
                event = f"{name}data: {json.dumps(event)}\n\n"
            self.wfile.write(event.encode())
            self.wfile.flush()

    def trouble(self, opening: list[dict[str, Any] | str | float], named: bool = True) -> bool:
        """Plays hang, stall, cut and reset, with `opening` as the begun stream; True when the request is dealt with."""
        if self.scenario not in ("hang", "stall", "cut", "reset"):
            return False
        self.close_connection = True
        if self.scenario == "hang":
            self.server.closing.wait()
            return True
        self.send_sse(opening, named)
        if self.scenario == "stall":
            self.server.closing.wait()
        elif self.scenario == "reset":
            await_read(self.connection, self.server.closing)
            self.server.closing.wait(0.3)  # a program that has read it has yet to take it in
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # close() would send FIN as long as rfile holds the socket
        return True


class Loopback(ThreadingHTTPServer):
    """A running server: `url(scenario)`, `requests`, what it received, in order, and `tool`, what it calls."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, dialect: ModuleType) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dialect = dialect
        self.tool: tuple[str, dict[str, Any]] = (dialect.TOOL, dialect.ARGUMENTS)  # what the scenario `tool` asks for
        self.requests: list[dict[str, Any]] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], int] = {}

    def url(self, scenario: str = "ok", tail: str = "") -> str:
        """The base URL of a scenario (`ok`, `429x2~tag`), without a slash at its end; `tail` such as "/v1" follows."""
        return f"http://127.0.0.1:{self.server_address[1]}/{scenario}{tail}"

    def calls(self, scenario: str | None = None) -> list[dict[str, Any]]:
        """The paid calls among `requests`, of one scenario (with ~TAG, if it has one) or of all."""
        return [r for r in list(self.requests) if r["call"] and scenario in (
            None, f"{r['scenario']}~{r['tag']}" if r["tag"] else r["scenario"])]

    def came(self, count: int) -> int:
        """How many paid calls came. A client may have left before we read what it sent: so many are waited for."""
        until = time.monotonic() + 60
        while len(self.calls()) < count and time.monotonic() < until:
            time.sleep(0.01)
        return len(self.calls())

    def note(self, scenario: str, tag: str, call: bool, request: dict[str, Any]) -> str:
        """Keeps a request; the scenario to play now (`429x2` is 429 or ok)."""
        with self._lock:
            self.requests.append(request)
            counted = re.fullmatch(r"([0-9]{3})x([0-9]+)", scenario)
            if not (counted and call):
                return scenario
            self._seen[scenario, tag] = seen = self._seen.get((scenario, tag), 0) + 1
            return counted[1] if seen <= int(counted[2]) else "ok"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves in the middle is part of the play."""


def new_id(prefix: str) -> str:
    """A fresh id: some programs merge stored messages that carry the same one."""
    return f"{prefix}{os.getpid():x}{next(_ids):08x}"


def text_for(scenario: str, turns: int, chars: int, last: str) -> str:
    """The text of the answer to a request of so many turns and characters, `last` being the last user text."""
    if scenario == "ok" and (child := re.search(r"(?m)^The agents:\n- ([^:\n]+):", last)):
        return json.dumps({"target": child[1], "confidence": 0.9, "reason": "it is for that"})
    if scenario == "verdict" or (scenario == "ok" and MARKER in last):
        named = re.search(r'"name":\s*"([^"]+)"', last)
        finding = {"name": named[1] if named else "correctness", "score": 5, "reason": "looks right"}
        return json.dumps({"criteria": [finding]})
    fixed = {"echo": last, "json": '{"answer": 42}', "empty": ""}
    return fixed.get(scenario, f"LOOPBACK-OK turns={turns} chars={chars}")


def pieces(scenario: str, text: str) -> Iterator[str | float]:
    """The text in stream pieces; for `slow`, quarters with pauses before them."""
    if scenario != "slow":
        yield text
        return
    size = max(1, -(-len(text) // 4))
    for start in range(0, len(text), size):
        yield SLOW_S
        yield text[start : start + size]


