"""CORS: which answers pages of other origins may read, and which of their requests are refused."""

from __future__ import annotations

from urllib.parse import urlsplit

from tornado import httputil, web

from sse_app.node import Node

_ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
_SAFE_SITES = ("same-origin", "none")
"""Values of Sec-Fetch-Site for requests from pages of this server, and for those that no page has caused."""


class OriginHandler(web.RequestHandler):
    """Answers preflights, and lets pages of the configured origins read answers (Fetch §3.3)."""

    node: Node
    _readable = False

    def read_origin(self) -> None:
        """Take an ``Origin`` that cannot be parsed for ``null``, which is no server's (Fetch §3.2).

        Tornado parses it too, before `prepare`, and would answer 500.
        """
        headers = self.request.headers
        if "Origin" in headers and not _is_url(headers["Origin"]):
            headers["Origin"] = "null"

    def allow_origin(self) -> None:
        """Let pages of the configured origins read the answer (Fetch §3.3)."""
        origins = self.node.settings.cors_origins
        if not origins:
            return
        self.add_header("Vary", "Origin")
        origin = self.request.headers.get("Origin")
        if origin in origins:
            self._readable = True
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Credentials", "true")
            self.set_header("Access-Control-Expose-Headers", "Retry-After")

    def check_trusted_origin(self, origin: str) -> bool:
        """Return True: a request that takes a bearer token has no use for a cookie, so any page may send it."""
        return True

    def cross_origin_problem(self) -> str | None:
        """Return why a request that changes something is refused for the page it comes from, or None.

        Tornado checks the same where the application sets ``cross_origin_protection``; this one holds also for
        handlers that are mounted in an application without it. A request without ``Sec-Fetch-Site`` comes from
        an old browser or over plain HTTP, one without ``Origin`` too is not from a browser.
        """
        headers = self.request.headers
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        if site in _SAFE_SITES:
            return None
        if site is None:
            if origin is None or _is_of_host(origin, headers) or self.check_trusted_origin(origin):
                return None
            return f"Origin {origin!r} not allowed: it is none of cors_origins"
        if origin and self.check_trusted_origin(origin):
            return None
        return f"Sec-Fetch-Site {site} & origin {origin!r} not allowed: it is none of cors_origins"

    def options(self, *args: str) -> None:
        """Answer a CORS preflight."""
        if self._readable:
            self.set_header("Access-Control-Allow-Methods", ", ".join(self.methods()))
            self.set_header("Access-Control-Allow-Headers", _ALLOWED_HEADERS)
            self.set_header("Access-Control-Max-Age", "600")
        self.set_header("Allow", ", ".join([*self.methods(), "OPTIONS"]))
        self.set_status(204)

    def methods(self) -> list[str]:
        """Return the methods that this handler has, OPTIONS aside."""
        return [
            method
            for method in self.SUPPORTED_METHODS
            if method != "OPTIONS"
            and getattr(type(self), method.lower()) is not getattr(web.RequestHandler, method.lower())
        ]


def _is_url(text: str) -> bool:
    try:
        urlsplit(text)
    except ValueError:
        return False
    return True


def _is_of_host(origin: str, headers: httputil.HTTPHeaders) -> bool:
    """Return whether an origin has the host and port that the request was sent to."""
    return urlsplit(origin).netloc.lower() == headers.get("Host", "").lower()
