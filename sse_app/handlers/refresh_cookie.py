"""The refresh cookie: by which name it goes, whether it is ours alone, and how it is set and dropped.

A cookie does not say who has set it. A page on a sibling subdomain can set one for the parent domain, and a more
specific path puts it first (RFC 6265 §5.4, §8.6). Only the prefix ``__Host-`` keeps others from that: a browser takes
such a cookie from this host alone, over TLS, with ``Path=/`` and without ``Domain``. So no other name is read, except
over plain HTTP on ``localhost`` and loopback addresses, where some browsers refuse the prefix and where there are no
siblings.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders

from sse_app.handlers.hosts import is_loopback

PLAIN = "sse_app_refresh"
PREFIXED = f"__Host-{PLAIN}"

EARLIER_PATH = "/api/v1/auth"
"""Where earlier versions set the cookie, by the name without the prefix."""

EARLIER_LENGTH = 43
"""How long the refresh tokens of earlier versions are; those of today are longer."""

PATHS = ("/", "/api", "/api/", "/api/v1", "/api/v1/", EARLIER_PATH, f"{EARLIER_PATH}/")
"""The paths of the cookies that a browser sends here."""

_ATTRIBUTES = "Secure; HttpOnly; SameSite=Strict"


def name_for(headers: HTTPHeaders, host: str) -> str:
    """Return the name that the cookie is set by.

    What says that it is about plain HTTP on loopback need not be trusted: it decides only about a cookie of the
    client's own, and no page can have a browser say so of another host.

    Args:
        headers: of the request.
        host: the name in ``Host``, in lower case and without a port.
    """
    if headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower() == "https":
        return PREFIXED
    if urlsplit(headers.get("Origin", "")).scheme == "https":  # where a proxy has changed Host, it tells
        return PREFIXED
    return PLAIN if is_loopback(host) else PREFIXED


def set_as(name: str, value: str, max_age: int) -> str:
    """Return the ``Set-Cookie`` of a refresh token; ``max_age`` is in seconds."""
    return f"{name}={value}; Max-Age={max_age}; Path=/; {_ATTRIBUTES}"


def dropping(name: str, values: list[str]) -> list[str]:
    """Return the ``Set-Cookie`` headers that have a browser drop the cookies of a name that it has sent.

    One that was set for a parent domain stays: its domain is not told. It is one that is not read.
    """
    return [_dropped(name, "/"), *dropping_elsewhere(name, values)] if values else []


def dropping_elsewhere(name: str, values: list[str]) -> list[str]:
    """Return the same for those that a new cookie does not replace, for they have another path."""
    if name == PREFIXED:
        return []
    if len(values) > 1:
        return [_dropped(name, path) for path in PATHS[1:]]
    return [_dropped(name, EARLIER_PATH) for value in values if len(value) == EARLIER_LENGTH]


def _dropped(name: str, path: str) -> str:
    return f"{name}=; expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path={path}; {_ATTRIBUTES}"
