"""The key of a target: where it is looked for, and in which order. It is never said, whatever goes wrong.

1. the variable that --key-env names, and nothing else where it is given
2. the environment: the variable that `key_env` of the configuration names, else the vendor's own
3. what `key_command` of the configuration prints: asked at most once by a process, without a shell
4. the key file that `mllm keys set` wrote (mllm_pipe.keys)
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from mllm_pipe import keys
from mllm_pipe.errors import CallFailed
from mllm_pipe.waiting import aside

COMMAND_S = 60.0  # a person may have to touch a sensor
HIDDEN = "***"  # in place of a key that only a command knows, where nothing is sent

VENDOR_KEYS = frozenset((
    "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_BEARER_TOKEN_BEDROCK",
    "OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "AZURE_OPENAI_API_KEY",
    "AZURE_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY", "OPENCODE_API_KEY",
    "OPENROUTER_API_KEY", "GROQ_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "XAI_API_KEY",
    "CEREBRAS_API_KEY", "COHERE_API_KEY", "CO_API_KEY", "DASHSCOPE_API_KEY", "FIREWORKS_API_KEY", "HF_TOKEN",
    "HUGGINGFACE_API_KEY", "LITELLM_API_KEY",
    "LITELLM_MASTER_KEY", "MOONSHOT_API_KEY", "NVIDIA_API_KEY", "OLLAMA_API_KEY", "PERPLEXITY_API_KEY",
    "TOGETHER_API_KEY", "VLLM_API_KEY", "VOYAGE_API_KEY", "ZAI_API_KEY", "ZHIPU_API_KEY",
))  # fmt: skip


def of(target: Mapping[str, Any], variables: Sequence[str], io: Any = None) -> tuple[str, str]:
    """(variable, key), "" for the variable where the key comes from elsewhere; ("", "") if there is none.

    variables: the vendor's own, of which the first that is set counts. io: of the call that needs it; without one
    nothing is sent, so no command is asked, and what it would print is HIDDEN.
    CallFailed("auth", billed="no") for a command that gives no key, a key file that others can reach, and for what
    cannot be a key.
    """
    named = target.get("key_env")
    for name in (named,) if named else variables:
        if value := os.environ.get(name, ""):
            if fault := keys.why_no_key(value):
                raise CallFailed("auth", f"{name} {fault}", billed="no")
            return name, value
    if command := target.get("key_command"):
        return "", _printed_by(tuple(command), io) if io else HIDDEN
    try:
        return "", keys.kept(target.get("key_name") or "")
    except keys.Exposed as exposed:
        raise CallFailed("auth", str(exposed), billed="no") from None


def lacking(target: Mapping[str, Any], variables: Sequence[str]) -> CallFailed:
    """That there is no key, and what to do about it."""
    named = target.get("key_env") or " or ".join(variables)
    kept, withheld = target.get("key_name"), target.get("key_withheld")
    also = f"; or say: mllm keys set {kept}" if kept else ""
    if withheld and keys.is_kept(withheld):
        also = f"; the one that mllm keys has for {withheld} is not sent to a --base-url"
    return CallFailed("auth", f"{named} is not set; it should hold the key{also}", billed="no")


def environment(passed: Sequence[str] = ()) -> dict[str, str]:
    """Our environment for a program of the user's own: without the keys of vendors, but for those that are named."""
    return {name: value for name, value in os.environ.items() if name not in VENDOR_KEYS or name in passed}


_printed: dict[tuple[str, ...], str | CallFailed] = {}
_asking = Lock()


def _printed_by(command: tuple[str, ...], io: Any) -> str:
    """The one line that a key command prints. It is asked once, be it that it fails."""
    found = _printed.get(command) or aside(lambda: _asked_once(command, io))
    if isinstance(found, CallFailed):
        raise CallFailed("auth", f"key_command {os.path.basename(command[0])}: {found}", billed="no")
    return found


def _asked_once(command: tuple[str, ...], io: Any) -> str | CallFailed:
    with _asking:
        if command not in _printed:
            try:
                _printed[command] = _ask(command, io)
            except CallFailed as failed:
                _printed[command] = failed
        return _printed[command]


def _ask(command: tuple[str, ...], io: Any) -> str:
    from mllm_pipe.runtimes import _child

    printed, ends = bytearray(), time.monotonic() + COMMAND_S

    def left() -> float:
        if time.monotonic() >= ends:
            raise CallFailed("auth", f"no key within {COMMAND_S:g} s")
        return float(min(io.left(), ends - time.monotonic()))

    ended = _child.run(command, stdin=b"", env=environment(), cwd=None, left=left, on_bytes=printed.extend)
    value = printed.decode(errors="replace").rstrip("\r\n")
    if ended.status:
        said = _child.last_line(ended.tail, [value])
        raise CallFailed("auth", f"exit status {ended.status}{': ' + said if said else ''}")
    if fault := keys.why_no_key(value):
        raise CallFailed("auth", f"what it prints {fault}")
    return value
