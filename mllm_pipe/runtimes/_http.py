"""The network: one request, its answer as bytes, its failures as CallFailed.

_direct has the connections straight to a server, _proxied those through a proxy.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _endpoint, _faults
from mllm_pipe.runtimes._clock import CONNECT_S, Broken, Clock, Late, Refused
from mllm_pipe.waiting import sleep

if TYPE_CHECKING:
    from mllm_pipe.runtimes._answer import Answer

FIRST_BYTE_S = 600.0  # a local server may read a long prompt for minutes before it says anything
IDLE_S = 300.0  # a model may think for minutes between two events, vendors ping in between
LINGER_S = 0.05
MAX_DECODED = 256 << 20  # bytes of a whole answer once unzipped
_MAX_ERROR_BODY = 64 << 10
_AT_ONCE = 1 << 20  # bytes, once unzipped, after which others have a turn


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
    place = _endpoint.checked(url, headers)
    clock = Clock(io, first_byte_s, idle_s)
    failure: CallFailed | None = None
    size, turn_at = 0, _AT_ONCE
    try:
        with closing(_asked(place, headers, body, clock)) as answer:
            clock.phase = "head"
            if not 200 <= answer.status < 300:
                raise _refusal(answer, secrets)
            if "html" in answer.headers.get("content-type", ""):
                raise CallFailed("malformed", "the answer is HTML, not JSON: is the base URL right?", http_status=200)
            with closing(answer.body()) as pieces:  # not left to its destructor, where Python drops a Stopped
                try:
                    for piece in pieces:
                        size += len(piece)
                        if size > MAX_DECODED:
                            raise CallFailed("malformed", f"the answer is larger than {MAX_DECODED >> 20} MiB")
                        clock.hear(piece)
                        yield piece
                        io.left()  # what is unzipped needs no more reading for a while
                        if size > turn_at:
                            turn_at = size + _AT_ONCE
                            sleep(0)
                except GeneratorExit:
                    if place.scheme == "https":
                        _drain(pieces, clock)
                    raise
    except CallFailed as failed:
        if failed.code == "timeout" and clock.phase == "connect":
            failed.billed = "no"
        raise
    except Broken as error:
        failure = _translated(error, clock, place.host, secrets)
    if failure:  # raised here, so that no context hangs on it
        raise failure


def _asked(place: _endpoint.Place, headers: Mapping[str, str], body: bytes | None, clock: Clock) -> Answer:
    proxy = _endpoint.proxy(place.scheme, place.host)
    if not proxy:
        from mllm_pipe.runtimes import _direct

        return _direct.ask(place, headers, body, clock)
    from mllm_pipe.runtimes import _proxied

    return _proxied.way(place.scheme, proxy).ask(place, headers, body, clock)


# -- what went wrong --------------------------------------------------------------------------------------------------


def _translated(error: Exception, clock: Clock, host: str, secrets: tuple[str, ...]) -> CallFailed:
    """The one table: an error of the network, and how far the call had come, to a CallFailed."""
    if isinstance(error, Refused):
        return CallFailed("network", f"{host}: the proxy refused", billed="no")
    if isinstance(error, Late):
        try:
            clock.io.left()
        except CallFailed as late:  # the limit that it met is that of the whole call
            return CallFailed(late.code, str(late), billed="no" if clock.phase == "connect" else late.billed)
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


def _drain(pieces: Iterator[bytes], clock: Clock) -> None:
    """Reads the few bytes behind what the reader took for the end, so that the connection can be used again."""
    ends = time.monotonic() + LINGER_S
    clock.phase, clock.idle_s = "body", LINGER_S
    try:
        while time.monotonic() < ends and next(pieces, None) is not None:
            pass
    except CallFailed:
        pass  # then it is closed
    except Broken:
        pass


def _refusal(answer: Answer, secrets: tuple[str, ...]) -> CallFailed:
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
    except Broken:
        pass
    return _faults.of_reply(status, answer.headers, body, secrets)
