"""From the bytes of a request's head to what it says (RFC 9112 §2 to §6). llhttp parses, strictly."""

from __future__ import annotations

import re
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from tornado.httputil import RequestStartLine

from sse_app.http.errors import BadRequest
from sse_app.http.headers import Headers

CHUNKED_BODY = -1
"""Stands for the length of a chunked body."""

MAX_FIELDS = 128
"""How many header fields a request may have: each takes far more memory than its bytes."""

MAX_PARAMETERS = 128
"""How many parameters its query may have."""

_METHODS = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"}
)
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) (HTTP/1\.[01])\r\n")
"""llhttp takes more spaces than one, and other protocols than HTTP."""

_ABSOLUTE = re.compile(
    r"(?i:https?)://((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::[0-9]*)?)((?:[/?][^#]*)?)"
)
"""Host, port, path and query (RFC 3986 §3); without user information, which is refused (RFC 9110 §4.2.4)."""

_NO_PORT = re.compile(r":[0-9]{6,}\Z")
"""What follows a host and is a number, but too large for a port; Tornado does not expect it."""

_OVERFLOWING_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*[0-9]{19,}[ \t]*\r\n")
_WHITESPACE = b" \t"


class RequestHead(NamedTuple):
    """What the head of a request says.

    Args:
        start_line: the target is in origin form, where it is not for a proxy.
        headers: ``Host`` is that of an absolute target, if the target is one (RFC 9112 §3.2.2).
        length: how many bytes the body has, or `CHUNKED_BODY`.
        keep_alive: whether the client wants to send another request (RFC 9112 §9.3).
        expects_continue: whether the client waits for 100 (Continue) before it sends the body.
    """

    start_line: RequestStartLine
    headers: Headers
    length: int
    keep_alive: bool
    expects_continue: bool


class _Fields:
    """Receives the header fields from the parser."""

    def __init__(self) -> None:
        self.headers = Headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.add(name.decode("ascii"), value.rstrip(_WHITESPACE).decode("latin-1"))


def parse_head(head: bytes) -> RequestHead:
    """Return what the head of a request says.

    Args:
        head: begins with the request line, and ends with its only empty line.

    Raises:
        BadRequest: it breaks a rule.
    """
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise BadRequest("the request line is malformed, or that of another protocol than HTTP/1.1 and 1.0")
    method, target, version = match.groups()
    if head.count(b"\r\n") > MAX_FIELDS + 2:
        raise BadRequest("there are too many headers", 431, "headers_too_large")
    if target.count(b"&") >= MAX_PARAMETERS:
        raise BadRequest("the query has too many parameters")
    headers = _parse(head, method)
    is_current = version == b"HTTP/1.1"
    hosts = headers.get_list("Host")
    if len(hosts) > 1 or (is_current and not hosts):
        raise BadRequest("a request has exactly one Host header")
    path = target.decode("ascii")
    if not path.startswith("/") and path != "*" and method != b"CONNECT":
        headers["Host"], path = _from_absolute(path)
    if _NO_PORT.search(headers.get("Host", "")):
        raise BadRequest("the port is no port number")
    start_line = RequestStartLine(method.decode("ascii"), path, version.decode("ascii"))
    options = tokens(headers["Connection"]) if "Connection" in headers else ()
    keep_alive = "close" not in options if is_current else "keep-alive" in options
    length = int(headers.get_list("Content-Length")[0]) if "Content-Length" in headers else 0
    if "Transfer-Encoding" in headers:
        if headers["Transfer-Encoding"].lower() != "chunked" or not is_current:
            raise BadRequest("the only transfer encoding is chunked, in HTTP/1.1")
        length = CHUNKED_BODY
    expects_continue = (
        is_current and "Expect" in headers and headers.get_list("Expect")[0].lower() == "100-continue"
    )
    return RequestHead(start_line, headers, length, keep_alive, expects_continue)


def tokens(value: str) -> list[str]:
    """Return the elements of a header that is a list of tokens, in lower case; such as ``Connection``."""
    return [token.strip(" \t") for token in value.lower().split(",")]


def _parse(head: bytes, method: bytes) -> Headers:
    """Return the header fields, with whitespace around their values left out."""
    if method not in _METHODS:
        # llhttp refuses methods that it does not know; here the application says which ones there are.
        head = b"GET" + head[len(method) :]
    fields = _Fields()
    try:
        HttpRequestParser(fields).feed_data(head)
    except HttpParserUpgrade:
        pass  # no other protocol is spoken here, and the server may ignore the wish for one (RFC 9110 §7.8)
    except HttpParserError:
        if _OVERFLOWING_LENGTH.search(head):
            raise BadRequest("the body is too large", 413, "too_large") from None
        raise BadRequest("the request is malformed") from None
    return fields.headers


def _from_absolute(target: str) -> tuple[str, str]:
    """Return the host and the path of a target in absolute form: a server must accept it (RFC 9112 §3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise BadRequest("the request target is malformed")
    host, path = match.groups()
    return host, path if path.startswith("/") else "/" + path
