"""Answers to requests that no handler sees: what is not HTTP, or too large for it."""

from __future__ import annotations

import time
from http import HTTPStatus

from tornado.httputil import format_timestamp

from sse_app.core.errors import SSEAppError
from sse_app.core.json_text import to_json


class BadRequest(SSEAppError):
    """A request cannot be read; the connection ends with this answer, for where the next one begins is not known.

    Args:
        message: a sentence for the client, with nothing of the request in it.
        status: the HTTP status.
        code: for programs.
    """

    def __init__(self, message: str, status: int = 400, code: str = "bad_request") -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self) -> bytes:
        """Return the whole answer, in the form and with the headers of all other errors."""
        body = to_json({"error": {"code": self.code, "message": str(self)}})
        lines = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            "Content-Type: application/json",
            f"Date: {format_timestamp(time.time())}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Referrer-Policy: no-referrer",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "\r\n",
        )
        return "\r\n".join(lines).encode() + body
