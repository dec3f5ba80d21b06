"""Bytes of an answer in, JSON values out: server-sent events, or one plain JSON document.

An own decoder, because `iter_lines` of HTTP clients splits at U+2028, U+0085 and form feeds, which vendors send raw
inside their JSON. Lines end at LF, CRLF or CR and nowhere else (WHATWG HTML, "Interpreting an event stream").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _faults, _shape

MAX_EVENT = 64 << 20  # bytes of one event, or of one plain document
_LINE_END = re.compile(rb"\r\n|\n|\r")


def events(chunks: Iterable[bytes], limit: int = MAX_EVENT) -> Iterator[tuple[str, bytes]]:
    """(event name, data) of each event; "" where the server gives no name; comments and other fields are skipped.

    Data lines are joined by a newline. The last event is given out at the end of the bytes even without its blank
    line. Time is linear in the bytes, however small the chunks. CallFailed("malformed") for an event beyond `limit`.
    """
    name, size = "", 0
    data: list[bytes] = []
    for line in _lines(chunks, limit):
        size += len(line)
        if size > limit:
            raise _too_large(limit)
        if not line:
            if data:
                yield name, b"\n".join(data)
            name, data, size = "", [], 0
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode(errors="replace")
    if data:
        yield name, b"\n".join(data)


def values(chunks: Iterable[bytes], limit: int = MAX_EVENT) -> Iterator[Any]:
    """The JSON values of an answer: those of its events up to `[DONE]`, or the one of a plain JSON document.

    Which it is, is told by the first byte, not by the content type: servers answer a streamed request with plain JSON
    (errors above all), and name events wrongly. An array (Gemini without alt=sse) gives its items. A last event that
    is no JSON is left out: the answer was cut there, and who reads it misses its finish reason. An event that is an
    error by its name alone (`event: error`) becomes {"type": "error", "error": its data}, JSON or not.
    CallFailed("malformed") for HTML, for a document and other events that are no JSON, and for events beyond `limit`;
    what is no JSON is its result's only part.
    """
    chunks = iter(chunks)
    first = b""
    while not first:
        piece = next(chunks, None)
        if piece is None:
            return
        first = piece.lstrip(b" \t\r\n\xef\xbb\xbf")
    start = first[:1]
    if start == b"<":
        raise CallFailed("malformed", "the answer is HTML, not JSON: is the base URL right?")
    if start in (b"{", b"["):
        yield from _document(chain((first,), chunks), limit)
        return
    torn = b""
    for name, data in events(chain((first,), chunks), limit):
        if torn:
            raise CallFailed("malformed", "an event of the answer is not JSON", result=_unread(torn))
        if data.strip() == b"[DONE]":
            return
        try:
            value = parsed(data)
        except orjson.JSONDecodeError:
            if name != "error":
                torn = data
                continue
            value = data.decode(errors="replace")
        yield {"type": "error", "error": value} if name == "error" and not _faults.is_error(value) else value


def parsed(data: bytes) -> Any:
    """The JSON value; bytes that are no UTF-8 become U+FFFD (small local models stream halves of characters).

    Halves of a surrogate pair stay (servers that count in UTF-16 cut there): `mended` puts them together at the end.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if b"\\ud" in data.lower():
            import json

            try:
                return json.loads(data)
            except ValueError:
                raise error from None
        return orjson.loads(data.decode(errors="replace"))


def mended(value: Any) -> Any:
    """A JSON value that can be written: halves of a surrogate pair put together, lone ones U+FFFD."""
    try:
        orjson.dumps(value)
    except TypeError:
        return _mended(value)
    return value


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(inner) for inner in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(inner) for name, inner in value.items()}
    return value


def _document(chunks: Iterable[bytes], limit: int) -> Iterator[Any]:
    pieces, size = list[bytes](), 0
    try:
        for piece in chunks:
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
    except CallFailed as failed:
        failed.result = _unread(b"".join(pieces))
        raise
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    try:
        value = parsed(data)
    except orjson.JSONDecodeError as error:
        raise CallFailed("malformed", f"the answer is no JSON: {error}", result=_unread(data)) from None
    if isinstance(value, list):
        yield from value
    else:
        yield value


def _unread(data: bytes) -> dict[str, Any] | None:
    """What came and is no JSON, as a result."""
    text = data.decode(errors="replace")
    return {"parts": [_shape.unread(text)]} if text.strip() else None


def _lines(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    pending: list[bytes] = []
    size = 0
    after_cr = False
    start = True
    for chunk in chunks:
        if not chunk:
            continue
        if after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        after_cr = chunk.endswith(b"\r")
        *whole, rest = _LINE_END.split(chunk)
        for line in whole:
            if pending:
                line = b"".join((*pending, line))
                pending, size = [], 0
            yield line.removeprefix(b"\xef\xbb\xbf") if start else line
            start = False
        if rest:
            pending.append(rest)
            size += len(rest)
            if size > limit:
                raise _too_large(limit)
    if pending:
        line = b"".join(pending)
        yield line.removeprefix(b"\xef\xbb\xbf") if start else line


def _too_large(limit: int) -> CallFailed:
    return CallFailed("malformed", f"an event of the answer is larger than {limit >> 20} MiB")
