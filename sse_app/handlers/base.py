"""What all handlers share: errors as JSON, CORS, bearer tokens, bodies, and an access line without secrets."""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

import orjson
from tornado import web
from tornado.iostream import StreamClosedError

from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.core.errors import EventLogUnavailable, TokenRefused
from sse_app.handlers.client_address import client_address, is_in
from sse_app.handlers.cors import OriginHandler
from sse_app.handlers.errors import Refusal, refusal_of
from sse_app.node import Node
from sse_app.process.logs import loggable_path

DRAINED_BODIES = 64
"""How many times the largest body is read and thrown away of a body that is larger."""

MAX_LENGTH_DIGITS = 18

access_log = logging.getLogger("sse_app.access")
log = logging.getLogger(__name__)

_BEARER = re.compile(r"(?i:bearer) +([A-Za-z0-9._~+/=-]+) *")


@web.stream_request_body
class ApiHandler(OriginHandler):
    """The base of all handlers."""

    claims: Claims | None = None
    client_id: str | None = None
    keeps_body = False

    def initialize(self, node: Node) -> None:
        """Take the parts that the handler works with."""
        self.node = node
        self._pieces: list[bytes] = []
        self._size = 0
        self._too_large = False

    def set_default_headers(self) -> None:
        """Keep answers out of caches, and browsers from guessing what they are."""
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.clear_header("Server")

    def prepare(self) -> Awaitable[None] | None:
        """Refuse a body that says it is too large before it comes."""
        self.allow_origin()
        self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]
        length = self.request.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit():
            limit = self.node.settings.limits.body_bytes
            if len(length) > MAX_LENGTH_DIGITS or int(length) > DRAINED_BODIES * limit:
                raise self._size_refusal()
            if int(length) > limit:
                if "Expect" in self.request.headers:  # the client waits for our word before it sends the body
                    raise self._size_refusal()
                self._refuse_size()
        return None

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body, if anybody wants it; past the limit nothing is kept."""
        self._size += len(chunk)
        limit = self.node.settings.limits.body_bytes
        if self._size > limit and not self._too_large:
            self._refuse_size()
        if self._too_large:
            self._pieces.clear()
            if self._size > DRAINED_BODIES * limit:
                raise StreamClosedError
        elif self.keeps_body:
            self._pieces.append(chunk)

    def _size_refusal(self) -> Refusal:
        limit = self.node.settings.limits.body_bytes
        return Refusal(413, "too_large", f"a body has at most {limit} bytes", Connection="close")

    def _refuse_size(self) -> None:
        """Answer 413 now, and go on reading: closing on a client that is still sending would reset its
        connection, and it would not see the answer."""
        self._too_large = True
        refusal = self._size_refusal()
        self._write_refusal(refusal)
        self.set_header("Content-Length", sum(len(piece) for piece in self._write_buffer))
        self.flush()

    # -- authorisation --------------------------------------------------------------------------------------

    def bearer_token(self) -> str:
        """Return the token in the Authorization header (RFC 6750 §2.1).

        Raises:
            TokenRefused: there is none.
        """
        header = self.request.headers.get("Authorization")
        if header is None:
            raise TokenRefused("this takes a token in the Authorization header", "no token")
        match = _BEARER.fullmatch(header)
        if match is None:
            raise TokenRefused("the Authorization header must be: Bearer TOKEN", "no bearer token")
        return match[1]

    def access_claims(self) -> Claims:
        """Return what the access token of the request says: only the header carries it.

        Raises:
            TokenRefused: there is none, or it is not valid.
        """
        self.claims = self.node.tokens.verify(self.bearer_token(), TokenKind.ACCESS)
        return self.claims

    def admin_claims(self) -> Claims:
        """Return what the access token of an administrator says.

        Raises:
            TokenRefused: there is none, or it is not valid.
            Refusal: it does not allow administration.
        """
        claims = self.access_claims()
        if not claims.grants.admin:
            raise Refusal(403, "forbidden", "the token does not allow administration")
        return claims

    @property
    def address(self) -> str:
        """The address of the client: what a trusted proxy says, or else the connection's own."""
        peer = self.request.remote_ip or "unknown"
        trusted = self.node.settings.trusted_proxies
        if trusted and "X-Forwarded-For" in self.request.headers:
            return client_address(peer, self.request.headers.get_list("X-Forwarded-For"), trusted)
        return peer

    @property
    def came_directly(self) -> bool:
        """Whether nothing speaks of a proxy that is not trusted, so that `address` is the client's own."""
        if is_in(self.request.remote_ip or "", self.node.settings.trusted_proxies):
            return True
        return not any(name in self.request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip"))

    def require_local(self) -> None:
        """Let in only who may read the metrics.

        Raises:
            Refusal: the address is not among ``metrics.allow``, or the request came through a proxy.
        """
        if not is_in(self.address, self.node.settings.metrics.allow) or not self.came_directly:
            raise Refusal(403, "forbidden", "metrics are not for this address")

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a whole number of the query.

        Raises:
            Refusal: it is none, or out of range.
        """
        text = self.get_query_argument(name, str(default), strip=False)
        if not (text.isascii() and text.isdigit() and len(text) < 17 and least <= int(text) <= most):
            raise Refusal(400, f"invalid_{name}", f"{name} must be a number from {least} to {most}")
        return int(text)

    # -- answers --------------------------------------------------------------------------------------------

    def write_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.write(orjson.dumps(value))

    def compute_etag(self) -> str | None:
        """Nothing here is cached, so no answer is hashed."""
        return None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer any error as ``{"error": {"code", "message"}}``."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        refusal = refusal_of(error) if error is not None else None
        if refusal is None:
            phrase = HTTPStatus(status_code).phrase
            reason = getattr(error, "log_message", None) if status_code < 500 else None
            refusal = Refusal(status_code, phrase.lower().replace(" ", "_"), reason or phrase)
        if refusal.status == 405:
            self.set_header("Allow", ", ".join([*self.methods(), "OPTIONS"]))
        self.allow_origin()
        self._write_refusal(refusal)

    def _write_refusal(self, refusal: Refusal) -> None:
        self.node.metrics.refusals[refusal.code] += 1
        for name, value in refusal.headers.items():
            self.set_header(name, value)
        self.write_json({"error": {"code": refusal.code, "message": str(refusal)}}, refusal.status)

    def _handle_request_exception(self, e: BaseException) -> None:
        """Answer our own errors without Tornado's logging them as uncaught."""
        if self._too_large and not self._finished:
            self.finish()  # it is answered, whatever else is wrong with it
            return
        if isinstance(e, StreamClosedError):
            self.set_status(499, "Client Closed Request")  # nobody is there to answer
            self._finished = True
            self._log()
            return
        refusal = refusal_of(e)
        if refusal is None or self._finished:
            super()._handle_request_exception(e)
            return
        if isinstance(e, TokenRefused):
            log.info("token_refused", extra={"detail": e.detail, "address": self.address})
        elif isinstance(e, sqlite3.OperationalError):
            log.error("accounts_unavailable", extra={"detail": str(e)})
        elif isinstance(e, EventLogUnavailable):
            level = logging.INFO if self.node.draining else logging.ERROR
            log.log(level, "event_log_unavailable", extra={"detail": str(e)})
        self.send_error(refusal.status, exc_info=(type(e), e, e.__traceback__))

    # -- logs: the URI may hold a token, so nothing of it but the path is ever logged ------------------------

    def _request_summary(self) -> str:
        return f"{self.request.method} {loggable_path(self.request.path)} ({self.address})"

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log an error that nobody expected, without the request's headers and arguments."""
        if isinstance(value, web.HTTPError):
            return  # the access line says it all
        log.error("uncaught: %s", self._request_summary(), exc_info=(typ, value, tb))

    def _log(self) -> None:
        """Write the access line, and count the request."""
        status = self.get_status()
        method = self.request.method or ""
        counted = method if method in self.SUPPORTED_METHODS else "other"
        self.node.metrics.requests[type(self).__name__, counted, status] += 1
        level = self.access_level(status)
        if access_log.isEnabledFor(level):
            fields: dict[str, object] = {
                "method": method,
                "path": loggable_path(self.request.path),
                "status": status,
                "ms": round(self.request.request_time() * 1000, 2),
                "address": self.address,
            }
            if self.claims is not None:
                fields["subject"] = self.claims.subject
            if self.client_id is not None:
                fields["client_id"] = self.client_id
            access_log.log(level, "request", extra=fields)

    def access_level(self, status: int) -> int:
        """Return the log level of the access line: routine successes are for debugging, a 500 is our mistake."""
        return logging.DEBUG if status < 400 else logging.ERROR if status == 500 else logging.INFO


class NotFoundHandler(ApiHandler):
    """Answers for every path that nothing else is at."""

    def get(self) -> None:
        """Say that nothing is here."""
        raise Refusal(404, "not_found", "there is nothing here")

    head = post = put = patch = delete = get
