"""The pages that people look at, and the files that they are made of."""

from __future__ import annotations

from pathlib import Path

from tornado import web

from sse_app.handlers.base import ApiHandler
from sse_app.node import Node

STATIC = Path(__file__).parents[2] / "static"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class _PageHeaders(ApiHandler):
    """Sets the headers of everything that a browser shows."""

    def set_default_headers(self) -> None:
        """Keep a page from loading anything from other origins, and other pages from framing it."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Cache-Control", "no-cache")


class PageHandler(_PageHeaders):
    """``GET /`` and ``GET /admin``: the pages, which are public; what they show takes a login."""

    def initialize(self, node: Node, file: str) -> None:  # type: ignore[override]
        """Take the node, and the page's file."""
        super().initialize(node)
        self._file = file

    def get(self) -> None:
        """Send the page."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write((STATIC / self._file).read_bytes())


class StaticHandler(_PageHeaders, web.StaticFileHandler):
    """``GET /static/…``: modules, styles and pictures."""

    def initialize(self, node: Node) -> None:  # type: ignore[override]
        """Take the node, and serve the package's own files."""
        _PageHeaders.initialize(self, node)
        web.StaticFileHandler.initialize(self, str(STATIC))

    def parse_url_path(self, url_path: str) -> str:
        """Answer 404 for a text that cannot be the name of a file."""
        if "\0" in url_path:
            raise web.HTTPError(404)
        return web.StaticFileHandler.parse_url_path(self, url_path)

    def compute_etag(self) -> str | None:
        """Let browsers ask whether a file has changed."""
        return web.StaticFileHandler.compute_etag(self)

    def set_extra_headers(self, path: str) -> None:
        """Let browsers keep files as long as they are unchanged."""
        self.set_header("Cache-Control", "no-cache")
