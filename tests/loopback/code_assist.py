"""What the Gemini CLI asks with a login: Code Assist, POST /v1internal:METHOD, and whether its token is a good one."""

from __future__ import annotations

from typing import Any

from .google import ARGUMENTS, ERRORS, TOOL, chunk, event, text_of
from .server import Handler, text_for

__all__ = ["ARGUMENTS", "TOOL", "answer", "is_call"]

TIER = {"currentTier": {"id": "standard-tier", "name": "Standard"}, "cloudaicompanionProject": "loopback"}
# Has node ask us where it would ask Google's host for logins, whose name no setting changes.
HOOK = """
const https = require("https"), http = require("http"), ask = https.request
https.request = (to, options, ...rest) => {
  const url = new URL(String(to))
  if (!url.hostname.endsWith(".googleapis.com")) return ask(to, options, ...rest)
  const { method, headers } = options
  return http.request(process.env.CODE_ASSIST_ENDPOINT + url.pathname, { method, headers }, ...rest)
}
"""


def is_call(method: str, path: str) -> bool:
    return method == "POST" and path == "/v1internal:streamGenerateContent"


def answer(handler: Handler, path: str, body: dict[str, Any]) -> None:
    if path == "/tokeninfo":
        return handler.send_json({"expires_in": 3000, "scope": "cloud-platform", "aud": "loopback"})
    if not is_call(handler.command, path):
        return handler.send_json(TIER if path.endswith(":loadCodeAssist") else {})
    if status := handler.error_status():
        error = {"code": status, "message": f"loopback says {status}", "status": ERRORS.get(status, "UNKNOWN")}
        return handler.send_json({"error": error}, status)
    if handler.trouble([event({"response": chunk({}, [{"text": "half an ans"}])})]):
        return None
    contents = body["request"]["contents"]
    said = text_for(handler.scenario, len(contents), sum(map(len, map(text_of, contents))), text_of(contents[-1]))
    return handler.send_sse([event({"response": chunk({}, [{"text": said}], "STOP")})])
