"""The head of a response, as bytes (RFC 9112 §4)."""

from __future__ import annotations

from tornado.httputil import HTTPHeaders, ResponseStartLine


def encode_head(start_line: ResponseStartLine, headers: HTTPHeaders) -> bytes:
    """Return the status line, the headers and the empty line behind them.

    Raises:
        ValueError: a header contains CR or LF, with which it would forge others, or is not Latin-1.
    """
    lines = [f"HTTP/1.1 {start_line.code} {start_line.reason}"]
    lines += [f"{name}: {value}" for name, value in headers.get_all()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    if head.count(b"\r") != len(lines) + 1 or head.count(b"\n") != len(lines) + 1:
        raise ValueError("a header must not contain CR or LF")
    return head
