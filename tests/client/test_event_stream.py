"""The parser of the Python client: the cases of LaunchDarkly's contract tests for SSE clients, and the standard's."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.client.event_stream import EventStreamParser, Sent
from sse_app.core.events import MAX_RETRY

BOM = "\ufeff"


def parsed(stream: str | bytes, size: int | None = None) -> list[tuple[str, str | None, str | None]]:
    """Return type, data and id of each event of a stream that comes in pieces of a size, or in one."""
    content = stream.encode() if isinstance(stream, str) else stream
    size = size or len(content)
    parser = EventStreamParser()
    pieces = (content[start : start + size] for start in range(0, len(content), size))
    return [(sent.type, sent.data, sent.id) for piece in pieces for sent in parser.feed(piece)]


def message(data: str, id: str | None = None, type: str = "message") -> tuple[str, str | None, str | None]:
    return type, data, id


CASES: dict[str, tuple[str | bytes, list[tuple[str, str | None, str | None]]]] = {
    "one line": ("data: Hello\n\n", [message("Hello")]),
    "two events": ("data: Hello\n\ndata: World\n\n", [message("Hello"), message("World")]),
    "two lines": ("data: Hello\ndata:World\n\n", [message("Hello\nWorld")]),
    "empty data": ("data:\n\n", [message("")]),
    "a type": ("event: greeting\ndata: Hello\n\n", [message("Hello", type="greeting")]),
    "an id": ("id: abc\ndata: Hello\n\n", [message("Hello", "abc")]),
    "a type and an id": ("event: greeting\nid: abc\ndata: Hello\n\n", [message("Hello", "abc", "greeting")]),
    "fields the other way round": ("data: Hello\nid: abc\nevent: a\n\n", [message("Hello", "abc", "a")]),
    "an id with a NUL": ("id: a\0bc\ndata: Hello\n\n", [message("Hello")]),
    "an event without an id after one": ("id: a\ndata: 1\n\ndata: 2\n\n", [message("1", "a"), message("2")]),
    "an empty id": ("id: a\ndata: 1\n\nid: \ndata: 2\n\n", [message("1", "a"), message("2", "")]),
    "an id alone": ("id: a\n\ndata: 2\n\n", [("message", None, "a"), message("2")]),
    "a type alone": ("event: a\n\ndata: 2\n\n", [message("2")]),
    "the last of two ids": ("id: a\nid: b\ndata: 1\n\n", [message("1", "b")]),
    "an unknown field": ("event: a\ncolor: blue\ndata: Hello\n\n", [message("Hello", type="a")]),
    "names in capitals": ("Data: 1\nEVENT: a\ndata: 2\n\n", [message("2")]),
    "a space before a name": (" data: 1\ndata: 2\n\n", [message("2")]),
    "no space after the colon": ("event:greeting\ndata:Hello\n\n", [message("Hello", type="greeting")]),
    "two spaces after the colon": ("event:  a\ndata:  Hello\n\n", [message(" Hello", type=" a")]),
    "colons in the value": ("data:: :a:\n\n", [message(": :a:")]),
    "no colon": ("data\n\ndata\ndata\n\n", [message(""), message("\n")]),
    "characters of several bytes": ("data: €豆腐🙂\n\n", [message("€豆腐🙂")]),
    "line breaks of Unicode": ("data: a\u2028b\u0085c\x0bd\x0ce\n\n", [message("a\u2028b\u0085c\x0bd\x0ce")]),
    "bytes that are not UTF-8": (b"data: a\xff\xc3\n\n", [message("a\ufffd\ufffd")]),
    "no end": ("data: 1\n\ndata: 2\n", [message("1")]),
    "half a line": ("data: 1\n\ndata: 2", [message("1")]),
    "nothing but comments": (":a\n:\n\n:b\n\n", []),
    "a comment before an event": (":Hello\ndata: Hello\n\n", [message("Hello")]),
    "a comment within an event": ("data: 1\n:Hello\ndata: 2\n\n", [message("1\n2")]),
    "a comment after an event": ("data: Hello\n\n:Hello\n", [message("Hello")]),
    "a hundred events": (
        "".join(f"data: message {n}\n\n" for n in range(100)),
        [message(f"message {n}") for n in range(100)],
    ),
    "a mark": (f"{BOM}data: Hello\n\n", [message("Hello")]),
    "a mark before a type": (f"{BOM}event: a\nid: b\ndata: Hello\n\n", [message("Hello", "b", "a")]),
    "a mark before a comment": (f"{BOM}:comment\ndata: Hello\n\n", [message("Hello")]),
    "a mark before an empty line": (f"{BOM}\ndata: Hello\n\n", [message("Hello")]),
    "a mark within data": (
        f"{BOM}data: {BOM}1\n\ndata: {BOM}2\n\n",
        [message(f"{BOM}1"), message(f"{BOM}2")],
    ),
    "two marks": (f"{BOM}{BOM}data: 1\n\ndata: 2\n\n", [message("2")]),
    "a mark on the second line": (f":\n{BOM}data: 1\ndata: 2\n\n", [message("2")]),
    "an empty line first": ("data:\ndata: 2\ndata: 3\n\n", [message("\n2\n3")]),
    "an empty line in the middle": ("data: 1\ndata:\ndata: 3\n\n", [message("1\n\n3")]),
    "more empty lines": ("\n\ndata: 1\n\n\n\ndata: 2\n\n\n", [message("1"), message("2")]),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("case", CASES)
def test_what_the_contract_tests_send_is_read_in_pieces_of_any_size(case: str, end: str) -> None:
    stream, events = CASES[case]
    content = stream.encode() if isinstance(stream, str) else stream
    content = content.replace(b"\n", end.encode())
    for size in (None, 1, 2, 3, 7):
        assert parsed(content, size) == events, size


def test_an_event_is_there_as_soon_as_its_last_byte_is() -> None:
    for end in (b"\n", b"\r", b"\r\n"):
        parser = EventStreamParser()
        assert [*parser.feed(b"data: 1" + end)] == []
        assert [sent.data for sent in parser.feed(end[:1])] == ["1"]
        assert [sent.data for sent in parser.feed(end[1:] + b"data: 2" + end + end[:1])] == ["2"]


def test_ends_of_lines_may_be_mixed_and_cut_anywhere() -> None:
    pieces = [
        "data: Hello\r",
        "\ndata: World\r",
        "\n\r\ndata: OK\r",
        "\n",
        "\r",
        "\n",
        "",
        "data: 3\n\r",
        "",
        "\n\n",
    ]
    parser = EventStreamParser()
    events = chain.from_iterable(parser.feed(piece.encode()) for piece in pieces)
    assert [sent.data for sent in events] == ["Hello\nWorld", "OK", "3"]


@pytest.mark.parametrize(
    ("value", "retry"),
    [
        ("5000", 5000),
        ("0", 0),
        ("007", 7),
        ("1" * 9, MAX_RETRY),
        ("9" * 10_000, MAX_RETRY),
        *((wrong, None) for wrong in ("", "  5", "-5", "+5", "5.0", "1e3", "5 ", "0x5", "\u0665", "5s")),
    ],
)
def test_a_retry_is_digits_alone_and_never_more_than_a_day(value: str, retry: int | None) -> None:
    parser = EventStreamParser()
    assert [*parser.feed(f"retry:{value}\n".encode())] == []
    assert parser.retry == retry
    assert [*parser.feed(b"\n")] == []


@pytest.mark.long
def test_a_long_event_in_small_pieces_takes_time_in_proportion_to_its_length() -> None:
    """Fifty million bytes: were the line copied for each piece, this would take hours."""
    parser, piece, count = EventStreamParser(), b"x" * 100, 500_000
    assert [*parser.feed(b"data: ")] == []
    for _ in range(count):
        for _ in parser.feed(piece):
            pytest.fail("it has not ended")
    (sent,) = parser.feed(b"\n\n")
    assert sent.data is not None
    assert len(sent.data) == count * len(piece)
    for _ in range(count):  # and in lines
        for _ in parser.feed(b"data: x\n"):
            pytest.fail("it has not ended")
    (sent,) = parser.feed(b"\r")
    assert sent.data is not None
    assert len(sent.data) == 2 * count - 1


@given(st.text("a: \r\n\0\ufeffé", max_size=60), st.data())
def test_where_a_stream_is_cut_does_not_matter(text: str, choice: st.DataObject) -> None:
    content = f"data: {text}\n\n".encode() * 2
    cuts = sorted(choice.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    parser = EventStreamParser()
    events: list[Sent] = []
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        events += parser.feed(content[start:end])
    assert [(sent.type, sent.data, sent.id) for sent in events] == parsed(content)
