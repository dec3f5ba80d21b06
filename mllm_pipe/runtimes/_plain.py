"""A call over plain http: a connection of its own, and HTTP/1.1 by httptools (llhttp, the parser of Node).

Here a pool would win little and may lose a call: llama-server closes a connection after each streamed answer and does
not say so (of 60 calls in a row 2 were lost). httpcore and h11, which do https, take 60 times as long for it, which
were a quarter to a third of the processor time of a call, and 50 ms to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httptools

from mllm_pipe.runtimes import _endpoint
from mllm_pipe.runtimes._answer import Answer
from mllm_pipe.runtimes._clock import Broken, Clock, Late
from mllm_pipe.runtimes._socket import Connection, connected, reached

_AT_ONCE = 1 << 16  # bytes read, or given to a write, which grants its timeout to every send anew
_MOST_AROUND = 100 << 10  # bytes of a head, marks between chunks, trailers: with no piece of the body in between
# What h11 takes, too. Dangerous where another answer follows on the same connection, of which there is none.
_LENIENT = dict.fromkeys(("lenient_optional_cr_before_lf", "lenient_spaces_after_chunk_size", "lenient_chunked_length",
                          "lenient_data_after_close"), True)  # fmt: skip


def ask(place: _endpoint.Place, headers: Mapping[str, str], body: bytes | None, clock: Clock) -> Parsed:
    """Send a request (a GET without a body) and wait for the head of its answer; who asked closes it. Broken, Late."""
    connection: Connection = reached(place.host, place.port or 80, clock, connected)
    answer = Parsed(connection, clock)
    try:
        sent = _endpoint.sent(place, headers, body) | {"connection": "close"}
        lines = [f"{'GET' if body is None else 'POST'} {place.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in sent.items()]
        _send(connection, clock, "\r\n".join([*lines, "", ""]).encode() + (body or b""))
        answer.take_head()
    except BaseException:
        answer.close()
        raise
    return answer


def _send(connection: Connection, clock: Clock, data: bytes) -> None:
    try:
        for start in range(0, len(data), _AT_ONCE):
            connection.write(data[start : start + _AT_ONCE], clock.sending())
    except Late:
        raise
    except Broken:
        pass  # it may have said why before it closed, as to a request that is too large


class Parsed(Answer):
    """An answer as httptools has it."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        super().__init__()
        self._connection, self._clock = connection, clock
        self._parser: Any = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(**_LENIENT)
        self._pieces: list[bytes] = []
        self._around = 0
        self._has_head = self._ended = False
        self._fault: Broken | None = None  # behind what came

    def take_head(self) -> None:
        """Wait until the head is there."""
        while not self._has_head:
            self._read()

    def close(self) -> None:
        self._connection.close()
        self._parser = None  # which holds this one

    def pieces(self) -> Iterator[bytes]:
        while True:
            pieces, self._pieces = self._pieces, []
            yield from pieces
            if self._ended:
                return
            self._read()

    def _read(self) -> None:
        if self._fault:
            raise self._fault
        clock = self._clock
        data: bytes = clock.wait(clock.limit(), lambda seconds: self._connection.read(_AT_ONCE, seconds))
        if not data:
            if not self._has_head or "content-length" in self.headers or self._is_chunked():
                raise Broken("it closed the connection")
            self._ended = True
            return
        self._around += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ended = True
        except httptools.HttpParserError as error:
            self._fault = Broken(f"it is no HTTP: {error}")
        if self._around > _MOST_AROUND:
            self._fault = Broken("its headers are too long")

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    # what the parser calls

    def on_header(self, raw: bytes, text: bytes) -> None:
        if not self._has_head:  # else it is a trailer
            self.note(raw, text)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200 and self.status != 101:
            self.headers.clear()  # of an answer that is yet to come
        else:
            self._has_head = True

    def on_body(self, piece: bytes) -> None:
        self._around = 0
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self._ended = self._has_head
