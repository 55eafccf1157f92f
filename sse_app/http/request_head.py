"""From the bytes of a request's head to what it says (RFC 9112 §2 to §6). llhttp parses, strictly."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from tornado.httputil import RequestStartLine

from sse_app.http.errors import BadRequest
from sse_app.http.headers import LONGEST_REMEMBERED, Headers, form_anew, usual_form

CHUNKED_BODY = -1
"""Stands for the length of a chunked body."""

MAX_FIELDS = 128
"""How many header fields a request may have: each takes far more memory than its bytes."""

MAX_PARAMETERS = 128
"""How many parameters its query may have."""

MAX_PORT_DIGITS = 5

LONGEST_LINE_REMEMBERED = 255
"""How many bytes a request line has at most whose parts are remembered."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) (HTTP/1\.[01])")
"""llhttp takes more spaces than one, and other protocols than HTTP."""

_ABSOLUTE = re.compile(
    r"(?i:https?)://((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::[0-9]*)?)((?:[/?][^#]*)?)"
)
"""Host, port, path and query (RFC 3986 §3); without user information, which is refused (RFC 9110 §4.2.4)."""

_OVERFLOWING_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*[0-9]{19,}[ \t]*\r\n")
MAX_LENGTH_DIGITS = 18
"""How many digits of a ``Content-Length`` are read as a number; a longer one is too large in any case."""

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
        self.lines: dict[str, tuple[str, ...]] = {}
        """The values of each name, in its usual form."""

    def on_header(self, name: bytes, value: bytes) -> None:
        form = usual_form if len(name) <= LONGEST_REMEMBERED else form_anew
        field = form(name.decode("ascii"))
        self.lines[field] = (*self.lines.get(field, ()), value.rstrip(_WHITESPACE).decode("latin-1"))


def parse_head(head: bytes) -> RequestHead:
    """Return what the head of a request says.

    Args:
        head: begins with the request line, and ends with its only empty line.

    Raises:
        BadRequest: it breaks a rule.
    """
    line = head[: head.find(b"\r\n")]
    remembered = len(line) <= LONGEST_LINE_REMEMBERED and b"?" not in line  # a query may hold a token
    start_line = (_start_line if remembered else _start_line_anew)(line)
    if head.count(b"\r\n") > MAX_FIELDS + 2:
        raise BadRequest("there are too many headers", 431, "headers_too_large")
    method, path, version = start_line
    if path.count("&") >= MAX_PARAMETERS:
        raise BadRequest("the query has too many parameters")
    lines = _parse(head, method)
    is_current = version == "HTTP/1.1"
    hosts = lines.get("Host", ())
    if len(hosts) > 1 or (is_current and not hosts):
        raise BadRequest("a request has exactly one Host header")
    if not path.startswith("/") and path != "*" and method != "CONNECT":
        host, path = _from_absolute(path)
        lines["Host"] = hosts = (host,)
        start_line = RequestStartLine(method, path, version)
    if hosts and _has_no_port(hosts[0]):
        raise BadRequest("the port is no port number")
    options = tokens(",".join(lines["Connection"])) if "Connection" in lines else ()
    keep_alive = "close" not in options if is_current else "keep-alive" in options
    length = _length(lines["Content-Length"][0]) if "Content-Length" in lines else 0
    if "Transfer-Encoding" in lines:
        if ",".join(lines["Transfer-Encoding"]).lower() != "chunked" or not is_current:
            raise BadRequest("the only transfer encoding is chunked, in HTTP/1.1")
        length = CHUNKED_BODY
    expects_continue = is_current and "Expect" in lines and lines["Expect"][0].lower() == "100-continue"
    return RequestHead(start_line, Headers(lines), length, keep_alive, expects_continue)


def _length(value: str) -> int:
    """Return the length that a ``Content-Length`` tells; the parser lets any number of zeros before it pass.

    Raises:
        BadRequest: it is too long.
    """
    if len(value) > MAX_LENGTH_DIGITS:
        raise BadRequest("the body is too large", 413, "too_large")
    return int(value)


def tokens(value: str) -> list[str]:
    """Return the elements of a header that is a list of tokens, in lower case; such as ``Connection``."""
    return [token.strip(" \t") for token in value.lower().split(",")]


def _start_line_anew(line: bytes) -> RequestStartLine:
    """Return the request line's parts.

    Raises:
        BadRequest: it is malformed.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadRequest("the request line is malformed, or that of another protocol than HTTP/1.1 and 1.0")
    return RequestStartLine(*(part.decode("ascii") for part in match.groups()))


_start_line = lru_cache(1024)(_start_line_anew)


def _has_no_port(host: str) -> bool:
    """Return whether what follows a host is a number, but too large for a port; Tornado does not expect it."""
    _, colon, port = host.rpartition(":")
    return bool(colon) and len(port) > MAX_PORT_DIGITS and port.isdecimal()


def _parse(head: bytes, method: str) -> dict[str, tuple[str, ...]]:
    """Return the values of each header field, with whitespace around them left out."""
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
    return fields.lines


def _from_absolute(target: str) -> tuple[str, str]:
    """Return the host and the path of a target in absolute form: a server must accept it (RFC 9112 §3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise BadRequest("the request target is malformed")
    host, path = match.groups()
    return host, path if path.startswith("/") else "/" + path
