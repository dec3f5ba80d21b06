"""A collector of OTLP over HTTP on loopback: keeps what it is sent, and answers as it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector(ThreadingHTTPServer):
    """answers: for each request in turn (status, headers, body); the last one for all that follow."""

    def __init__(self, answers: list[tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.requests = answers, list[dict[str, Any]]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        count = len(self.server.requests)
        self.server.requests.append({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body})
        status, headers, answer = self.server.answers[min(count, len(self.server.answers) - 1)]
        self.send_response(status)
        for name, value in ({"content-length": str(len(answer))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def collector(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Collector]:
    """A running one; without answers it takes everything."""
    server = Collector(list(answers) or [(200, {}, b"")])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
