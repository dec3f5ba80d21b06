"""A server that does what servers must not: each fault by its name, in each of the four dialects, over raw sockets.

    with Chaos() as server:
        ... server.url("reset-mid-body", "anthropic") ...
        server.asked["reset-mid-body/anthropic"]      how many whole requests came for it
        server.elsewhere                              every byte that a second host was sent

The first two segments of a path are the fault and the dialect. FAULTS has all of them, with what each does.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from .unread import await_read

KEY = "sk-canary-4f9d1c7e2b"

# -- the dialects: how an answer begins, goes on, and ends ------------------------------------------------------------


def sse(value: dict[str, Any], named: bool = False) -> bytes:
    name = f"event: {value['type']}\n" if named else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def anthropic(text: str = "half an ans", stop: str = "end_turn", usage: Any = None) -> list[bytes]:
    counted = {"input_tokens": 3, "output_tokens": 1} if usage is None else usage
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": counted}
    values = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": counted},
        {"type": "message_stop"},
    ]
    return [sse(value, True) for value in values]


def openai(text: str = "half an ans", stop: str = "", usage: Any = None) -> list[bytes]:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "i", "role": "assistant", "status": "completed", "content": [part]}
    counted = {"input_tokens": 3, "output_tokens": 1} if usage is None else usage
    whole = {"id": "r", "model": "m", "status": "incomplete" if stop else "completed", "output": [item], "usage": counted,
             "incomplete_details": {"reason": stop} if stop else None}  # fmt: skip
    values = [
        {"type": "response.created", "response": {"id": "r", "model": "m", "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item | {"content": []}},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "i", "delta": text},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": f"response.{whole['status']}", "response": whole},
    ]
    return [sse(value, True) for value in values]


def chat(text: str = "half an ans", stop: str = "stop", usage: Any = None) -> list[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None) -> bytes:
        return sse({"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    counted = {"prompt_tokens": 3, "completion_tokens": 1} if usage is None else usage
    told = sse({"model": "m", "choices": [], "usage": counted})
    return [chunk({"role": "assistant", "content": ""}, None), chunk({"content": text}, None), chunk({}, stop), told,
            b"data: [DONE]\n\n"]  # fmt: skip


def google(text: str = "half an ans", stop: str = "STOP", usage: Any = None) -> list[bytes]:
    counted = {"promptTokenCount": 3, "candidatesTokenCount": 1} if usage is None else usage
    begun = {"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": text}]}}], "modelVersion": "m"}
    ended = {"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": stop}],
             "usageMetadata": counted, "modelVersion": "m"}  # fmt: skip
    return [sse(begun), sse(ended)]


DIALECTS: dict[str, Callable[..., list[bytes]]] = {
    "anthropic": anthropic, "openai": openai, "openai-chat": chat, "google": google}  # fmt: skip
BEGUN = {"anthropic": 3, "openai": 3, "openai-chat": 2, "google": 1}  # events before its end is said
FILTERED = {"anthropic": "refusal", "openai": "content_filter", "openai-chat": "content_filter", "google": "SAFETY"}
TOO_LONG = {"anthropic": "prompt is too long: 300000 tokens > 200000 maximum",
            "openai": "Your input exceeds the context window of this model.",
            "openai-chat": "This model's maximum context length is 8192 tokens.",
            "google": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}  # fmt: skip

ANTHROPIC = {401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
             429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error"}  # fmt: skip


def refusal(dialect: str, status: int, message: str, kind: str = "") -> bytes:
    """The vendor's own body of an error."""
    if dialect == "anthropic":
        kind = kind or ANTHROPIC.get(status, "api_error")
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    if dialect == "google":
        return json.dumps({"error": {"code": status, "message": message, "status": "UNKNOWN"}}).encode()
    return json.dumps({"error": {"message": message, "type": kind or "loopback", "code": None}}).encode()


# As the vendors, and Azure in front of one, say that a prompt is against a policy.
POLICY = {
    "anthropic": refusal("anthropic", 400, "Output blocked by content filtering policy", "invalid_request_error"),
    "openai": json.dumps({"error": {"message": "Invalid prompt: your prompt was flagged as potentially violating our "
                                    "usage policy.", "type": "invalid_request_error", "code": "invalid_prompt"}}).encode(),
    "openai-chat": json.dumps({"error": {"message": "The response was filtered", "type": None, "param": "prompt",
                                         "code": "content_filter", "status": 400}}).encode(),
    "google": refusal("google", 400, "The request was blocked by the content policy"),
}  # fmt: skip

# -- the faults -------------------------------------------------------------------------------------------------------


class Played:
    """One request and its connection, in the hands of a fault."""

    def __init__(self, server: Chaos, connection: socket.socket, dialect: str, number: int) -> None:
        self.server, self.connection, self.dialect, self.number = server, connection, dialect, number
        self.events = DIALECTS[dialect]()
        self.begun = b"".join(self.events[: BEGUN[dialect]])
        self.whole = b"".join(self.events)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def head(self, status: str = "200 OK", kind: str = "text/event-stream", *more: str, length: int | None = None) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", *more]
        lines += [] if length is None else [f"Content-Length: {length}"]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def answer(self, status: str, body: bytes, *more: str, kind: str = "application/json") -> None:
        self.head(status, kind, *more, length=len(body))
        self.send(body)

    def stream(self, *events: bytes) -> None:
        """A whole answer of these events, ended by the end of the connection."""
        self.head()
        self.send(b"".join(events))

    def silence(self) -> None:
        self.server.closing.wait()

    def drip(self, data: bytes, every_s: float = 0.1) -> None:
        for place in range(len(data)):
            self.send(data[place : place + 1])
            if self.server.closing.wait(every_s):
                return

    def reset(self) -> None:
        """What was sent is read first: a reset throws away the rest."""
        await_read(self.connection, self.server.closing)
        self.server.closing.wait(0.1)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)


def _busy(retry_after: str) -> Callable[[Played], None]:
    """429 with this wait once, then an answer."""

    def play(it: Played) -> None:
        if it.number == 1:
            return it.answer("429 Too Many Requests", refusal(it.dialect, 429, "slow"), f"Retry-After: {retry_after}")
        return it.answer("200 OK", it.whole, kind="text/event-stream")

    return play


def _status(status: int, kind: str = "", message: str = "loopback says no") -> Callable[[Played], None]:
    return lambda it: it.answer(f"{status} No", refusal(it.dialect, status, message, kind))


def _redirect(status: int) -> Callable[[Played], None]:
    return lambda it: it.answer(f"{status} Moved", b"", f"Location: {it.server.second}/v1/messages")


def _bomb(of: bytes) -> Callable[[Played], None]:
    """A gigabyte in a megabyte: one packed block, which stands for itself wherever it is repeated."""

    def play(it: Played) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        opening = packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(of * ((16 << 20) // len(of))) + packer.flush(zlib.Z_FULL_FLUSH)
        it.head("200 OK", "text/event-stream", "Content-Encoding: gzip")
        it.send(opening + block * 64)

    return play


def _flapping(it: Played) -> None:
    if it.number == 1:
        return it.answer("503 No", refusal(it.dialect, 503, "overloaded"))
    return it.answer("200 OK", it.whole, kind="text/event-stream")


def _ended(text: str, **how: Any) -> Callable[[Played], None]:
    return lambda it: it.stream(*DIALECTS[it.dialect](text, **how))


def _chunked(it: Played, data: bytes) -> None:
    it.head("200 OK", "text/event-stream", "Transfer-Encoding: chunked")
    it.send(data)


def _pinging(it: Played) -> None:
    it.head()
    while not it.server.closing.wait(0.1):
        it.send(b": still there\n\n")


def _in_pieces(it: Played) -> None:
    """Cut within characters of several bytes, and with what is no line end to SSE, U+2028 and U+0085, in the text."""
    it.head("200 OK", "text/event-stream", "Transfer-Encoding: chunked")
    data = b"".join(DIALECTS[it.dialect]("gr\u00fc\u00df\u2028e\u0085 \U0001f600"))
    for place in range(0, len(data), 7):
        it.send(it.chunk(data[place : place + 7]))
    it.send(b"0\r\n\r\n")


SECRET = "the prompt that is nobody else has"
PAST, FUTURE = formatdate(time.time() - 86_400, usegmt=True), formatdate(time.time() + 86_400 * 365, usegmt=True)

# Of the way there and the bytes: any dialect will do.
WIRE: dict[str, Callable[[Played], None]] = {
    "reset-at-once": lambda it: it.reset(),  # after the request was read, before anything is said
    "close-at-once": lambda it: None,
    "half-a-status-line": lambda it: it.send(b"HTTP/1.1 20"),
    "no-http": lambda it: it.send(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "silence": lambda it: it.silence(),
    "head-byte-by-byte": lambda it: it.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 999),
    "head-then-silence": lambda it: (it.head(), it.silence())[1],
    "head-then-pings": _pinging,
    "head-then-close": lambda it: it.head(),
    "head-then-reset": lambda it: (it.head(), it.reset())[1],
    "empty-body": lambda it: it.answer("200 OK", b""),
    "204": lambda it: it.send(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "huge-header": lambda it: it.head("200 OK", "text/event-stream", "X-Huge: " + "x" * (1 << 20)),
    "20000-headers": lambda it: it.head("200 OK", "text/event-stream", *[f"X-{n}: {n}" for n in range(20_000)]),
    "short-length": lambda it: (it.head(length=len(it.whole) + 99), it.send(it.begun))[1],
    "bad-chunk": lambda it: _chunked(it, it.chunk(it.begun) + b"zz\r\nzz\r\n"),
    "chunks-cut": lambda it: _chunked(it, it.chunk(it.begun)),
    "chunk-half-sent": lambda it: _chunked(it, b"fff\r\n" + it.begun),
    "gzip-bomb": _bomb(b"x"),
    "gzip-bomb-of-lines": _bomb(b"\n"),
    "gzip-bomb-of-events": _bomb(b'data: {"choices":[]}\n\n'),
    "bad-gzip": lambda it: it.answer("200 OK", b"nothing that was ever zipped", "Content-Encoding: gzip"),
    "half-gzip": lambda it: it.answer("200 OK", gzip.compress(it.whole, 0)[:-400], "Content-Encoding: gzip"),
    "redirect-302": _redirect(302),
    "redirect-307": _redirect(307),
    "redirect-308": _redirect(308),
    "html-200": lambda it: it.answer("200 OK", b"<html><title>Hotel</title>", kind="text/html"),
    "html-200-as-json": lambda it: it.answer("200 OK", b"<html><title>Hotel</title>"),
    "html-502": lambda it: it.answer("502 Bad", b"<html><title>Bad Gateway</title>", kind="text/html"),
    "retry-after-1": _busy("1"),
    "retry-after-999999": _busy("999999"),
    "retry-after-minus": _busy("-1"),
    "retry-after-nan": _busy("NaN"),
    "retry-after-inf": _busy("Infinity"),
    "retry-after-words": _busy("soon"),
    "retry-after-past": _busy(PAST),
    "retry-after-next-year": _busy(FUTURE),
    "flapping": _flapping,
    "429": _status(429), "500": _status(500), "503": _status(503), "529": _status(529), "504": _status(504),
    "400": _status(400), "404-of-a-gateway": _status(404, "api_error"), "402": _status(402), "403": _status(403), "404": _status(404),
    "401-echo": lambda it: it.answer("401 No", refusal(it.dialect, 401, f"the key {KEY} is wrong"), f"X-Key: {KEY}"),
    "early-hints": lambda it: (it.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"), it.stream(it.whole))[1],
}  # fmt: skip

# Of the answer: each in all dialects.
ANSWER: dict[str, Callable[[Played], None]] = {
    "cut": lambda it: it.stream(it.begun),
    "half-an-event": lambda it: it.stream(it.begun, it.events[BEGUN[it.dialect]][:-20]),
    "reset-mid-body": lambda it: (it.stream(it.begun), it.reset())[1],
    "stall-mid-body": lambda it: (it.stream(it.begun), it.silence())[1],
    "byte-by-byte": lambda it: (it.head(), it.drip(it.whole))[1],
    "no-finish": lambda it: it.stream(it.begun, b"data: [DONE]\n\n"),
    "broken-event": lambda it: it.stream(it.begun, b'data: {"choices": [}\n\n', *it.events[BEGUN[it.dialect] :]),
    "error-under-200": lambda it: it.answer("200 OK", refusal(it.dialect, 500, "no model is loaded")),
    "error-mid-stream": lambda it: it.stream(
        it.begun, b"event: error\ndata: " + refusal(it.dialect, 500, "lost", "overloaded_error") + b"\n\n"),
    "other-shape": lambda it: it.stream(sse({"type": "message_start", "message": 5, "choices": "no", "candidates": 7})),
    "says-nothing": _ended(""),
    "content-policy": lambda it: it.stream(*DIALECTS[it.dialect]("I won't", stop=FILTERED[it.dialect])),
    "too-long": lambda it: it.answer("400 No", refusal(it.dialect, 400, TOO_LONG[it.dialect], "invalid_request_error")),
    "policy-400": lambda it: it.answer("400 No", POLICY[it.dialect]),
    "usage-is-odd": _ended("whole", usage={"input_tokens": -5, "output_tokens": "many", "prompt_tokens": None,
                                           "completion_tokens": 1e300, "promptTokenCount": "x"}),
    "in-pieces": _in_pieces,
}  # fmt: skip
FAULTS = WIRE | ANSWER


class Chaos:
    """The server: a thread for each connection, one request on each."""

    def __init__(self) -> None:
        self.closing, self.lock = threading.Event(), threading.Lock()
        self.asked: Counter[str] = Counter()
        self.elsewhere = b""

    def url(self, fault: str, dialect: str, tail: str = "") -> str:
        """The base URL of a fault; tail: what stands for the vendor's own path in it, such as /v1."""
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}/{fault}/{dialect}{tail}"

    def __enter__(self) -> Chaos:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.other = socket.create_server(("127.0.0.2", 0))
        self.second = f"http://127.0.0.2:{self.other.getsockname()[1]}"
        for taking, dealing in ((self.listening, self.deal), (self.other, self.overhear)):
            threading.Thread(target=self.accept, args=(taking, dealing), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()
        for listening in (self.listening, self.other):
            listening.shutdown(socket.SHUT_RDWR)  # who waits in accept() would not see that it is closed
            listening.close()

    def came(self, fault: str, dialect: str, count: int = 1) -> int:
        """How many requests came for it. A client may have left before we read what it sent: so many are waited for."""
        until = time.monotonic() + 60
        while (asked := self.asked[f"{fault}/{dialect}"]) < count and time.monotonic() < until:
            time.sleep(0.01)
        return asked

    def accept(self, listening: socket.socket, deal: Callable[[socket.socket], None]) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=deal, args=(connection,), daemon=True).start()

    def overhear(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while piece := connection.recv(65536):
                with self.lock:
                    self.elsewhere += piece

    def deal(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            request = b""
            while b"\r\n\r\n" not in request and (piece := connection.recv(65536)):
                request += piece
            head, _, body = request.partition(b"\r\n\r\n")
            if not head:
                return
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            while len(body) < size and (piece := connection.recv(65536)):
                body += piece
            _, fault, dialect, *_ = head.split()[1].decode().split("/")
            with self.lock:
                self.asked[f"{fault}/{dialect}"] += 1
                number = self.asked[f"{fault}/{dialect}"]
            FAULTS[fault](Played(self, connection, dialect, number))
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(1)
                connection.recv(1)  # what was sent is to be read before the connection goes
