"""Files that the user attaches: their bytes, and what type they are."""

from __future__ import annotations

import os
from typing import Any

from mllm_pipe.errors import Usage
from mllm_pipe.files import whole

# By their first bytes; a name says nothing about what a vendor will find.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)


def media_type(data: bytes, name: str) -> str:
    """By the first bytes, else by the name, else text/plain if it is UTF-8, else application/octet-stream."""
    for signature, found in _SIGNATURES:
        if data.startswith(signature):
            return found
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    import mimetypes

    guessed = mimetypes.guess_type(name)[0]
    if guessed:
        return guessed
    try:
        data.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain"


def part(name: str) -> dict[str, Any]:
    """The file as a content part, its bytes embedded; a URL is named, and fetched by the vendor if at all.

    Usage if the file is empty, or a URL does not end like one of a known type.
    """
    import base64

    if name.startswith(("https://", "http://")):
        import mimetypes

        kind = mimetypes.guess_type(name.split("?")[0])[0]
        if kind is None:
            raise Usage(f"{name}: its name does not say what it is, and it is not fetched; attach it as a file")
        return {"type": "file", "media_type": kind, "url": name}

    data = whole(0 if name == "-" else name)
    if not data:
        raise Usage(f"{name} is empty; there is nothing to attach")
    made: dict[str, Any] = {"type": "file", "media_type": media_type(data, name)}
    made["data"] = base64.b64encode(data).decode()
    if name != "-":
        made["name"] = os.path.basename(name)
    return made
