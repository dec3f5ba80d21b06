"""What a router looks at: the turn that is to be answered, and what is known of the thread around it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mllm_pipe.envelope import Record
from mllm_pipe.thread import parts_of, text_of
from mllm_pipe.window import BYTES_A_TOKEN, TOKENS_A_FILE

HAS = ("file", "image", "audio", "video", "pdf", "code", "url", "tools")


class Subject:
    """The newest turn of the user's side on a branch: its text, its parts, and the meta fields up to there."""

    def __init__(self, messages: list[Record]) -> None:
        """messages: a branch, oldest first. The turn is the last run of user and tool messages."""
        end = len(messages)
        while end and messages[end - 1]["role"] not in ("user", "tool"):
            end -= 1
        start = end
        while start and messages[start - 1]["role"] in ("user", "tool"):
            start -= 1
        self.messages, self.turn = messages, messages[start:end]
        if end - start == 1 and type(messages[start]["content"]) is str:
            self.text: str = messages[start]["content"]
        else:
            self.text = "\n".join([text_of(message["content"]) for message in self.turn])

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The user's own fields, of all messages that are no answers; a later one wins."""
        return {key: value for message in self.messages if message["role"] != "assistant"
                for key, value in message.get("meta", {}).items()}  # fmt: skip

    @cached_property
    def has(self) -> frozenset[str]:
        """Which of HAS the turn has; tools is asked of the whole thread."""
        there = {kind for message in self.turn for part in parts_of(message["content"]) if part["type"] == "file"
                 for kind in _kinds(part["media_type"].lower())}  # fmt: skip
        if "```" in self.text:
            there.add("code")
        if "http://" in self.text or "https://" in self.text:
            there.add("url")
        if any([message["role"] == "tool" or _calls(message) for message in self.messages]):
            there.add("tools")
        return frozenset(there)

    @cached_property
    def tokens(self) -> int:
        """About how many tokens the whole branch has, rather too many than too few."""
        size = 0.0
        for message in self.messages:
            for part in parts_of(message["content"]):
                size += TOKENS_A_FILE if part["type"] == "file" else len(text_of([part]).encode()) / BYTES_A_TOKEN
        return int(size) + 8 * len(self.messages)

    @cached_property
    def language(self) -> str | None:
        """Of the turn, as a code of ISO 639-1: what meta.language says, else as it looks; None if that is unsure."""
        said = self.meta.get("language")
        if isinstance(said, str):
            return said.lower().replace("_", "-").split("-")[0]
        from mllm_pipe.routing.language import language_of

        return language_of(self.text)


def _kinds(media_type: str) -> list[str]:
    first = "pdf" if media_type == "application/pdf" else media_type.split("/")[0]
    return ["file", first] if first in HAS else ["file"]


def _calls(message: Record) -> bool:
    return type(message["content"]) is list and any([part["type"] == "tool_call" for part in message["content"]])
