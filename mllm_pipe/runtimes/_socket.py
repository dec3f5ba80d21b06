"""A TCP connection that does not block: every wait of it has a limit."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from threading import Lock
from typing import Any, Protocol

from mllm_pipe.runtimes._clock import CONNECT_S, Broken, Clock, Late
from mllm_pipe.waiting import READ, WRITE, Changed, Taken, aside, ready

AT_ONCE = 1 << 16  # bytes that are read, or given to a write, which grants its timeout to every send anew
KEEP_S = 1.5  # gunicorn closes what has rested for 2 s; uvicorn, Node and cpp-httplib wait for 5
NAME_S = 10.0  # for so long the name service is not asked again
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)  # macOS has none
_INFO = getattr(socket, "TCP_INFO", None)  # Linux; its first byte is the state
_ESTABLISHED = b"\x01"  # include/net/tcp_states.h
Address = tuple[Any, ...]  # family, type, protocol, name, address: as socket.getaddrinfo gives them


class Connection:
    """A socket with a peer.

    One with a timeout asks the kernel three times to send once: how it is set, whether it is ready, and to do it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, most: int, timeout: float) -> bytes:
        """What there is, b"" at the end. Late if nothing comes for so long, Broken."""
        _await(self.sock, READ, timeout)
        try:
            return self.sock.recv(most)
        except OSError as error:
            raise Broken(error.strerror) from None

    def write(self, data: bytes, timeout: float) -> None:
        """All of it. Late if nothing more goes out for so long, Broken."""
        left = memoryview(data)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                _await(self.sock, WRITE, timeout)
            except OSError as error:
                raise Broken(error.strerror) from None

    def close(self) -> None:
        """Free it."""
        self.sock.close()

    def has_news(self) -> bool:
        """True if there is something to read, be it the end: of one that rests, it cannot be used again."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


def connected(address: Address, timeout: float) -> Connection:
    """A connection to one address of a host. Late after so many seconds, Broken if there is none."""
    family, kind, protocol, _, where = address
    try:
        sock = socket.socket(family, kind | _NONBLOCK, protocol)
    except OSError as error:  # no more descriptors, or no such family here
        raise Broken(error.strerror) from None
    try:
        if not _NONBLOCK:
            sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failure = sock.connect_ex(where)
        if failure == errno.EINPROGRESS:
            failure = 0
            if not _is_there(sock):
                _await(sock, WRITE, timeout)
                failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise Broken(os.strerror(failure))
    except OSError as error:
        sock.close()
        raise Broken(error.strerror) from None
    except BaseException:
        sock.close()
        raise
    return Connection(sock)


def _is_there(sock: socket.socket) -> bool:
    """True where the peer has answered already, as on loopback: then there is nothing to wait for."""
    return _INFO is not None and sock.getsockopt(socket.IPPROTO_TCP, _INFO, 1) == _ESTABLISHED


def _await(sock: socket.socket, event: int, timeout: float) -> None:
    if not ready(sock, event, timeout):
        raise Late("timed out")


def send(connection: Writable, data: bytes, clock: Clock) -> None:
    """All of it, in pieces, each of which may take what is left then. Late, Broken."""
    for start in range(0, len(data), AT_ONCE):
        connection.write(data[start : start + AT_ONCE], clock.sending())


class Writable(Protocol):
    """What is used of a connection there."""

    def write(self, data: bytes, timeout: float, /) -> None: ...


def reached(host: str, port: int, clock: Clock) -> Connection:
    """A connection to the first address of the host that takes one; all of them share one limit. Broken, Late."""
    ends = time.monotonic() + CONNECT_S
    try:
        addresses = _addresses(host, port)
    except (OSError, UnicodeError) as error:  # no host is of that name, or of that form
        raise Broken(str(error)) from None
    failure = Broken(f"{host} has no address")
    for address in addresses:
        limit = max(min(clock.io.left(), ends - time.monotonic()), 0.001)
        try:
            return connected(address, limit)
        except Broken as error:
            failure = error
    _names.pop((host, port), None)
    raise failure


def _addresses(host: str, port: int) -> list[Any]:
    """What the name service says of a host: asked once for all who ask at one time, and anew after a while, not for
    each of a hundred thousand calls."""
    place, now = (host, port), time.monotonic()
    with _one_asks:
        lookup = _names.get(place)
        asks = lookup is None or lookup.over and now - lookup.since >= NAME_S
        if lookup is None or asks:
            lookup = _names[place] = _Lookup(now)
    if asks:
        lookup.ask(host, port)
    return lookup.said_of_it()


class _Lookup:
    """A question to the name service, which may take its time, and what it says."""

    def __init__(self, since: float) -> None:
        self.since, self.over = since, False
        self.ended = Changed()
        self.said: list[Any] = []
        self.error: BaseException | None = None

    def ask(self, host: str, port: int) -> None:
        """Ask it, aside; who waits for the same hears of it. A failure is not kept."""
        with Taken() as taken:
            self.said = aside(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        if taken.error:
            _names.pop((host, port), None)
        with self.ended:
            self.error, self.over = taken.error, True
            self.ended.notify_all()

    def said_of_it(self) -> list[Any]:
        """What it says, waited for; raises what it raised."""
        with self.ended:
            while not self.over:
                self.ended.wait()
        if self.error:
            raise self.error
        return self.said


_names: dict[tuple[str, int], _Lookup] = {}
_one_asks = Lock()
