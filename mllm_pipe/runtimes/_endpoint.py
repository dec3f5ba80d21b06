"""Who is asked over HTTP: the base URL, the key, the model. Reads the environment, sends nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from mllm_pipe import __version__, keys
from mllm_pipe.errors import CallFailed, Usage
from mllm_pipe.runtimes import _faults, _key


def base_url(target: Mapping[str, Any], variable: str, default: str) -> str:
    """target["base_url"], else the environment's, else the vendor's; without a slash at its end. Usage if the API's
    path, which is put behind it, would become part of a query."""
    url = str(target.get("base_url") or os.environ.get(variable) or default).rstrip("/")
    if "?" in url or "#" in url:
        raise Usage(f"{_public(url)!r} has a ? or a #; a base URL ends with a path, like https://host/v1")
    return url


@lru_cache(64)
def endpoint(url: str) -> str:
    """host[:port] of a URL, in lower case, without user and password; "" if there is none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def model(target: Mapping[str, Any]) -> str:
    """The model asked for. Usage if none is named."""
    name = target.get("model")
    if not name:
        runtime = target.get("runtime") or target.get("kind")
        raise Usage(f"{runtime}: no model: say {runtime}/MODEL or -m MODEL")
    return str(name)


def key(target: Mapping[str, Any], variables: tuple[str, ...], required: bool, io: Any = None) -> tuple[str, str]:
    """(variable, key) as mllm_pipe.runtimes._key has it; ("", "") if there is none and none is required.

    CallFailed("auth", billed="no") if one is wanted and not there, or cannot be sent; the key is never said.
    """
    variable, value = _key.of(target, variables, io)
    if not value and (required or target.get("key_env")):
        raise _key.lacking(target, variables)
    return variable, value


def lacking(target: Mapping[str, Any], variables: tuple[str, ...], required: bool) -> str:
    """Why a target cannot be called for want of a key, or ""."""
    try:
        key(target, variables, required)
    except CallFailed as failure:
        return str(failure)
    return ""


def headers_of(target: Mapping[str, Any], headers: Mapping[str, str], value: str) -> tuple[dict[str, str], list[str]]:
    """(headers, secrets): ours, over them the target's own, names in lower case; what of them must never be shown."""
    mine = {str(name).lower(): str(text) for name, text in (target.get("headers") or {}).items()}
    return {**headers, **mine}, [secret for secret in (value, *mine.values()) if len(secret) >= 8 or secret == value]


def shown(
    address: tuple[str, Mapping[str, str], Iterable[str]], rendered: tuple[dict[str, Any], list[dict[str, Any]], str]
) -> dict[str, Any]:
    """{"url", "headers", "body", "losses"} of a request (body, losses, prefix) to an address (url, headers, secrets),
    without any secret."""
    url, headers, secrets = address
    masked = dict(headers)
    for secret in filter(None, secrets):
        masked = {name: value.replace(secret, "***") for name, value in masked.items()}
    return {"url": keys.without_secrets(url), "headers": masked, "body": rendered[0], "losses": rendered[1]}


def with_options(
    body: dict[str, Any],
    target: Mapping[str, Any],
    asked: Mapping[str, Any],
    api: str,
    provider: str,
    names: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(body, losses): the body with the user's options, as the API and the model take them (mllm_pipe.models.fit).

    Those of the request win over those of the target. A target that is configured is of one API, so what is no option
    there is a field of its body, and goes out as it is. names: what the server calls a field, where it differs.
    """
    own, given = dict(target.get("options") or {}), dict(asked.get("options") or {})
    if not own and not given:
        return body, []
    from mllm_pipe import models

    raw = {name: own.pop(name) for name in list(own) if name not in models.OPTIONS}
    fields, losses = models.fit(own | given, api, models.find(provider, target.get("model")))
    fields = {(names or {}).get(name, name): value for name, value in fields.items()}
    return _merged(_merged(body, raw), fields), losses


def _merged(body: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body with more fields: objects are merged, the rest replaced."""
    for name, value in fields.items():
        old = body.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        body = body | {name: _merged(old, value) if isinstance(old, dict) and both else value}
    return body


# -- where it goes -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


class Place:
    """Where a request goes: what its URL says. path: with the query. name: as the request itself calls the host."""

    def __init__(self, parts: SplitResult) -> None:
        self.scheme, self.host, self.name = parts.scheme, parts.hostname or "", parts.netloc.rpartition("@")[2]
        self.port = parts.port
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.login = _login(parts)


def checked(url: str, headers: Mapping[str, str]) -> Place:
    """Where the URL points. Usage for a URL or header that cannot be sent; a header's value is never said, nor what may
    be a secret in a URL."""
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value) or value != value.strip():
            raise Usage(
                f"the header {_faults.tidy(name)!r} holds a line break, an outer blank or a character outside of ASCII"
            )
    return _place(url)


@lru_cache(64)
def _place(url: str) -> Place:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        labels = host.removesuffix(".").split(".")  # RFC 1035, 2.3.4
        sound = parts.scheme in ("http", "https") and (":" in host or all(0 < len(label) < 64 for label in labels))
        sound = sound and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or not url.isascii() or re.search(r"[\x00-\x20\x7f]", url):
        raise Usage(f"{_public(url)!r} is no URL of an API; a base URL looks like https://host/v1")
    return Place(parts)


def sent(place: Place, headers: Mapping[str, str], body: bytes | None) -> dict[str, str]:
    """All headers of a request but that of its connection, names in lower case: over the usual ones those given."""
    usual = {"host": place.name, "accept": "text/event-stream, application/json", "accept-encoding": "identity",
             "user-agent": f"mllm-pipe/{__version__}"}  # fmt: skip
    size = {} if body is None else {"content-length": str(len(body))}
    return usual | place.login | {name.lower(): value for name, value in headers.items()} | size


def _login(parts: SplitResult) -> dict[str, str]:
    """The header for a name and password in the URL, as of a server behind a proxy that wants them (RFC 7617)."""
    if parts.username is None:
        return {}
    from base64 import b64encode
    from urllib.parse import unquote

    said = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"authorization": f"Basic {b64encode(said.encode()).decode()}"}


def _public(url: str) -> str:
    """A URL without a name and password, and without its query, for a message."""
    return _faults.tidy(re.sub(r"//[^/@]*@|[?#].*", lambda found: "//***@" * (found[0][0] == "/"), url))


@lru_cache(64)
def loopback(host: str) -> bool:
    """True for localhost, 127.0.0.0/8 and ::1."""
    if host.lower().rstrip(".") == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def proxy(scheme: str, host: str) -> str | None:
    """The proxy of the environment for a host; never one for loopback, which NO_PROXY seldom names."""
    if loopback(host) or not any(name.lower().endswith("_proxy") and value for name, value in os.environ.items()):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    if proxy_bypass(host):
        return None
    proxies = getproxies_environment()
    found = proxies.get(scheme) or proxies.get("all")
    if found and found.startswith("socks"):
        from importlib.util import find_spec

        if not find_spec("socksio"):
            raise Usage("the environment names a SOCKS proxy, which needs another package: pip install socksio")
    return found if not found or "://" in found else f"http://{found}"
