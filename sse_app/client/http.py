"""HTTP for all parts of the client: the underlying HTTP client, and which error an answer means."""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from email.message import Message
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Self

import httpx

from sse_app.client.errors import (
    CertificateRefused,
    ClientError,
    Forbidden,
    NotFound,
    ProtocolError,
    Refused,
    Unauthorized,
    Unavailable,
)
from sse_app.core.redaction import redact
from sse_app.version import VERSION

LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a server that asks for more is asked again after this."""

CONNECT_TIMEOUT = 10.0
"""Seconds to reach the server in."""

_REFUSALS: dict[int, type[Refused]] = {401: Unauthorized, 403: Forbidden, 404: NotFound}
_PASSING = frozenset({408, 425, 429})
"""Statuses below 500 after which a request may be repeated."""


class _Redaction(logging.Filter):
    """Takes tokens out of lines: httpx logs the URL of every request, and that of a stream holds one."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the line pass, without what looks like a token."""
        text = record.getMessage()
        redacted = redact(text)
        if redacted != text:
            record.msg, record.args = redacted, ()
        return True


for _name in ("httpx", "httpcore.http11", "httpcore.http2", "hpack.hpack", "hpack.table"):
    logging.getLogger(_name).addFilter(_Redaction())


class HTTPUser:
    """The base of what speaks to a server: its address, and the HTTP client, which is closed if it is its own.

    Args:
        url: the server's address, such as ``https://events.example``; a path before ``/api`` may be part of it.
        http: the HTTP client to use, such as one with certificates of your own; it is left open. None: its own.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, url: str, http: httpx.AsyncClient | None) -> None:
        self.url = url.rstrip("/")
        parsed = check_address(self.url)
        self._own_http = http is None
        self._http = http or new_http(parsed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._own_http:
            await self._http.aclose()


def check_address(url: str) -> httpx.URL:
    """Return the address of a server.

    Raises:
        ValueError: it is none.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"not an address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
        raise ValueError("the address must look like https://host, without a query or a password")
    return parsed


def new_http(url: httpx.URL) -> httpx.AsyncClient:
    """Return an HTTP client for a server: no bound on connections, for streams hold theirs; no redirects."""
    return httpx.AsyncClient(
        verify=url.scheme == "https",  # without TLS there is no need to read the certificates of the world
        trust_env=not _is_this_machine(url.host),  # a proxy would look for it on its own machine
        limits=httpx.Limits(max_connections=None),
        headers={"User-Agent": f"sse-app/{VERSION}"},
    )


def timeouts(seconds: float) -> httpx.Timeout:
    """Return the time limits of a request that is answered at once."""
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT), pool=None)


def failure(response: httpx.Response) -> ClientError:
    """Return the error that an answer means; its body has been read."""
    code, message = "", response.reason_phrase
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        # Not the server, but a proxy in between has answered.
        if location := response.headers.get("Location", ""):
            message += f": it names another address, {redact(location)}"
    return _refusal(response.status_code, code, message, retry_after(response.headers))


def _refusal(status: int, code: str, message: str, wait: float) -> ClientError:
    text = f"{status} {code}: {message}" if code else f"{status} {message}".strip()
    if status >= 500 or status in _PASSING:
        return Unavailable(text, wait)
    if status < 300:
        return ProtocolError(f"unexpected answer {text}")
    return _REFUSALS.get(status, Refused)(text, status, code)


def meaning_of(error: Exception) -> ClientError | None:
    """Return what an exception of a caller's own function means; None where it does not speak of HTTP.

    Its status is known from ``response.status_code`` by httpx and requests, ``status`` by aiohttp, ``code`` by urllib.
    """
    if isinstance(error, ClientError):
        return error
    response: Any = getattr(error, "response", None)
    found = (
        getattr(response, "status_code", None),
        getattr(error, "status", None),
        getattr(error, "code", None),
    )
    status = next((each for each in found if isinstance(each, int)), 0)
    if status < 300:
        return lost(error) if isinstance(error, httpx.RequestError | OSError) else None
    code = ""
    # Whether there is a body, and what it raises where it was not read, is the library's matter.
    with suppress(Exception):
        code = str(response.json()["error"]["code"])
    headers = getattr(error if response is None else response, "headers", None)
    wait = retry_after(headers) if isinstance(headers, Mapping | Message) else 0.0
    return _refusal(status, code, type(error).__name__, wait)


def lost(error: httpx.RequestError | OSError) -> ClientError:
    """Return the error for a request that got no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateRefused(f"the server's certificate is not valid: {cause.verify_message}")
        cause = cause.__cause__ or cause.__context__
    where = ""
    with suppress(
        AttributeError, RuntimeError
    ):  # neither an OSError nor an error of the pool knows its request
        url = error.request.url  # type: ignore[union-attr]
        where = f" {url.scheme}://{url.netloc.decode('ascii')}"
    why = f"{type(error).__name__} {redact(str(error))}".rstrip()
    return Unavailable(f"cannot reach the server{where}: {why}")


def retry_after(headers: Mapping[str, str] | Message) -> float:
    """Return the seconds that an answer asks to wait (RFC 9110 §10.2.3), 0 where it does not."""
    text = headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        when, sent = _time_in(text), _time_in(headers.get("Date", ""))
        if when is None:
            return 0.0
        seconds = when - (time.time() if sent is None else sent)  # by the clock that has set both
    return max(0.0, min(seconds, LONGEST_RETRY_AFTER))


def _time_in(text: str) -> float | None:
    """Return an HTTP date in seconds since the epoch (RFC 9110 §5.6.7); None where it is none."""
    try:
        when = parsedate_to_datetime(text)
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Raises:
        ProtocolError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError("the answer is no JSON object: it is another server's")
    return value


def json_or_text(text: str) -> Any:
    """Return the JSON value that a text is, or the text where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
