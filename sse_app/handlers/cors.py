"""What browsers are told of other origins: CORS, and whom a cookie may be trusted from."""

from __future__ import annotations

from tornado import web

from sse_app.node import Node


class OriginHandler(web.RequestHandler):
    """Answers preflights, and lets pages of the configured origins read answers (Fetch §3.3)."""

    node: Node

    def allow_origin(self) -> None:
        """Let pages of the configured origins read the answer (Fetch §3.3)."""
        origins = self.node.settings.cors_origins
        if not origins:
            return
        self.add_header("Vary", "Origin")
        origin = self.request.headers.get("Origin")
        if origin in origins:
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Allow-Credentials", "true")
            self.set_header("Access-Control-Expose-Headers", "Retry-After")

    def check_trusted_origin(self, origin: str) -> bool:
        """Let pages anywhere ask what takes a bearer token only: no cookie speaks for their visitors here."""
        return True

    def options(self, *args: str) -> None:
        """Answer a CORS preflight."""
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", ", ".join(self.methods()))
            self.set_header(
                "Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
            )
            self.set_header("Access-Control-Max-Age", "600")
        self.set_header("Allow", ", ".join([*self.methods(), "OPTIONS"]))
        self.set_status(204)

    def methods(self) -> list[str]:
        """Return the methods that this handler has."""
        missing = web.RequestHandler._unimplemented_method
        return [
            method
            for method in self.SUPPORTED_METHODS
            if method != "OPTIONS" and getattr(type(self), method.lower()) is not missing
        ]
