"""A call through a proxy: httpcore. Loaded with the first such call, for it is slow.

Not httpx.Client: its cookies, redirects, hooks and authentication are what we do not want, and half of the processor
time of a call. It has no deadline for a whole call, only one between bytes, so every single read is given what is left
of ours: a server that sends a byte a second ends at the deadline, and nothing is left running.

A connection over https is used again as in _direct. Each worker has its own pool, as one shared by all of them is
searched at every request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpcore

from mllm_pipe.runtimes import _endpoint
from mllm_pipe.runtimes._answer import Answer
from mllm_pipe.runtimes._clock import CONNECT_S, Broken, Clock, Late, Refused
from mllm_pipe.runtimes._kept import Kept
from mllm_pipe.runtimes._socket import KEEP_S, Connection, reached, send
from mllm_pipe.runtimes._tls import Secured, trusted

if TYPE_CHECKING:
    import ssl


@contextmanager
def _named() -> Iterator[None]:
    """What httpcore raises, by our names."""
    try:
        yield
    except httpcore.ProxyError as error:
        raise Refused(str(error)) from None
    except httpcore.TimeoutException as error:
        raise Late(str(error)) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise Broken(str(error)) from None


class Timed(httpcore.NetworkStream):
    """A stream whose every wait obeys the clock of the call that its way is used for.

    httpcore's own waits in a way that holds up all who share the thread.
    """

    def __init__(self, inner: Connection | Secured, way: Way) -> None:
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
            return
        try:
            self._send(buffer)
        except Late:
            raise
        except Broken as error:  # httpcore reads on: it may have said why before it closed, as to what is too large
            raise httpcore.WriteError(str(error)) from None

    def _send(self, more: bytes) -> None:
        buffer = self.held + more
        self.held = b""
        send(self.inner, buffer, self.way.clock)

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        limit = min(CONNECT_S, self.way.clock.io.left())
        try:
            return Timed(Secured(self.inner, ssl_context, server_hostname, limit), self.way)
        except BaseException:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self.inner.has_news() if info == "is_readable" else None


class Backend(httpcore.NetworkBackend):
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
        return Timed(reached(host, port, self.way.clock), self.way)


class Way:
    """A worker's way to a host: a pool of connections."""

    clock: Clock

    def __init__(self, tls: ssl.SSLContext | None, proxy: str) -> None:
        self.usual = {} if tls else {"connection": "close"}
        kept: dict[str, Any] = {"ssl_context": tls, "network_backend": Backend(self), "keepalive_expiry": KEEP_S}
        self.pool: httpcore.ConnectionPool
        if proxy.startswith("socks"):
            self.pool = httpcore.SOCKSProxy(proxy, **kept)
        else:
            import httpx

            at = httpx.Proxy(proxy)
            self.pool = httpcore.HTTPProxy(str(at.url), proxy_auth=at.raw_auth, **kept)

    def close(self) -> None:
        self.pool.close()

    def ask(self, place: _endpoint.Place, headers: Mapping[str, str], body: bytes | None, clock: Clock) -> Pooled:
        """As in _direct. Refused by a proxy, too."""
        self.clock = clock
        to = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.path)
        sent = _endpoint.sent(place, headers, body) | self.usual
        asked = httpcore.Request("GET" if body is None else "POST", to, headers=list(sent.items()), content=body,
                                 extensions={"timeout": {"pool": CONNECT_S}})  # fmt: skip
        with _named():
            return Pooled(self.pool.handle_request(asked))


class Pooled(Answer):
    """An answer as httpcore has it."""

    def __init__(self, response: httpcore.Response) -> None:
        super().__init__()
        self.status = response.status
        for raw, text in response.headers:
            self.note(raw, text)
        self.stream: Any = response.stream

    def pieces(self) -> Iterator[bytes]:
        with _named():
            yield from self.stream

    def close(self) -> None:
        self.stream.close()


_ways: Kept[Way] = Kept()


def way(scheme: str, proxy: str) -> Way:
    """This worker's way for a scheme, through a proxy."""
    mine = _ways.mine()
    if (scheme, proxy) not in mine:
        mine[scheme, proxy] = Way(trusted() if scheme == "https" else None, proxy)
    return mine[scheme, proxy]
