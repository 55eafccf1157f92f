"""From the bytes of a request's head to what it says (RFC 9112 §2 to §6). llhttp parses, strictly."""

from __future__ import annotations

import re
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from tornado.httputil import HTTPHeaders, HTTPInputError, RequestStartLine, parse_request_start_line

from sse_app.http.errors import BadRequest

CHUNKED = -1
"""Stands for the length of a chunked body."""

_METHODS = frozenset(
    {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"}
)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ABSOLUTE = re.compile(
    r"(?i:https?)://((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::[0-9]*)?)((?:[/?][^#]*)?)"
)
"""Host, port, path and query (RFC 3986 §3); without a user, who would be refused (RFC 9110 §4.2.4)."""

_OVERFLOWING_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*[0-9]{19,}[ \t]*\r\n")
_WHITESPACE = " \t"


class RequestHead(NamedTuple):
    """What the head of a request says.

    Args:
        start_line: the target is in origin form, where it is not for a proxy.
        headers: ``Host`` is that of an absolute target, if the target is one (RFC 9112 §3.2.2).
        length: how many bytes the body has, or `CHUNKED`.
        keep_alive: whether the client wants to send another request (RFC 9112 §9.3).
        expects_continue: whether the client waits for 100 (Continue) before it sends the body.
    """

    start_line: RequestStartLine
    headers: HTTPHeaders
    length: int
    keep_alive: bool
    expects_continue: bool


class _Fields:
    """Receives the header fields from the parser."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.received.append((name, value))


def parse_head(head: bytes) -> RequestHead:
    """Return what the head of a request says.

    Args:
        head: begins with the request line, and ends with its only empty line.

    Raises:
        BadRequest: it breaks a rule.
    """
    start_line = _start_line(head)
    headers = _headers(head)
    hosts = headers.get_list("Host")
    if len(hosts) > 1 or (not hosts and start_line.version == "HTTP/1.1"):
        raise BadRequest("a request has exactly one Host header")
    if not start_line.path.startswith("/"):
        start_line = _from_absolute(start_line, headers)
    options = tokens(headers.get("Connection"))
    keep_alive = "close" not in options if start_line.version == "HTTP/1.1" else "keep-alive" in options
    expects = start_line.version == "HTTP/1.1" and headers.get("Expect", "").lower() == "100-continue"
    return RequestHead(start_line, headers, _length(start_line, headers), keep_alive, expects)


def tokens(value: str | None) -> list[str]:
    """Return the elements of a header that is a list of tokens, in lower case; such as ``Connection``."""
    return [token.strip(_WHITESPACE) for token in value.lower().split(",")] if value else []


def _start_line(head: bytes) -> RequestStartLine:
    """Return the request line; llhttp takes more spaces than one, and other protocols than HTTP."""
    try:
        start_line = parse_request_start_line(head[: head.index(b"\r\n")].decode("latin-1"))
    except HTTPInputError:
        raise BadRequest("the request line is malformed") from None
    if start_line.version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest("only HTTP/1.1 and HTTP/1.0 are supported")
    return start_line


def _headers(head: bytes) -> HTTPHeaders:
    method = head[: head.index(b" ")]
    if method not in _METHODS and _TOKEN.fullmatch(method):
        # llhttp refuses methods that it does not know; here the application says which ones there are.
        head = b"GET" + head[len(method) :]
    fields = _Fields()
    try:
        HttpRequestParser(fields).feed_data(head)
    except HttpParserUpgrade:
        pass  # no other protocol is spoken here, and the server may go on with this one (RFC 9110 §7.8)
    except HttpParserError:
        if _OVERFLOWING_LENGTH.search(head):
            raise BadRequest("the body is too large", 413, "too_large") from None
        raise BadRequest("the request is malformed") from None
    headers = HTTPHeaders()
    seen = set()
    for raw, content in fields.received:
        name = raw.decode("ascii")
        value = content.decode("latin-1").rstrip(_WHITESPACE)
        if (key := name.lower()) in seen:
            headers.add(name, value)
        else:
            seen.add(key)
            headers[name] = value
    return headers


def _from_absolute(start_line: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """Bring a target in absolute form into origin form: a server must accept it (RFC 9112 §3.2.2)."""
    if start_line.method == "CONNECT" or start_line.path == "*":
        return start_line
    match = _ABSOLUTE.fullmatch(start_line.path)
    if match is None:
        raise BadRequest("the request target is malformed")
    host, path = match.groups()
    headers["Host"] = host
    return start_line._replace(path=path if path.startswith("/") else "/" + path)


def _length(start_line: RequestStartLine, headers: HTTPHeaders) -> int:
    """Return the length of the body (RFC 9112 §6.3)."""
    encoding = headers.get("Transfer-Encoding")
    if encoding is None:
        return int(headers.get("Content-Length", "0"))
    if encoding.lower() != "chunked" or start_line.version == "HTTP/1.0":
        raise BadRequest("the only transfer encoding is chunked, in HTTP/1.1")
    return CHUNKED
