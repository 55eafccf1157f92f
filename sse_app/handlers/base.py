"""What all handlers share: errors as JSON, CORS, bearer tokens, request bodies, and an access line without secrets."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Awaitable
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from tornado import httputil, web
from tornado.iostream import StreamClosedError

from sse_app.auth.tokens import mistakes
from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.core.errors import (
    AuthStoreUnavailable,
    EventLogUnavailable,
    Forbidden,
    SSEAppError,
    TokenRefused,
    TooManyPublishes,
)
from sse_app.core.json_text import to_json
from sse_app.core.private_apis import begin_response, free_cut_off, without_access_line
from sse_app.core.redaction import loggable_path
from sse_app.handlers.errors import Refusal, refusal_of
from sse_app.handlers.parsing import hint_of, parse_json
from sse_app.handlers.peer import PeerHandler
from sse_app.http.headers import Headers
from sse_app.http.request_head import MAX_LENGTH_DIGITS
from sse_app.node import Node

DRAINED_BODIES = 64
"""A body that is too large is read and thrown away up to this many times the limit; a larger one is cut off."""

SMALL_BODY_BYTES = 64 * 1024
"""How many bytes of a body are kept before the request's token has been looked at."""

CLIENT_CLOSED = 499
"""The status in the access line of a request whose client left before the answer (nginx's number for it)."""

access_log = logging.getLogger("sse_app.access")
log = logging.getLogger(__name__)

_DEFAULT_HEADERS: dict[str, tuple[str, ...]] = {
    "Content-Type": ("text/html; charset=UTF-8",),
    "Date": ("",),
    "Cache-Control": ("no-store",),
    "X-Content-Type-Options": ("nosniff",),
    "Referrer-Policy": ("no-referrer",),
}

_BEARER = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/=-]+) *")


_date = lru_cache(2)(httputil.format_timestamp)
"""Returns a time in whole seconds as headers have it."""


def _do_nothing(*path_arguments: str) -> None:
    """Take the place of the method of a request that is refused already."""


@without_access_line
@web.stream_request_body
class ApiHandler(PeerHandler):
    """The base of all handlers."""

    claims: Claims | None = None
    client_id: str | None = None
    detail = ""
    """Why the request was refused, for the log."""
    keeps_body = False
    stepped: frozenset[str] = frozenset()
    """The methods that run without a task (see `handlers.dispatch.Application`)."""

    def __init_subclass__(cls) -> None:
        """Answer HEAD wherever GET is answered (RFC 9110 §9.1): Tornado and the server leave the body out."""
        super().__init_subclass__()
        if cls.head is web.RequestHandler.head:
            cls.head = cls.get

    def initialize(self, node: Node) -> None:
        """Take the node whose parts the handler works with."""
        self.node = node
        # The query may hold a token. Its arguments are parsed; what logs the request from here on finds only the path.
        self.request.uri = loggable_path(self.request.path)
        self.request.query = ""
        self.read_origin()
        self._pieces: list[bytes] = []
        self._size = 0
        self._large = 0
        """How many bytes of the body are taken from what large bodies have together."""
        self._body_refused = False

    def clear(self) -> None:
        """Begin the response anew, with headers that keep it out of caches, and browsers from guessing its type."""
        self.answer_headers = Headers(_DEFAULT_HEADERS)
        self.answer_headers["Date"] = _date(int(time.time()))
        begin_response(self, self.answer_headers)
        self.set_default_headers()

    @property
    def body_limit(self) -> int:
        """How many bytes of body a request may have."""
        return self.node.settings.limits.body_bytes

    # -- the body -------------------------------------------------------------------------------------------

    def prepare(self) -> Awaitable[None] | None:
        """Refuse a request for another host, and a body whose Content-Length is over the limit, before it is read."""
        self.allow_origin()
        self.warn_of_untrusted_proxy()
        self.require_host()
        self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]
        length = self.request.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit():
            limit = self.body_limit
            if len(length) > MAX_LENGTH_DIGITS or int(length) > DRAINED_BODIES * limit:
                raise self._size_refusal()
            if int(length) > limit:
                if "Expect" in self.request.headers:  # the client waits for an answer before it sends
                    raise self._size_refusal()
                self._refuse_body(self._size_refusal())
        return None

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body if the handler uses bodies; of one that is over a limit nothing is kept.

        Raises:
            StreamClosedError: the body is so large that the connection is closed instead of read to its end.
        """
        self._size += len(chunk)
        limit = self.body_limit
        if not self._body_refused:
            if self._size > limit:
                self._refuse_body(self._size_refusal())
            elif self.keeps_body and self._size > SMALL_BODY_BYTES and not self._take_large():
                self._refuse_body(TooManyPublishes())
        if self._body_refused:
            self._pieces.clear()
            if self._size > DRAINED_BODIES * limit:
                raise StreamClosedError
        elif self.keeps_body:
            self._pieces.append(chunk)

    def on_connection_close(self) -> None:
        """Free what a request takes whose client left within its body: collecting cycles is seldom, such clients
        can be many."""
        super().on_connection_close()
        asyncio.get_running_loop().call_soon(
            self._free_cut_off
        )  # once the handler has learned of the body's end

    def _free_cut_off(self) -> None:
        if free_cut_off(self):  # else the body is whole, and kept until the method has done what it asks for
            self._pieces.clear()
            self._give_back_large()

    def _size_refusal(self) -> Refusal:
        return Refusal(
            413, "too_large", f"a body has at most {self.body_limit} bytes here", Connection="close"
        )

    def _take_large(self) -> bool:
        """Take of what large bodies have together as much as this one is large by now; return whether it is there."""
        more = self._size - SMALL_BODY_BYTES - self._large
        if not self.node.large_bodies.take(more):
            return False
        self._large += more
        return True

    def _give_back_large(self) -> None:
        self.node.large_bodies.give_back(self._large)
        self._large = 0

    def _refuse_body(self, error: SSEAppError) -> None:
        """Answer now, and read on: to close the connection of a client that is still sending would reset it,
        and the client would not see the answer."""
        refusal = refusal_of(error)
        assert refusal is not None
        self._body_refused = True
        self._give_back_large()
        self._write_refusal(refusal)
        self.flush()
        # Once the body is read to its end Tornado calls the method, which must neither do nor answer anything.
        setattr(self, (self.request.method or "").lower(), _do_nothing)

    # -- authorisation --------------------------------------------------------------------------------------

    def bearer_token(self, name: str = "access_token") -> str:
        """Return the token in the Authorization header (RFC 6750 §2.1).

        Args:
            name: what the login calls such a token, for the error's text.

        Raises:
            TokenRefused: there is none.
        """
        header = self.request.headers.get("Authorization")
        if header is None:
            elsewhere = (
                ", not in the query" if {"token", "access_token"} & self.request.arguments.keys() else ""
            )
            message = (
                f"this takes the {name} of the login in the Authorization header{elsewhere}: Bearer TOKEN"
            )
            raise TokenRefused(message, "no token")
        match = _BEARER.fullmatch(header)
        if match is None:
            raise TokenRefused(mistakes.of_header(header), "no bearer token")
        return match[1]

    @property
    def has_bearer_token(self) -> bool:
        """Whether there is a token in the Authorization header; what that has of another scheme is a proxy's."""
        return self.request.headers.get("Authorization", "").partition(" ")[0].lower() == "bearer"

    def access_claims(self) -> Claims:
        """Return the claims of the request's access token, which only the Authorization header may carry.

        Raises:
            TokenRefused: there is none, or it is not valid.
        """
        self.claims = self.node.tokens.verify(self.bearer_token(), TokenKind.ACCESS)
        return self.claims

    def admin_claims(self) -> Claims:
        """Return the claims of an administrator's access token.

        Raises:
            TokenRefused: there is none, or it is not valid.
            Forbidden: it does not allow administration.
        """
        claims = self.access_claims()
        if not claims.grants.admin:
            raise Forbidden("the token does not allow administration")
        return claims

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a whole number of the query.

        Raises:
            Refusal: it is not a whole number, or out of range.
        """
        text = self.get_query_argument(name, str(default), strip=False)
        if not (text.isascii() and text.isdigit() and len(text) < 17 and least <= int(text) <= most):
            raise Refusal(400, f"invalid_{name}", f"{name} must be a number from {least} to {most}")
        return int(text)

    # -- answers --------------------------------------------------------------------------------------------

    def write_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON."""
        body = to_json(value)
        self.set_status(status)
        headers = self.answer_headers  # set_header would check the values, which takes longer
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(body))
        self.write(body)

    def compute_etag(self) -> str | None:
        """Return None: answers are not cached, so none is hashed."""
        return None

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer an error of this package with its own status, and any other with the one given."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if error is None and status_code == 500:  # Tornado, of a handler that is cancelled: the process ends
            error = asyncio.CancelledError()
            kwargs["exc_info"] = (type(error), error, None)
        if self._body_refused:
            self.finish()  # the answer is out already, and no second one can follow
        elif isinstance(error, StreamClosedError):
            self.set_status(CLIENT_CLOSED, "Client Closed Request")
            self.finish()  # nothing can be sent; this ends the request and writes its access line
        else:
            refusal = refusal_of(error)
            super().send_error(status_code if refusal is None else refusal.status, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer any error as ``{"error": {"code", "message"}}``."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        refusal = refusal_of(error)
        if refusal is None:
            phrase = HTTPStatus(status_code).phrase
            reason = getattr(error, "log_message", None) if status_code < 500 else None
            if reason and status_code == 403:  # Tornado's one, of a page of another origin
                reason = f"{reason}: it is none of cors_origins"
            refusal = Refusal(status_code, phrase.lower().replace(" ", "_"), reason or phrase)
        if refusal.status == 405:
            self.set_header("Allow", ", ".join([*self.methods(), "OPTIONS"]))
            *others, last = self.methods()
            taken = f"{', '.join(others)} and {last}" if others else last
            message = f"this path takes {taken}, not {self._method_shown()}"
            refusal = Refusal(405, refusal.code, message)
        self.allow_origin()
        self._write_refusal(refusal)

    def _method_shown(self) -> str:
        method = self.request.method or ""
        return method if method in self.SUPPORTED_METHODS else "that method"

    def _write_refusal(self, refusal: Refusal) -> None:
        self.node.metrics.refusals[refusal.code] += 1
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.write_json({"error": {"code": refusal.code, "message": str(refusal)}}, refusal.status)

    # -- logs -----------------------------------------------------------------------------------------------

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log an error: one of this package by what it means to operators, an unexpected one with its traceback.

        Neither line has the request's headers and arguments in it.
        """
        if isinstance(value, (web.HTTPError, StreamClosedError)) or self._body_refused:
            return  # the access line says all there is to say
        if refusal_of(value) is None:
            request = f"{self.request.method} {self.request.uri} ({self.address})"
            log.error("uncaught: %s", request, exc_info=(typ, value, tb))
        elif isinstance(value, TokenRefused):
            self.detail = value.detail
        elif isinstance(value, AuthStoreUnavailable):
            self.detail = value.detail
            self.node.accounts_failures.add(self.detail)
        elif isinstance(value, EventLogUnavailable):
            self.detail = str(value)
            if not self.node.lifecycle.draining:
                self.node.event_log_failures.add(self.detail)
        elif isinstance(value, OSError):
            self.node.shortages.add(value.strerror or "")

    def on_finish(self) -> None:
        """Write the access line, and count the request."""
        if self._large:
            self._give_back_large()
        status = self.get_status()
        method = self.request.method or ""
        counted = method if method in self.SUPPORTED_METHODS else "other"
        self.node.metrics.requests[type(self).__name__, counted, status] += 1
        level = self.access_level(status)
        if access_log.isEnabledFor(level):
            fields: dict[str, object] = {
                "method": method,
                "path": self.request.uri,
                "status": status,
                "ms": round(self.request.request_time() * 1000, 2),
                "address": self.address,
            }
            if self.claims is not None:
                fields["subject"] = self.claims.subject
            if self.client_id is not None:
                fields["client_id"] = self.client_id
            if self.detail:
                fields["detail"] = self.detail
            access_log.log(level, "request", extra=fields)

    def access_level(self, status: int) -> int:
        """Return the log level of the access line: DEBUG for a success, ERROR for a 500, else INFO."""
        return logging.DEBUG if status < 400 else logging.ERROR if status == 500 else logging.INFO


class BodyHandler(ApiHandler):
    """The base of handlers that take a JSON body."""

    keeps_body = True

    @property
    def body_limit(self) -> int:
        """How many bytes of body a request may have: few, for they are kept before it is known whose they are."""
        return min(SMALL_BODY_BYTES, super().body_limit)

    def body(self) -> bytes:
        """Return the body.

        Raises:
            Refusal: it has a Content-Encoding.
        """
        if self.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "unsupported_encoding", "a body must not have a Content-Encoding")
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def json_object(
        self, body: bytes | None = None, hint: str = "", form: str = "a JSON object"
    ) -> dict[str, Any]:
        """Return the body as a JSON object.

        Args:
            body: where the caller has it already.
            hint: what the error's text is to say beside; where it is empty, what can be told of any body.
            form: what the object has to be, for the error's text.

        Raises:
            Refusal: it is not JSON, or not an object.
        """
        body = self.body() if body is None else body
        if not body:
            raise Refusal(400, "invalid_json", f"the body is empty: this takes {form}{hint}")
        try:
            value = parse_json(body)
        except ValueError as error:
            hint = hint or hint_of(body, self.request.headers.get("Content-Type", ""))
            raise Refusal(400, "invalid_json", f"the body is not JSON: {error}{hint}") from None
        if not isinstance(value, dict):
            raise Refusal(422, "invalid_input", f"the body must be a JSON object: this takes {form}{hint}")
        return value


class NotFoundHandler(ApiHandler):
    """Answers 404 for every path that no other handler is mounted at."""

    def get(self) -> None:
        """Refuse with ``not_found``."""
        path = self.request.path
        hint = "/openapi.json lists what there is"
        if path.startswith("/api/v1/sse/connections/"):
            hint = "a client_id matches [A-Za-z0-9._-]{1,64}"
        elif path.startswith("/api/v1/sse/"):
            hint = "the name of a channel has no slash: its parts have dots between them, such as user.ann.orders"
        if path.endswith("/"):
            hint = "no path but / has a slash at its end"
        raise Refusal(404, "not_found", f"there is nothing here: {hint}")

    post = put = patch = delete = get
