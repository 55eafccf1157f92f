"""The pages that people look at, and the files that they are made of."""

from __future__ import annotations

import html
from collections.abc import Generator
from functools import cache
from pathlib import Path

from tornado import web

from sse_app.handlers.base import ApiHandler
from sse_app.handlers.errors import Refusal
from sse_app.node import Node

PACKAGE = Path(__file__).parents[2]
STATIC = PACKAGE / "static"
_CHECKOUT = PACKAGE.parent
DOCUMENTS = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else PACKAGE) / "docs"
"""The documents: beside the package in a checkout, in it where it is installed."""

_contents: dict[Path, tuple[int, bytes]] = {}
"""The files that have been read, each with the time of its last change."""

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".ts": "application/typescript",  # what types the modules have
}
"""Of the files by the ends of their names: Tornado would read what is known on this machine of two thousand others."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def read_ahead() -> None:
    """Read all files: when they are asked for, there may be no file descriptor left to open one with."""
    for path in (*STATIC.rglob("*"), *documents().values()):
        if path.is_file():
            content_of(path)


@cache
def documents() -> dict[str, Path]:
    """Return the documents by the names of their files; none where the package was installed without them."""
    return {path.name: path for path in sorted(DOCUMENTS.glob("*.md"))}


def content_of(path: Path) -> bytes:
    """Return the content of a file, which is read again only when it has changed."""
    changed_at = path.stat().st_mtime_ns
    known = _contents.get(path)
    if known is None or known[0] != changed_at:
        known = _contents[path] = (changed_at, path.read_bytes())
    return known[1]


@cache
def _links() -> bytes:
    """Return the documents as items of a list, each by its title, which is its first line."""
    titles = {name: content_of(path).decode().partition("\n")[0] for name, path in documents().items()}
    items = (
        f'<li><a href="/docs/{name}">{html.escape(title.lstrip("# "))}</a></li>'
        for name, title in titles.items()
    )
    return "".join(items).encode()


class _PageHeaders(ApiHandler):
    """Sets the headers of everything that a browser shows."""

    def set_default_headers(self) -> None:
        """Keep a page from loading anything from other origins, and other pages from framing it."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Cache-Control", "no-cache")


class PageHandler(_PageHeaders):
    """``GET /`` and ``GET /admin``: the pages, which are public; what the dashboard shows takes a login."""

    def initialize(self, node: Node, file: str) -> None:  # type: ignore[override]
        """Take the node, and the page's file."""
        super().initialize(node)
        self._file = file

    def get(self) -> None:
        """Send the page, with links to the documents where it wants them."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write(content_of(STATIC / self._file).replace(b"<!-- documents -->", _links()))


class DocumentHandler(_PageHeaders):
    """``GET /docs/NAME.md``: the documents, as they are written."""

    def get(self, name: str) -> None:
        """Send the text.

        Raises:
            Refusal: there is none of that name.
        """
        path = documents().get(name)
        if path is None:
            raise Refusal(404, "not_found", "there is no document of that name")
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write(content_of(path))


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

    @classmethod
    def get_content(
        cls, abspath: str, start: int | None = None, end: int | None = None
    ) -> Generator[bytes, None, None]:
        """Yield a file's content, or the part of it that is asked for."""
        yield content_of(Path(abspath))[start:end]

    def get_content_size(self) -> int:
        """Return the length of what `get_content` yields."""
        assert self.absolute_path is not None
        return len(content_of(Path(self.absolute_path)))

    def get_content_type(self) -> str:
        """Return the file's type."""
        assert self.absolute_path is not None
        return _TYPES.get(Path(self.absolute_path).suffix, "application/octet-stream")

    def compute_etag(self) -> str | None:
        """Let browsers ask whether a file has changed."""
        return web.StaticFileHandler.compute_etag(self)

    def set_extra_headers(self, path: str) -> None:
        """Let browsers keep files as long as they are unchanged."""
        self.set_header("Cache-Control", "no-cache")
