"""Handlers that take a JSON body."""

from __future__ import annotations

from typing import Any

from sse_app.handlers.base import ApiHandler
from sse_app.handlers.errors import Refusal
from sse_app.handlers.json_body import parse_json


class BodyHandler(ApiHandler):
    """The base of handlers that take a JSON body, up to the configured size."""

    keeps_body = True

    def body(self) -> bytes:
        """Return the body.

        Raises:
            Refusal: it is encoded.
        """
        if self.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "unsupported_encoding", "a body must not have a Content-Encoding")
        return b"".join(self._pieces)

    def json_object(self, body: bytes | None = None) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            Refusal: it is no JSON, or no object.
        """
        try:
            value = parse_json(self.body() if body is None else body)
        except ValueError as error:
            raise Refusal(400, "invalid_json", f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refusal(422, "invalid_input", "the body must be a JSON object")
        return value
