"""What the other end of a connection has not read yet: a reset throws it away."""

from __future__ import annotations

import os
import socket
import threading
import time

TABLE = "/proc/net/tcp"  # Linux: one line a socket, with what it has not sent and not read


def await_read(connection: socket.socket, closing: threading.Event, seconds: float = 60.0) -> None:
    """Wait until the other end, here on 127.0.0.1, has read all that was sent, however slow it is; elsewhere a moment."""
    if not os.path.exists(TABLE):
        closing.wait(0.5)
        return
    near, far = (f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
                 for host, port in (connection.getsockname(), connection.getpeername()))  # fmt: skip
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with open(TABLE) as table:
            rows = [line.split() for line in table]
        queues = {row[1]: row[4].split(":") for row in rows if {row[1], row[2]} == {near, far}}
        waiting = int(queues.get(near, "0")[0], 16) + int(queues.get(far, "00")[1], 16)
        if not waiting or closing.wait(0.01):
            return
