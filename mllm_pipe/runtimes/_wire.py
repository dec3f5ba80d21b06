"""A connection over plain http that never blocks in a system call: each of those lets the other threads go first.

A socket with a timeout asks the kernel three times to send once: how it is set, whether it is ready, and to do it. With
a hundred threads each of these is a wait for the interpreter's lock, and they were half of what a call took.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Any

import httpcore

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)  # macOS has none
Address = tuple[Any, ...]  # family, type, protocol, name, address: as socket.getaddrinfo gives them


class Wire(httpcore.NetworkStream):
    """A stream as httpcore wants it, over a socket that is connected and does not block."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What there is, b"" at the end. ReadTimeout if nothing comes for so long."""
        _await(self.sock, select.POLLIN, timeout, httpcore.ReadTimeout)
        try:
            return self.sock.recv(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it. WriteTimeout if nothing more goes out for so long."""
        left = memoryview(buffer)
        while left:
            try:
                left = left[self.sock.send(left) :]
            except BlockingIOError:
                _await(self.sock, select.POLLOUT, timeout, httpcore.WriteTimeout)
            except OSError as error:
                raise httpcore.WriteError(str(error)) from None

    def close(self) -> None:
        self.sock.close()


def connected(address: Address, timeout: float) -> Wire:
    """A connection to one address of a host. ConnectTimeout after so many seconds, ConnectError if there is none."""
    family, kind, protocol, _, where = address
    sock = socket.socket(family, kind | _NONBLOCK, protocol)
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
    except BaseException:
        sock.close()
        raise
    return Wire(sock)


def _await(sock: socket.socket, event: int, timeout: float | None, late: type[Exception]) -> None:
    poll = select.poll()
    poll.register(sock, event)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise late("timed out")
