"""Loopback servers that speak the vendors' dialects: real bytes for tests, without a network.

    with serve("anthropic") as server:
        ... base_url = server.url("429x2") ...
        assert len(server.calls()) == 3

See server.py for the scenarios.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .server import MARKER, Loopback

__all__ = ["MARKER", "Loopback", "serve"]


@contextmanager
def serve(dialect: str) -> Iterator[Loopback]:
    """A server for a dialect (the name of a module of this package), in a thread of its own, until the block ends."""
    server = Loopback(importlib.import_module(f".{dialect}", __name__))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
