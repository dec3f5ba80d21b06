"""What vendors say when they refuse: their bodies, words and statuses, as one CallFailed. Pure.

    401 auth · 402 billing · 403 permission · 404 bad_model · 408, 499, 504, 524 timeout · 413 too_large ·
    429 rate_limit · 503, 529 overloaded · other 5xx server · 3xx and other 4xx bad_request
    and by its words: too_large, filter (a prompt against a content policy)

A gateway that gave up waiting (504, 524) has sent the request on: it may be billed, and is not repeated.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from mllm_pipe.errors import CallFailed

LONGEST_MESSAGE = 300

_CODE_OF_STATUS = {
    401: "auth",
    402: "billing",
    403: "permission",
    404: "bad_model",
    408: "timeout",
    413: "too_large",
    429: "rate_limit",
    499: "timeout",
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}

# The vendors' own words: Anthropic error.type, OpenAI error.code and error.type, Google error.status and reason.
_CODE_OF_WORD = {
    "authentication_error": "auth",
    "invalid_api_key": "auth",
    "UNAUTHENTICATED": "auth",
    "API_KEY_INVALID": "auth",
    "permission_error": "permission",
    "PERMISSION_DENIED": "permission",
    "billing_error": "billing",
    "insufficient_quota": "billing",
    "enforced_spend_limit_reached": "billing",
    "contract_spend_limit_reached": "billing",
    "not_found_error": "bad_model",
    "model_not_found": "bad_model",
    "NOT_FOUND": "bad_model",
    "rate_limit_error": "rate_limit",
    "rate_limit_exceeded": "rate_limit",
    "RESOURCE_EXHAUSTED": "rate_limit",
    "request_too_large": "too_large",
    "context_length_exceeded": "too_large",
    "exceed_context_size_error": "too_large",
    "content_filter": "filter",
    "content_policy_violation": "filter",
    "overloaded_error": "overloaded",
    "server_overloaded": "overloaded",
    "UNAVAILABLE": "overloaded",
    "api_error": "server",
    "server_error": "server",
    "internal_server_error": "server",
    "INTERNAL": "server",
    "timeout_error": "timeout",
    "DEADLINE_EXCEEDED": "timeout",
    "invalid_request_error": "bad_request",
    "invalid_prompt": "bad_request",
    "INVALID_ARGUMENT": "bad_request",
    "FAILED_PRECONDITION": "bad_request",
}
_TOO_LONG = re.compile(
    r"prompt is too long|maximum context length|context window|available context size|"
    r"exceeds the maximum number of tokens"
)
_POLICY = re.compile(r"content (?:filtering |management )?policy|violat\w+ our (?:usage|content) polic", re.IGNORECASE)
# Local servers and gateways say 400 for a model that they do not have: the word, at most a name, and that it is none.
_NO_MODEL = re.compile(
    r"\bmodel:? (?:[`'\"]?[\w./:@-]+[`'\"]? )?(?:is |was )?(?:not found|does not exist|not available)\b|"
    r"\b(?:unknown|invalid|no such) model(?: id| name)?(?: ?[:`'\"]| passed|[.]?$)|\bnot a valid model\b",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def of_reply(status: int, headers: Mapping[str, str], body: bytes, secrets: Iterable[str] = ()) -> CallFailed:
    """The failure that an HTTP error says. `headers` with names in lower case; `body` as far as it was read."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    default = _CODE_OF_STATUS.get(status, "server" if status >= 500 else "bad_request")
    code = default if status >= 500 else _code(value, default)
    if status < 500 and code in ("server", "overloaded"):
        code = default  # a gateway's word: what the status calls a wrong request is none to repeat
    said = message(value) or _plain(body, headers.get("content-type", ""))
    wait = retry_after(headers, value) if code in ("rate_limit", "overloaded", "server") else None
    billed = "unknown" if code == "timeout" else "no"
    return CallFailed(
        code, tidy(f"{status} {said}".strip(), secrets), billed=billed, http_status=status, retry_after_s=wait
    )


def of_event(value: Any, *, begun: bool, secrets: Iterable[str] = ()) -> CallFailed:
    """The failure that an error object in a 200 answer says; `begun` when some of the answer had come before it."""
    code = _code(value, "server")
    return CallFailed(
        code,
        tidy(message(value) or "the answer is an error", secrets),
        billed="unknown" if begun or code == "timeout" else "no",
        retry_after_s=retry_after({}, value),
    )


def is_error(value: Any) -> bool:
    """True if a JSON value of a 200 answer is an error object of any vendor."""
    return isinstance(value, dict) and (
        bool(value.get("error")) or value.get("object") == "error" or value.get("type") == "error"
    )


def message(value: Any, deepest: int = 8) -> str:
    """The vendor's own sentence, from any of the shapes seen: {error: {message}}, {error: "..."}, {detail: ...},
    {message}, a list of one of them; "" if there is none, or not within `deepest` levels."""
    if isinstance(value, list):
        return message(value[0], deepest - 1) if value and deepest else ""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not deepest:
        return ""
    for key in ("error", "message", "detail", "msg"):
        found = message(value.get(key), deepest - 1)
        if found:
            return found
    return ""


def tidy(text: str, secrets: Iterable[str] = ()) -> str:
    """One line of at most 300 characters, without control characters, and with every secret replaced by ***."""
    text = " ".join(_CONTROL.sub(" ", text).split())
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."


def retry_after(headers: Mapping[str, str], value: Any = None) -> float | None:
    """Seconds to wait: retry-after-ms, Retry-After (seconds or a date), or Google's RetryInfo; None if none of use."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _seconds(headers.get(name, ""))
        if seconds is not None:
            return seconds * scale
    if headers.get("retry-after"):
        from email.utils import mktime_tz, parsedate_tz  # 15 ms

        date = parsedate_tz(headers["retry-after"])
        if date is not None and date[0] > 1970:
            return _useful(mktime_tz(date) - time.time())
    for detail in _details(value):
        delay = detail.get("retryDelay")
        if isinstance(delay, str):
            return _seconds(delay.removesuffix("s"))
    return None


def _seconds(text: str) -> float | None:
    try:
        return _useful(float(text))
    except ValueError:
        return None


def _useful(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _details(value: Any) -> list[dict[str, Any]]:
    error = _error(value)
    details = error.get("details") if error else None
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _error(value: Any) -> dict[str, Any] | None:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    return value if isinstance(value, dict) else None


def _code(value: Any, default: str) -> str:
    error = _error(value)
    if error is None:
        return default
    inner = error.get("details")
    words = [inner.get("error_code")] if isinstance(inner, dict) else []
    words += [detail.get("reason") for detail in _details(value)]
    words += [error.get("code"), error.get("status"), error.get("type")]
    code = next((_CODE_OF_WORD[word] for word in words if isinstance(word, str) and word in _CODE_OF_WORD), "")
    if not code and isinstance(error.get("code"), int):
        code = _CODE_OF_STATUS.get(error["code"], "")
    if code in ("", "bad_request"):
        if _TOO_LONG.search(message(value)):
            return "too_large"
        if _POLICY.search(message(value)):
            return "filter"
        if _NO_MODEL.search(message(value)):
            return "bad_model"
        return default if default in _CODE_OF_STATUS.values() else code or default
    return code


def _plain(body: bytes, content_type: str) -> str:
    if "html" in content_type or body.lstrip()[:1] == b"<":
        title = re.search(rb"<title[^>]*>([^<]{1,200})", body, re.IGNORECASE)
        return title[1].decode(errors="replace") if title else "an HTML page"
    return body[:2000].decode(errors="replace")
