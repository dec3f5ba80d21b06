"""The network: one request, its answer as bytes, its failures as CallFailed. The only importer of httpx.

Each thread has its own pool over one shared TLS context: one shared by all threads is searched at every request, and
a new one for each request costs 19 ms of CPU (encode/httpx #3215). httpx has no deadline for a
whole call, only one between bytes, so our network backend gives every single read what is left of ours: a server
that sends a byte a second ends at the deadline, and nothing is left running.

A server may close a connection that rests just as a request is on its way. Whether that was read before is not to be
known (RFC 9110, 9.2.2), so it counts as unknown, may be billed, and is not sent again. What can be done is not to get
there: over http each call has a connection of its own, which costs nothing (llama-server closes after each streamed
answer and does not say so: of 60 calls in a row 2 were lost), and over https, where it costs a handshake, a
connection is used again only if it has rested for less than KEEP_S and the server has not closed it.
"""

from __future__ import annotations

import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult, urlsplit

from mllm_pipe import __version__
from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _endpoint, _faults
from mllm_pipe.runtimes._unzip import unzipped

if TYPE_CHECKING:
    import ssl

    import httpcore

CONNECT_S = 10.0
FIRST_BYTE_S = 600.0  # a local server may read a long prompt for minutes before it says anything
IDLE_S = 300.0  # a model may think for minutes between two events, vendors ping in between
SLICE_S = 0.5  # the longest single wait: after it, io.left() is asked again and may end the call from elsewhere
LINGER_S = 0.05
KEEP_S = 1.5  # gunicorn closes what has rested for 2 s; uvicorn, Node and cpp-httplib wait for 5
NAME_S = 10.0
MAX_DECODED = 256 << 20  # bytes of a whole answer once unzipped
_MAX_ERROR_BODY = 64 << 10


class Io(Protocol):
    """What is used of mllm_pipe.calling.span.Io."""

    def text(self, piece: str, /) -> None: ...

    def left(self) -> float: ...

    def lost(self, losses: list[dict[str, Any]], /) -> None: ...


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    io: Io,
    *,
    secrets: Iterable[str] = (),
    first_byte_s: float = FIRST_BYTE_S,
    idle_s: float = IDLE_S,
) -> Generator[bytes, None, None]:
    """The bytes of the answer to a POST, unzipped, as they come; nothing is sent before the first is asked for.

    Who does not read it to its end closes it (contextlib.closing): left to the collector it may close in the middle
    of another call of this thread, and wait for a lock that this one holds.

    Ends at the end of the answer. Redirects are not followed (the key would go to a second host). Without a body it
    is a GET. No message names a header's value, and each of `secrets` is masked.
    CallFailed: "network" (billed "no" if no connection came about), "timeout" (connecting 10 s, first byte, idle,
    or what `io.left()` says), "cut" when the answer breaks off, "malformed" for HTML and for more than 256 MiB, and
    what the HTTP status says (see _faults). A timeout of the name service itself cannot be shortened.
    """
    secrets = tuple(secrets)
    parts = _endpoint.checked(url, headers)
    clock = _Clock(io, first_byte_s, idle_s)
    failure: CallFailed | None = None
    size = 0
    try:
        way = _way(parts.scheme, parts.hostname or "")
        way.clock = clock
        with closing(way.ask(parts, headers, body)) as answer:
            clock.phase = "head"
            if not 200 <= answer.status < 300:
                raise _refusal(answer, secrets)
            if "html" in answer.headers.get("content-type", ""):
                raise CallFailed("malformed", "the answer is HTML, not JSON: is the base URL right?", http_status=200)
            pieces = answer.body()
            try:
                for piece in pieces:
                    size += len(piece)
                    if size > MAX_DECODED:
                        raise CallFailed("malformed", f"the answer is larger than {MAX_DECODED >> 20} MiB")
                    clock.hear(piece)
                    yield piece
                    io.left()  # what is unzipped needs no more reading for a while
            except GeneratorExit:
                if parts.scheme == "https":
                    _drain(pieces, clock)
                raise
    except CallFailed as failed:
        if failed.code == "timeout" and clock.phase == "connect":
            failed.billed = "no"
        raise
    except _errors() as error:
        failure = _translated(error, clock, parts.hostname or "", secrets)
    if failure:  # raised here, so that no context hangs on it
        raise failure


# -- the clock, the sockets, the clients ------------------------------------------------------------------------------


_SAID = re.compile(rb"(?:\A|[\r\n])[^:\r\n]")  # a line of an event stream that is no comment


class _Clock:
    """What each wait of one call may take. phase: connect, sent (nothing came yet), head (but a head), body."""

    def __init__(self, io: Io, first_byte_s: float, idle_s: float) -> None:
        self.io, self.first_byte_s, self.idle_s = io, first_byte_s, idle_s
        self.phase, self.sent_at, self.opening = "connect", 0.0, b""

    def limit(self) -> float:
        """Seconds that the next wait may take: of the answer's beginning what is left of one limit, else idle."""
        return self.idle_s if self.phase == "body" else self.sent_at + self.first_byte_s - time.monotonic()

    def hear(self, piece: bytes) -> None:
        """The answer begins with the first line that is no comment: gateways send those while they wait themselves."""
        heard = self.opening + piece if self.phase == "head" else b""
        if heard.strip(b"\r\n"):
            self.phase = "body" if _SAID.search(heard) else "head"
            self.opening = heard[max(heard.rfind(b"\n"), heard.rfind(b"\r")) + 1 :][:1]

    def wait(self, limit: float, step: Callable[[float], Any]) -> Any:
        """step(seconds) in slices until it gives something, or `limit` (raises its timeout), or io.left() raises."""
        import httpcore

        ends = time.monotonic() + limit
        while True:
            left = min(self.io.left(), ends - time.monotonic())
            try:
                return step(max(min(left, SLICE_S), 0.001))
            except httpcore.ReadTimeout:
                if time.monotonic() >= ends:
                    raise


_shared: dict[str, Any] = {}  # the TLS context and the classes below, made once
_once = threading.Lock()
_own = threading.local()


class _Life:
    """Ends with its thread."""


def _close(ways: dict[Any, Any]) -> None:
    for way in ways.values():
        way.close()


def _way(scheme: str, host: str) -> Any:
    """This thread's way to a host (one for each proxy); its `clock` is that of the call."""
    with _once:
        if scheme not in _shared:
            _shared[scheme] = _certificates() if scheme == "https" else None
            _shared.setdefault("way", _way_class())
    if not hasattr(_own, "ways"):
        _own.ways, _own.life = {}, _Life()
        weakref.finalize(_own.life, _close, _own.ways)  # when the thread ends, or the process
    proxy = _endpoint.proxy(scheme, host)
    if (scheme, proxy) not in _own.ways:
        _own.ways[scheme, proxy] = _shared["way"](_shared[scheme], proxy)
    return _own.ways[scheme, proxy]


def _certificates() -> ssl.SSLContext:
    """Whom to trust. Here, as to load httpx takes 50 ms, and to read them 20, and a local server needs neither."""
    import httpx

    return httpx.create_ssl_context()


def _way_class() -> type:
    """httpcore over sockets that obey a clock. Here, so that it is imported only to send.

    Not httpx.Client: its cookies, redirects, hooks and authentication are what we do not want, and half of the
    processor time of a call.
    """
    import httpcore

    from mllm_pipe.runtimes._wire import Address, connected

    class Stream(httpcore.NetworkStream):
        held: bytes

        def __init__(self, inner: httpcore.NetworkStream, way: Way) -> None:
            self.inner, self.way = inner, way
            self.held = b""  # the head of a request, which goes out with what follows it, in one packet

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            self._send(b"")
            clock = self.way.clock
            data: bytes = clock.wait(clock.limit(), lambda seconds: self.inner.read(max_bytes, seconds))
            return data

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            if buffer.endswith(b"\r\n\r\n") and not self.held:
                self.held = buffer
            else:
                self._send(buffer)

        def _send(self, more: bytes) -> None:
            buffer = self.held + more
            self.held = b""
            if not buffer:
                return
            clock = self.way.clock
            clock.phase, clock.sent_at = "sent", time.monotonic()
            # in pieces, each with what is left then: a write grants its timeout to every send anew
            for start in range(0, len(buffer), 1 << 16):
                self.inner.write(buffer[start : start + (1 << 16)], min(clock.idle_s, clock.io.left()))

        def close(self) -> None:
            self.inner.close()

        def start_tls(
            self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
        ) -> httpcore.NetworkStream:
            limit = min(CONNECT_S, self.way.clock.io.left())
            return Stream(self.inner.start_tls(ssl_context, server_hostname, limit), self.way)

        def get_extra_info(self, info: str) -> Any:
            return self.inner.get_extra_info(info)

    class Backend(httpcore.SyncBackend):
        def __init__(self, way: Way) -> None:
            self.way = way

        def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[Any] | None = None,
        ) -> httpcore.NetworkStream:
            connect = super().connect_tcp

            def by_name(address: Address, limit: float) -> httpcore.NetworkStream:
                return connect(str(address[4][0]), port, limit)

            return self.reach(host, port, by_name)

        def reach(
            self, host: str, port: int, connect: Callable[[Address, float], httpcore.NetworkStream]
        ) -> httpcore.NetworkStream:
            """A connection to the first address of the host that takes one; all of them share one limit."""
            io, ends = self.way.clock.io, time.monotonic() + CONNECT_S
            try:
                addresses = _addresses(host, port)
            except OSError as error:
                raise httpcore.ConnectError(str(error)) from None
            failure: Exception = httpcore.ConnectError(f"{host} has no address")
            for address in addresses:
                limit = max(min(io.left(), ends - time.monotonic()), 0.001)
                try:
                    return Stream(connect(address, limit), self.way)
                except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                    failure = error
            raise failure

    class Way:
        clock: _Clock

        def __init__(self, tls: ssl.SSLContext | None, proxy: str | None) -> None:
            self.backend = Backend(self)
            self.pool: httpcore.ConnectionPool | None = None
            self.usual = {"accept": "text/event-stream, application/json", "accept-encoding": "identity"}
            self.usual |= {"user-agent": f"mllm-pipe/{__version__}"} | ({} if tls else {"connection": "close"})
            kept: dict[str, Any] = {"ssl_context": tls, "network_backend": self.backend, "keepalive_expiry": KEEP_S}
            if proxy is None:
                self.pool = httpcore.ConnectionPool(**kept) if tls else None
            elif proxy.startswith("socks"):
                self.pool = httpcore.SOCKSProxy(proxy, **kept)
            else:
                import httpx

                at = httpx.Proxy(proxy)
                self.pool = httpcore.HTTPProxy(str(at.url), proxy_auth=at.raw_auth, **kept)

        def close(self) -> None:
            if self.pool:
                self.pool.close()

        def ask(self, parts: SplitResult, headers: Mapping[str, str], body: bytes | None) -> _Answer:
            """The head of the answer; who asked closes it."""
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            to = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target=target)
            size = {} if body is None else {"content-length": str(len(body))}
            said = {name.lower(): value for name, value in headers.items()}
            sent = {"host": parts.netloc.rpartition("@")[2]} | self.usual | _login(parts) | said | size
            asked = httpcore.Request("GET" if body is None else "POST", to, headers=list(sent.items()), content=body,
                                     extensions={"timeout": {"pool": CONNECT_S}})  # fmt: skip
            if self.pool:
                return _Answer(self.pool.handle_request(asked))
            stream = self.backend.reach(parts.hostname or "", parts.port or 80, connected)
            return _Answer(httpcore.HTTP11Connection(to.origin, stream).handle_request(asked))

    return Way


class _Answer:
    """The head of an answer: its status, its headers (names in lower case); and its body, as it comes."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers: dict[str, str] = {}
        for raw, text in response.headers:
            name, value = raw.decode("latin-1").lower(), text.decode("latin-1")
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self.stream: Any = response.stream

    def body(self) -> Iterator[bytes]:
        """Its bytes, unzipped."""
        return unzipped(self.stream, self.headers.get("content-encoding", ""))

    def close(self) -> None:
        self.stream.close()


def _addresses(host: str, port: int) -> list[Any]:
    """What the name service says of a host; asked anew after a while, not for each of a hundred thousand calls."""
    now = time.monotonic()
    said, at = _names.get((host, port), ([], -NAME_S))
    if now - at >= NAME_S:
        said = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        _names[host, port] = said, now
    return said


_names: dict[tuple[str, int], tuple[list[Any], float]] = {}


def _login(parts: SplitResult) -> dict[str, str]:
    """The header for a name and password in the URL, as of a server behind a proxy that wants them (RFC 7617)."""
    if parts.username is None:
        return {}
    from base64 import b64encode
    from urllib.parse import unquote

    said = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"authorization": f"Basic {b64encode(said.encode()).decode()}"}


# -- what went wrong --------------------------------------------------------------------------------------------------


def _errors() -> tuple[type[Exception], ...]:
    import httpcore

    return (
        httpcore.TimeoutException,
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    )


def _translated(error: Exception, clock: _Clock, host: str, secrets: tuple[str, ...]) -> CallFailed:
    """The one table: an error of the network, and how far the call had come, to a CallFailed."""
    import httpcore

    if isinstance(error, httpcore.ProxyError):
        return CallFailed("network", f"{host}: the proxy refused", billed="no")
    if isinstance(error, httpcore.TimeoutException):
        what, billed = {
            "connect": (f"no connection within {CONNECT_S:g} s", "no"),
            "sent": (f"no answer within {clock.first_byte_s:g} s", "unknown"),
            "head": (f"no answer within {clock.first_byte_s:g} s, but a head", "unknown"),
            "body": (f"the answer stood still for {clock.idle_s:g} s", "unknown"),
        }[clock.phase]
        return CallFailed("timeout", f"{host}: {what}", billed=billed)
    if clock.phase == "connect":
        return CallFailed("network", _faults.tidy(f"{host}: {error}", secrets), billed="no")
    if clock.phase == "sent":
        return CallFailed("network", _faults.tidy(f"{host}: no answer: {error}", secrets))
    return CallFailed("cut", f"{host}: the connection was closed within the answer")


def _drain(pieces: Iterator[bytes], clock: _Clock) -> None:
    """Reads the few bytes behind what the reader took for the end, so that the connection can be used again."""
    ends = time.monotonic() + LINGER_S
    clock.phase, clock.idle_s = "body", LINGER_S
    try:
        while time.monotonic() < ends and next(pieces, None) is not None:
            pass
    except CallFailed:
        pass  # then it is closed
    except _errors():
        pass


def _refusal(answer: _Answer, secrets: tuple[str, ...]) -> CallFailed:
    """The failure that a status other than 200 says; its body is read as far as it says anything."""
    status = answer.status
    if 300 <= status < 400:
        to = urlsplit(answer.headers.get("location", "")).hostname or "another place"
        said = _faults.tidy(f"{status} redirected to {to}; redirects are not followed, correct the base URL", secrets)
        return CallFailed("bad_request", said, billed="no", http_status=status)
    body = b""
    try:
        for piece in answer.body():
            body += piece
            if len(body) > _MAX_ERROR_BODY:
                break
    except CallFailed:
        pass  # the status says it already
    except _errors():
        pass
    return _faults.of_reply(status, answer.headers, body, secrets)
