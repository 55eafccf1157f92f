"""Framing: how a stream's bytes are written into the body of its response; pure, no I/O (RFC 9112 §7.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import final


@final
class Framing:
    """One way to write an event stream into a response body; streams that share it share the framed bytes.

    Args:
        name: unique among the framings; a handover names them by it.
        frame: returns a payload as it stands in the body; the payload must not be empty.
        end: ends the body, after the last frame.
        headers: the response headers that say how the body is framed.
    """

    __slots__ = ("end", "frame", "headers", "name")

    def __init__(
        self,
        name: str,
        frame: Callable[[bytes], bytes],
        *,
        end: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.frame = frame
        self.end = end
        self.headers = headers or {}

    def __repr__(self) -> str:
        return f"<Framing {self.name}>"


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _as_it_is(payload: bytes) -> bytes:
    return payload


CHUNKED = Framing("chunked", _chunk, end=b"0\r\n\r\n", headers={"Transfer-Encoding": "chunked"})
"""Each payload is one chunk of a chunked body."""

UNFRAMED = Framing("unframed", _as_it_is)
"""The body is the payloads, and ends with the connection."""

FRAMINGS: Mapping[str, Framing] = {framing.name: framing for framing in (CHUNKED, UNFRAMED)}
"""All framings, by name."""


def framing_for(http_version: str) -> Framing:
    """Return the framing that a client of this HTTP version, such as ``HTTP/1.1``, understands."""
    return UNFRAMED if http_version == "HTTP/1.0" else CHUNKED


def framed(payload: bytes) -> Callable[[Framing], bytes]:
    """Return a function that returns the payload in a framing, and frames it once for each."""
    return cache(lambda framing: framing.frame(payload))
