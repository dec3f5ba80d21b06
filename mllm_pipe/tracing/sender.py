"""Sends traces to a collector by OTLP over HTTP, as the OpenTelemetry specification of the exporter says (1.5x).

Of the environment: OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, _TIMEOUT (milliseconds), _COMPRESSION (gzip, none) and
_PROTOCOL (http/protobuf, http/json), each of which has a form for traces alone, such as
OTEL_EXPORTER_OTLP_TRACES_HEADERS, that wins.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.terminal import note

Json = dict[str, Any]
ENVIRONMENT = "env"  # instead of a URL: where the environment says
PATH = "/v1/traces"
_BATCH = 512  # spans in a request
_TRIES = 5
_LONGEST_WAIT_S = 30.0
_RETRYABLE = (429, 502, 503, 504)  # of OTLP/HTTP; and what was never sent


def send(requests: list[Json], url: str) -> int:
    """Send requests to a URL (or ENVIRONMENT), several in one; how many spans were taken.

    CallFailed if the collector refuses, or is not to be reached after five tries; Usage for settings that are none.
    """
    where, (headers, secrets) = _endpoint(url), _headers()
    form = _setting("PROTOCOL") or "http/protobuf"
    if form not in ("http/protobuf", "http/json"):
        raise Usage(f"OTEL_EXPORTER_OTLP_PROTOCOL is {form!r}; trace speaks http/protobuf and http/json")
    compression = _setting("COMPRESSION") or "none"
    if compression not in ("gzip", "none"):
        raise Usage(f"OTEL_EXPORTER_OTLP_COMPRESSION is {compression!r}; it takes gzip or none")
    headers["content-type"] = "application/json" if form == "http/json" else "application/x-protobuf"
    if compression == "gzip":
        headers["content-encoding"] = "gzip"
    taken = 0
    for batch, spans in _batches(requests):
        body = _body(batch, form, compression)
        count, why = _refused(_posted(where, headers, body, secrets), form)
        if count:
            raise CallFailed(
                "bad_request", f"{where}: the collector refused {count} of {spans} spans: {why}", billed="no"
            )
        if why:
            note(f"{where}: {why}")
        taken += spans
    return taken


def _posted(where: str, headers: dict[str, str], body: bytes, secrets: list[str]) -> bytes:
    """The answer to one request, asked again while that may help."""
    from mllm_pipe.calling.span import Io
    from mllm_pipe.runtimes import _http

    timeout_s = _timeout_s()
    for number in range(1, _TRIES + 1):
        try:
            with closing(_http.post(where, headers, body, Io(timeout_s), secrets=secrets)) as pieces:
                return b"".join(pieces)
        except CallFailed as failed:
            again = (
                failed.http_status in _RETRYABLE or failed.http_status is None and failed.code in ("network", "timeout")
            )
            if not again or number == _TRIES:
                tried = f", gave up after {number} tries" if number > 1 else ""
                raise CallFailed(failed.code, f"{where}: {failed}{tried}", billed="no") from None
            asked = failed.retry_after_s
            time.sleep(min(random.random() * 0.25 * 2**number if asked is None else asked, _LONGEST_WAIT_S))
    raise AssertionError("the last try returns or raises")


def _batches(requests: list[Json]) -> Iterator[tuple[Json, int]]:
    """Requests put together, each with the number of its spans."""
    held: list[Json] = []
    count = 0
    for request in requests:
        spans = sum(len(scope["spans"]) for one in request["resourceSpans"] for scope in one["scopeSpans"])
        if held and count + spans > _BATCH:
            yield {"resourceSpans": held}, count
            held, count = [], 0
        held = [*held, *request["resourceSpans"]]
        count += spans
    if held:
        yield {"resourceSpans": held}, count


def _body(request: Json, form: str, compression: str) -> bytes:
    from mllm_pipe.tracing.protobuf import encoded

    data = orjson.dumps(request) if form == "http/json" else encoded(request)
    if compression == "gzip":
        import gzip

        return gzip.compress(data, mtime=0)
    return data


def _refused(answer: bytes, form: str) -> tuple[int, str]:
    """(spans refused, why) of what the collector answered."""
    if form == "http/protobuf":
        from mllm_pipe.tracing.protobuf import refused

        return refused(answer)
    try:
        told = orjson.loads(answer or b"{}")
        partial = told.get("partialSuccess") or {}
        return int(partial.get("rejectedSpans") or 0), str(partial.get("errorMessage") or "")
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
        raise CallFailed("malformed", "the collector's answer is no JSON of OTLP; its spans may be there") from None


def _endpoint(url: str) -> str:
    """Where traces go: to the path v1/traces below a URL, unless it names that itself."""
    if url == ENVIRONMENT:
        if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            return os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        url = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
    base = url.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


def _headers() -> tuple[dict[str, str], list[str]]:
    """(headers, their values that must never be shown), in the form of W3C baggage: name=value,name=value."""
    from urllib.parse import unquote

    found = {}
    for pair in filter(None, map(str.strip, _setting("HEADERS").split(","))):
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise Usage("OTEL_EXPORTER_OTLP_HEADERS is no list of name=value,name=value")
        found[name.strip().lower()] = unquote(value.strip())
    return found, [value for value in found.values() if value]


def _timeout_s() -> float:
    text = _setting("TIMEOUT") or "10000"
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise Usage(f"OTEL_EXPORTER_OTLP_TIMEOUT is {text!r}; it is a number of milliseconds")
    return int(text) / 1000


def _setting(name: str) -> str:
    return os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""
