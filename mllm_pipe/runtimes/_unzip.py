"""The body of an answer that a server zips unasked. Pure."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from mllm_pipe.errors import CallFailed
from mllm_pipe.runtimes import _faults

SLICE = 1 << 16  # bytes given out at once


def unzipped(pieces: Iterable[bytes], coding: str) -> Generator[bytes, None, None]:
    """The pieces unzipped, by the content-encoding: a slice at a time, as a kilobyte may stand for a megabyte.

    CallFailed("malformed") for another coding, and for what cannot be unzipped.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        yield from pieces
    elif coding in ("gzip", "x-gzip", "deflate"):
        import zlib

        unzip = zlib.decompressobj(47)  # of either kind
        try:
            for piece in pieces:
                while piece:
                    yield unzip.decompress(piece, SLICE)
                    piece = unzip.unconsumed_tail
        except zlib.error:
            raise CallFailed("malformed", "the answer cannot be unzipped") from None
    else:
        raise CallFailed("malformed", f"the answer is packed as {_faults.tidy(coding)}, for which nobody asked")
