"""An answer over HTTP, whichever connection it came by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

from mllm_pipe.runtimes._unzip import unzipped


class Answer(ABC):
    """The head of an answer: its status, its headers (names in lower case); and its body, as it comes."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}

    def note(self, raw: bytes, text: bytes) -> None:
        """Take one header; one that comes again is added to the first (RFC 9110, 5.3)."""
        name, value = raw.decode("latin-1").lower(), text.decode("latin-1").strip()
        self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value

    def body(self) -> Generator[bytes, None, None]:
        """Its bytes, unzipped. Broken if it breaks off."""
        return unzipped(self.pieces(), self.headers.get("content-encoding", ""))

    @abstractmethod
    def pieces(self) -> Iterator[bytes]:
        """Its bytes as they were sent."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection."""
