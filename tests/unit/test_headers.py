"""Headers do what Tornado's do: the handlers take the one for the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from sse_app.http.headers import Headers

NAMES = ("Content-Type", "content-type", "CONTENT-TYPE", "x", "X-1a-bC", "Set-Cookie", "-", "x" * 100)

USES: dict[str, Callable[[HTTPHeaders], Any]] = {
    "set": lambda headers: headers.__setitem__("content-TYPE", "b"),
    "set after several": lambda headers: headers.__setitem__("set-cookie", "c"),
    "add": lambda headers: headers.add("x", "y"),
    "add a long name": lambda headers: headers.add("n" * 100, "y"),
    "delete": lambda headers: headers.__delitem__("CONTENT-type"),
    "pop": lambda headers: headers.pop("set-cookie"),
    "pop nothing": lambda headers: headers.pop("nothing", None),
    "update": lambda headers: headers.update({"a": "1", "content-type": "2"}),
    "clear": lambda headers: headers.clear(),
    "setdefault": lambda headers: headers.setdefault("content-type", "z"),
    "nothing": lambda headers: None,
}


def filled(headers: HTTPHeaders) -> HTTPHeaders:
    headers["Content-Type"] = "text/plain"
    headers.add("set-cookie", "a=1")
    headers.add("Set-Cookie", "b=2")
    headers["empty"] = ""
    return headers


def content(headers: HTTPHeaders) -> tuple[Any, ...]:
    return (
        list(headers.get_all()),
        list(headers),
        len(headers),
        dict(headers),
        str(headers),
        [headers.get(name) for name in (*NAMES, "empty", "Empty")],
        [headers.get(name, "none") for name in (*NAMES, "empty")],
        [headers.get_list(name) for name in NAMES],
        [name in headers for name in NAMES],
    )


@pytest.mark.parametrize("use", USES)
def test_headers_are_used_as_tornados(use: str) -> None:
    ours, theirs = filled(Headers()), filled(HTTPHeaders())
    assert USES[use](ours) == USES[use](theirs)
    assert content(ours) == content(theirs)
    assert content(HTTPHeaders(ours)) == content(theirs)


def test_a_name_that_is_not_there_is_an_error_as_with_tornados() -> None:
    for headers in (Headers(), HTTPHeaders()):
        with pytest.raises(KeyError):
            headers["Content-Type"]
        with pytest.raises(KeyError):
            del headers["Content-Type"]


def test_a_copy_is_independent() -> None:
    headers = Headers({"A": ("1",)})
    for other in (headers.copy(), copy.copy(headers)):
        other.add("A", "2")
        other["B"] = "3"
        assert list(headers.get_all()) == [("A", "1")]
    headers["A"] = "4"
    assert list(other.get_all()) == [("A", "1"), ("A", "2"), ("B", "3")]
