"""The connections: httpcore over sockets that obey the clock of a call. Loaded with the first call, for it is slow.

Not httpx.Client: its cookies, redirects, hooks and authentication are what we do not want, and half of the processor
time of a call. It has no deadline for a whole call, only one between bytes, so every single read is given what is left
of ours: a server that sends a byte a second ends at the deadline, and nothing is left running.

A server may close a connection that rests just as a request is on its way. Whether that was read before is not to be
known (RFC 9110, 9.2.2), so it counts as unknown, may be billed, and is not sent again. What can be done is not to get
there: over http each call has a connection of its own, which costs little (llama-server closes after each streamed
answer and does not say so: of 60 calls in a row 2 were lost), and over https, where it costs a handshake, a
connection is used again only if it has rested for less than KEEP_S and the server has not closed it.

Each thread has its own pool over one shared TLS context: one shared by all threads is searched at every request, and
a new context for each request costs 19 ms of CPU (encode/httpx #3215).
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import SplitResult

import httpcore

from mllm_pipe import __version__
from mllm_pipe.runtimes import _endpoint
from mllm_pipe.runtimes._unzip import unzipped

if TYPE_CHECKING:
    import ssl

CONNECT_S = 10.0
SLICE_S = 0.5  # the longest single wait: after it, io.left() is asked again and may end the call from elsewhere
KEEP_S = 1.5  # gunicorn closes what has rested for 2 s; uvicorn, Node and cpp-httplib wait for 5
NAME_S = 10.0  # for so long the name service is not asked again
ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


class Left(Protocol):
    """What is used of mllm_pipe.calling.span.Io."""

    def left(self) -> float: ...


_SAID = re.compile(rb"(?:\A|[\r\n])[^:\r\n]")  # a line of an event stream that is no comment


class Clock:
    """What each wait of one call may take. phase: connect, sent (nothing came yet), head (but a head), body."""

    def __init__(self, io: Left, first_byte_s: float, idle_s: float) -> None:
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
        ends = time.monotonic() + limit
        while True:
            left = min(self.io.left(), ends - time.monotonic())
            try:
                return step(max(min(left, SLICE_S), 0.001))
            except httpcore.ReadTimeout:
                if time.monotonic() >= ends:
                    raise


# -- streams ----------------------------------------------------------------------------------------------------------


class Timed(httpcore.NetworkStream):
    """A stream whose every wait obeys the clock of the call that its way is used for."""

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
        return Timed(self.inner.start_tls(ssl_context, server_hostname, limit), self.way)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


class Plain(httpcore.NetworkStream):
    """A stream over a socket that does not block.

    One with a timeout asks the kernel three times to send once: how it is set, whether it is ready, and to do it. With
    a hundred threads each of these is a wait for the interpreter's lock: they took a fifth of the time of a call.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What there is, b"" at the end. ReadTimeout if nothing comes for so long."""
        _await(self.sock, select.POLLIN, timeout, httpcore.ReadTimeout)
        try:
            return self.sock.recv(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(error.strerror) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it. WriteTimeout if nothing more goes out for so long."""
        left = memoryview(buffer)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                _await(self.sock, select.POLLOUT, timeout, httpcore.WriteTimeout)
            except OSError as error:
                raise httpcore.WriteError(error.strerror) from None

    def close(self) -> None:
        self.sock.close()


_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)  # macOS has none
Address = tuple[Any, ...]  # family, type, protocol, name, address: as socket.getaddrinfo gives them


def connected(address: Address, timeout: float) -> Plain:
    """A connection to one address of a host. ConnectTimeout after so many seconds, ConnectError if there is none."""
    family, kind, protocol, _, where = address
    try:
        sock = socket.socket(family, kind | _NONBLOCK, protocol)
    except OSError as error:  # no more descriptors, or no such family here
        raise httpcore.ConnectError(error.strerror) from None
    try:
        if not _NONBLOCK:
            sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failure = sock.connect_ex(where)
        if failure == errno.EINPROGRESS:
            _await(sock, select.POLLOUT, timeout, httpcore.ConnectTimeout)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise httpcore.ConnectError(os.strerror(failure))
    except OSError as error:
        sock.close()
        raise httpcore.ConnectError(error.strerror) from None
    except BaseException:
        sock.close()
        raise
    return Plain(sock)


def _await(sock: socket.socket, event: int, timeout: float | None, late: type[Exception]) -> None:
    poll = select.poll()
    poll.register(sock, event)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise late("timed out")


# -- ways -------------------------------------------------------------------------------------------------------------


class Backend(httpcore.SyncBackend):
    """Makes the connections of a way."""

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
        except (OSError, UnicodeError) as error:  # no host is of that name, or of that form
            raise httpcore.ConnectError(str(error)) from None
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            limit = max(min(io.left(), ends - time.monotonic()), 0.001)
            try:
                return Timed(connect(address, limit), self.way)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        _names.pop((host, port), None)
        raise failure


class Way:
    """A thread's way to a host: a pool over https and through a proxy, a connection for each call over http."""

    clock: Clock

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

    def ask(self, parts: SplitResult, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """The head of the answer; who asked closes it."""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        to = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target=target)
        size = {} if body is None else {"content-length": str(len(body))}
        said = {name.lower(): value for name, value in headers.items()}
        sent = {"host": parts.netloc.rpartition("@")[2]} | self.usual | _login(parts) | said | size
        asked = httpcore.Request("GET" if body is None else "POST", to, headers=list(sent.items()), content=body,
                                 extensions={"timeout": {"pool": CONNECT_S}})  # fmt: skip
        if self.pool:
            return Answer(self.pool.handle_request(asked))
        stream = self.backend.reach(parts.hostname or "", parts.port or 80, connected)
        return Answer(httpcore.HTTP11Connection(to.origin, stream).handle_request(asked))


class Answer:
    """The head of an answer: its status, its headers (names in lower case); and its body, as it comes."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers: dict[str, str] = {}
        for raw, text in response.headers:
            name, value = raw.decode("latin-1").lower(), text.decode("latin-1")
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self.stream: Any = response.stream

    def body(self) -> Generator[bytes, None, None]:
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


_shared: dict[str, Any] = {}  # the TLS context of a scheme, made once
_once = threading.Lock()
_own = threading.local()


class _Life:
    """Ends with its thread."""


def _close(ways: dict[Any, Any]) -> None:
    for way in ways.values():
        way.close()


def way(scheme: str, host: str) -> Any:
    """This thread's way to a host (one for each proxy); its `clock` is that of the call."""
    with _once:
        if scheme not in _shared:
            _shared[scheme] = _certificates() if scheme == "https" else None
    if not hasattr(_own, "ways"):
        _own.ways, _own.life = {}, _Life()
        weakref.finalize(_own.life, _close, _own.ways)  # when the thread ends, or the process
    proxy = _endpoint.proxy(scheme, host)
    if (scheme, proxy) not in _own.ways:
        _own.ways[scheme, proxy] = Way(_shared[scheme], proxy)
    return _own.ways[scheme, proxy]


def _certificates() -> ssl.SSLContext:
    """Whom to trust. Here, as to load httpx takes 50 ms, and to read them 20, and a local server needs neither."""
    import httpx

    return httpx.create_ssl_context()
