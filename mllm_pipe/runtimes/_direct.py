"""A call that goes straight to its server: a socket of our own, and HTTP/1.1 by httptools (llhttp, the parser of Node).

httpcore and h11, which do what goes through proxies, take 60 times as long for the same, a quarter to a third of the
processor time of a call, and with httpx 100 ms to load.

A server may close a connection that rests just as a request is on its way. Whether that was read before is not to be
known (RFC 9110, 9.2.2), so it counts as unknown, may be billed, and is not sent again. What can be done is not to get
there: over http each call has a connection of its own, which costs little (llama-server closes one after each streamed
answer and does not say so: of 60 calls in a row 2 were lost). Over https, where it costs a handshake, a worker uses its
last one again, if it has rested for less than KEEP_S and nothing has come on it since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import httptools

from mllm_pipe.runtimes import _endpoint
from mllm_pipe.runtimes._answer import Answer
from mllm_pipe.runtimes._clock import CONNECT_S, Broken, Clock, Late
from mllm_pipe.runtimes._kept import Kept
from mllm_pipe.runtimes._socket import AT_ONCE, KEEP_S, Connection, reached, send

if TYPE_CHECKING:
    from mllm_pipe.runtimes._tls import Secured

_MOST_AROUND = 100 << 10  # bytes of a head, marks between chunks, trailers: with no piece of the body in between
# What h11 takes, too. Dangerous where another answer follows on the same connection: none does after such an answer.
_LENIENT = dict.fromkeys(("lenient_optional_cr_before_lf", "lenient_spaces_after_chunk_size", "lenient_chunked_length",
                          "lenient_data_after_close"), True)  # fmt: skip


def ask(place: _endpoint.Place, headers: Mapping[str, str], body: bytes | None, clock: Clock) -> Parsed:
    """Send a request (a GET without a body) and wait for the head of its answer; who asked closes it. Broken, Late."""
    if place.scheme == "https":
        answer, usual = _secured(place, clock), {}
    else:
        answer, usual = Parsed(reached(place.host, place.port or 80, clock), clock), {"connection": "close"}
    try:
        sent = _endpoint.sent(place, headers, body) | usual
        lines = [f"{'GET' if body is None else 'POST'} {place.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in sent.items()]
        try:
            send(answer.connection, "\r\n".join([*lines, "", ""]).encode() + (body or b""), clock)
        except Late:
            raise
        except Broken:
            pass  # it may have said why before it closed, as to a request that is too large
        answer.take_head()
    except BaseException:
        answer.close()
        raise
    return answer


def _secured(place: _endpoint.Place, clock: Clock) -> Parsed:
    """What will be answered by the connection that rests, or by a new one."""
    mine, at = _resting.mine(), (place.host, place.port)
    rested = mine.pop(at, None)
    if rested and rested.is_fresh():
        secured = rested.secured
    else:
        if rested:
            rested.close()
        secured = _known(place, clock)

    def rest() -> None:
        if old := mine.pop(at, None):
            old.close()
        mine[at] = _Resting(secured, time.monotonic())

    return Parsed(secured, clock, rest)


def _known(place: _endpoint.Place, clock: Clock) -> Secured:
    """A new connection, to who has shown that it is the host."""
    from mllm_pipe.runtimes import _tls

    trusted, connection = _tls.trusted(), reached(place.host, place.port or 443, clock)
    try:
        return _tls.Secured(connection, trusted, place.host, min(CONNECT_S, clock.io.left()))
    except BaseException:
        connection.close()
        raise


class _Resting(NamedTuple):
    """A connection after a whole answer, and since when."""

    secured: Secured
    since: float

    def is_fresh(self) -> bool:
        """True if it may be used again."""
        return time.monotonic() - self.since <= KEEP_S and not self.secured.has_news()

    def close(self) -> None:
        self.secured.close()


_resting: Kept[_Resting] = Kept()


class Parsed(Answer):
    """An answer as httptools has it."""

    def __init__(self, connection: Connection | Secured, clock: Clock, rest: Callable[[], None] | None = None) -> None:
        """rest: lets the connection rest after a whole answer, if the server lets it be used again."""
        super().__init__()
        self.connection, self._clock, self._rest = connection, clock, rest
        self._parser: Any = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(**_LENIENT)
        self._pieces: list[bytes] = []
        self._around = 0
        self._has_head = self._ended = self._goes_on = False
        self._fault: Broken | None = None  # behind what came

    def take_head(self) -> None:
        """Wait until the head is there."""
        while not self._has_head:
            self._read()

    def close(self) -> None:
        if self._parser is None:
            return  # it may be another's already
        if self._rest and self._goes_on and not self._fault:
            self._rest()
        else:
            self.connection.close()
        self._rest = self._parser = None  # which holds this one

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
        data: bytes = clock.wait(clock.limit(), lambda seconds: self.connection.read(AT_ONCE, seconds))
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

    def on_message_begin(self) -> None:
        self._goes_on = False  # be it that of what nobody asked for, behind the answer

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
        two_lengths = "content-length" in self.headers and self._is_chunked()  # so that two may see two ends of it
        self._goes_on = self._ended and not two_lengths and self._parser.should_keep_alive()
