"""TLS over a connection, which may itself be one: through a proxy of https."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from mllm_pipe.errors import Usage
from mllm_pipe.runtimes._clock import Broken
from mllm_pipe.runtimes._socket import AT_ONCE, Connection


def trusted() -> ssl.SSLContext:
    """Whom to trust: $SSL_CERT_FILE or $SSL_CERT_DIR, else the authorities that Mozilla trusts. Made once: to read them
    takes 20 ms (encode/httpx #3215). Usage if the file is none of certificates."""
    with _once:
        if not _made:
            import certifi

            file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
            try:
                made = ssl.create_default_context(cafile=file or (None if folder else certifi.where()),
                                                  capath=None if file else folder or None)  # fmt: skip
            except ssl.SSLError:
                raise Usage(f"SSL_CERT_FILE={file} holds no certificates; they should be in PEM") from None
            except OSError as error:
                raise Usage(f"SSL_CERT_FILE={file}: {error.strerror}") from None
            made.set_alpn_protocols(["http/1.1"])
            _made.append(made)
        return _made[0]


_made: list[ssl.SSLContext] = []
_once = Lock()


class Secured:
    """As a Connection. TLS is done in memory, so that every wait is one of the connection beneath."""

    def __init__(self, inner: Connection | Secured, context: ssl.SSLContext, host: str | None, timeout: float) -> None:
        """Shakes hands with the host within so many seconds. Late, or Broken if it is not who it should be."""
        self.inner = inner
        self.came, self.goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.came, self.goes, server_hostname=host)
        self._until_done(self.tls.do_handshake, timeout)

    def read(self, most: int, timeout: float) -> bytes:
        """As of a Connection; that nobody said goodbye is no failure: how long an answer is, it says itself."""
        try:
            data: bytes = self._until_done(lambda: self.tls.read(most), timeout)
        except _Ended:
            return b""
        return data

    def write(self, data: bytes, timeout: float) -> None:
        """As of a Connection."""
        left = memoryview(data)
        while left:
            left = left[self._until_done(lambda: self.tls.write(left), timeout) :]  # noqa: B023, called at once

    def close(self) -> None:
        """As of a Connection."""
        self.inner.close()

    def has_news(self) -> bool:
        """As of a Connection."""
        return bool(self.came.pending) or self.inner.has_news()

    def _until_done(self, step: Callable[[], Any], timeout: float) -> Any:
        ends = time.monotonic() + timeout

        def left() -> float:
            return max(ends - time.monotonic(), 0.001)

        while True:
            try:
                done, waits = step(), False
            except ssl.SSLWantReadError:
                done, waits = None, True
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as error:
                raise _Ended(str(error)) from None
            except ssl.SSLError as error:
                with suppress(Broken):
                    self._send(left())  # why not, to the other side
                raise Broken(str(error)) from None
            self._send(left())
            if not waits:
                return done
            if data := self.inner.read(AT_ONCE, left()):
                self.came.write(data)
            else:
                self.came.write_eof()

    def _send(self, timeout: float) -> None:
        if self.goes.pending:
            self.inner.write(self.goes.read(), timeout)


class _Ended(Broken):
    """The other side has closed the connection."""
