"""A Chat Completions server in the hands of a test: for what several calls do to one another.

    with Play(lambda number, text: (200, {}, "yes")) as server:
        ... server.url, server.count, server.most ...
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

import orjson

STREAM = ('data: {"model":"m","choices":[{"index":0,"delta":{"content":%s},"finish_reason":"stop"}]}\n\n'
          'data: {"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
          "data: [DONE]\n\n")  # fmt: skip


class Play(ThreadingHTTPServer):
    """`play(number, text)` is given the number of the call, from 1, and the newest question; it gives the status, the
    headers and the text of the answer. count: calls so far; most: how many were here at once; texts: what was asked."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, play: Callable[[int, str], tuple[int, dict[str, str], str]], sent: Callable[[int, socket], None] | None = None) -> None:
        """sent: is given the number of a call and its connection once its answer has been sent."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.play, self.sent, self.lock = play, sent, threading.Lock()
        self.count = self.inside = self.most = 0
        self.texts: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is part of some plays."""

    def __enter__(self) -> Play:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Play

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        server, text = self.server, body["messages"][-1]["content"]
        with server.lock:
            server.count, server.inside = server.count + 1, server.inside + 1
            number, server.most = server.count, max(server.most, server.inside)
            server.texts.append(text)
        status, headers, said = server.play(number, text)
        with server.lock:
            server.inside -= 1
        data = (STREAM % orjson.dumps(said).decode() if status == 200 else '{"error":{"message":"no"}}').encode()
        kind = "text/event-stream" if status == 200 else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        if server.sent:
            server.sent(number, self.connection)
