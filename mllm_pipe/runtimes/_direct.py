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
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import httptools

from mllm_pipe.runtimes import _endpoint
from mllm_pipe.runtimes._answer import Answer
from mllm_pipe.runtimes._clock import CONNECT_S, Broken, Clock, Late
from mllm_pipe.runtimes._socket import KEEP_S, Connection, connected, reached

if TYPE_CHECKING:
    from mllm_pipe.runtimes._tls import Secured

_AT_ONCE = 1 << 16  # bytes read, or given to a write, which grants its timeout to every send anew
_MOST_AROUND = 100 << 10  # bytes of a head, marks between chunks, trailers: with no piece of the body in between
# What h11 takes, too. Dangerous where another answer follows on the same connection: none does after such an answer.
_LENIENT = dict.fromkeys(("lenient_optional_cr_before_lf", "lenient_spaces_after_chunk_size", "lenient_chunked_length",
                          "lenient_data_after_close"), True)  # fmt: skip


def ask(place: _endpoint.Place, headers: Mapping[str, str], body: bytes | None, clock: Clock) -> Parsed:
    """Send a request (a GET without a body) and wait for the head of its answer; who asked closes it. Broken, Late."""
    answer = _secured(place, clock) if place.scheme == "https" else Parsed(_reached(place, 80, clock), clock)
    try:
        usual = {} if place.scheme == "https" else {"connection": "close"}
        sent = _endpoint.sent(place, headers, body) | usual
        lines = [f"{'GET' if body is None else 'POST'} {place.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in sent.items()]
        _send(answer.connection, clock, "\r\n".join([*lines, "", ""]).encode() + (body or b""))
        answer.take_head()
    except BaseException:
        answer.close()
        raise
    return answer


def _reached(place: _endpoint.Place, port: int, clock: Clock) -> Connection:
    connection: Connection = reached(place.host, place.port or port, clock, connected)
    return connection


def _secured(place: _endpoint.Place, clock: Clock) -> Parsed:
    """What will be answered by the connection that rests, or by a new one."""
    from mllm_pipe.runtimes import _tls

    own, at = _own.get(None), (place.host, place.port)
    if own is None:
        _own.set(own := _Own())
    secured = own.awake(at)
    if not secured:
        trusted, connection = _tls.trusted(), _reached(place, 443, clock)
        try:
            secured = _tls.Secured(connection, trusted, place.host, min(CONNECT_S, clock.io.left()))
        except BaseException:
            connection.close()
            raise
    return Parsed(secured, clock, lambda connection: own.rest(at, connection))


class _Own:
    """A worker's connections that rest, which end with it."""

    def __init__(self) -> None:
        self.resting: dict[Any, tuple[Secured, float]] = {}  # since when
        weakref.finalize(self, _close, self.resting)  # or with the process

    def awake(self, at: Any) -> Secured | None:
        """The one to a place, if it may be used again."""
        secured, since = self.resting.pop(at, (None, 0.0))
        if secured and (time.monotonic() - since > KEEP_S or secured.has_news()):
            secured.close()
            return None
        return secured

    def rest(self, at: Any, secured: Any) -> None:
        """It may be used again, for a while."""
        old, _ = self.resting.pop(at, (None, 0.0))
        if old:
            old.close()
        self.resting[at] = secured, time.monotonic()


def _close(resting: dict[Any, tuple[Secured, float]]) -> None:
    for secured, _ in resting.values():
        secured.close()


_own: ContextVar[_Own] = ContextVar("own")  # each thread and each greenlet has a context of its own


def _send(connection: Connection | Secured, clock: Clock, data: bytes) -> None:
    try:
        for start in range(0, len(data), _AT_ONCE):
            connection.write(data[start : start + _AT_ONCE], clock.sending())
    except Late:
        raise
    except Broken:
        pass  # it may have said why before it closed, as to a request that is too large


class Parsed(Answer):
    """An answer as httptools has it."""

    def __init__(
        self, connection: Connection | Secured, clock: Clock, rest: Callable[[Any], None] | None = None
    ) -> None:
        """rest: who takes the connection after a whole answer, if the server lets it be used again."""
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
            self._rest(self.connection)
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
        data: bytes = clock.wait(clock.limit(), lambda seconds: self.connection.read(_AT_ONCE, seconds))
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
