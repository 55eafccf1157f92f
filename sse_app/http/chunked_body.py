"""A chunked body as it arrives, decoded by llhttp (RFC 9112 §7.1)."""

from __future__ import annotations

from httptools import HttpParserError, HttpRequestParser

from sse_app.http.errors import BadRequest

MAX_FRAMING = 32 * 1024
"""How many bytes of sizes, extensions and trailers may come without any content between them."""

_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"\r\n\r\n"


class _Content:
    """Receives the content from the parser. It does not know the parser, so that both go when the body does."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.complete = False

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.complete = True


class ChunkedBody:
    """Decodes one body. Extensions and trailers are read over.

    A chunked message always ends in an empty line, so the parser is fed up to one at a time: it never sees any
    of the next message, which would have to be brought back from it.
    """

    def __init__(self) -> None:
        self._content = _Content()
        self._framing = 0
        self._parser = HttpRequestParser(self._content)
        self._parser.feed_data(_HEAD)

    @property
    def complete(self) -> bool:
        """Whether all of the body has been fed."""
        return self._content.complete

    def feed(self, received: bytes) -> tuple[bytes, bytes]:
        """Decode what has been received; return the content, and the bytes that are yet to be fed.

        These are what follows the body, or a few bytes that more is needed to understand.

        Raises:
            BadRequest: it breaks a rule.
        """
        start = 0
        while not self.complete and start < len(received):
            end = received.find(_END, start)
            if end >= 0:
                end += len(_END)
            else:
                end = len(received) - _partial_end(received)
                if end <= start:
                    break
            self._feed(received[start:end])
            start = end
        pieces = self._content.pieces
        content = b"".join(pieces)
        pieces.clear()
        return content, received[start:]

    def _feed(self, piece: bytes) -> None:
        before = len(self._content.pieces)
        try:
            self._parser.feed_data(piece)
        except HttpParserError:
            raise BadRequest("the chunked body is malformed") from None
        self._framing = self._framing + len(piece) if len(self._content.pieces) == before else 0
        if self._framing > MAX_FRAMING:
            raise BadRequest("the framing of the chunked body is too large")


def _partial_end(received: bytes) -> int:
    """Return how many bytes at the end may be the beginning of an empty line."""
    for size in (3, 2, 1):
        if received.endswith(_END[:size]):
            return size
    return 0
