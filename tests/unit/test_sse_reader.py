"""The strict reader of event streams that the tests look through: what it lets pass, and how long it takes."""

from __future__ import annotations

import time

import pytest

from tests.support.sse_reader import EventStreamReader, ReceivedEvent


def test_what_the_server_sends_is_read() -> None:
    stream = b'retry: 3000\nid: e-1\nevent: connected\ndata: {"a":1}\n\nevent: ping\ndata: {}\n\nretry: 5\n\n'
    reader = EventStreamReader()
    assert reader.feed(stream) == [
        ReceivedEvent("connected", '{"a":1}', "e-1", "e-1", 3000),
        ReceivedEvent("ping", "{}", None, "e-1", None),
    ]
    reader.end()


@pytest.mark.parametrize(
    "stream",
    [
        ": a comment\n\n",
        "data: x\nfoo: bar\n\n",
        "data:x\n\n",
        "data\n\n",
        "data: x\ndata: y\n\n",
        "id: 1\nid: 2\ndata: x\n\n",
        "id: a\0b\ndata: x\n\n",
        "retry: soon\n\n",
        "id: 1\n\n",
        "event: e\n\n",
    ],
)
def test_what_the_server_never_sends_fails(stream: str) -> None:
    with pytest.raises(AssertionError):
        EventStreamReader().feed(stream.encode())


def test_bytes_that_are_not_utf_8_fail() -> None:
    with pytest.raises(UnicodeDecodeError):
        EventStreamReader().feed(b"data: \xff\n\n")


@pytest.mark.parametrize("stream", [b"data: x", b"data: x\n"])
def test_a_stream_that_ends_amid_an_event_fails(stream: bytes) -> None:
    reader = EventStreamReader()
    assert reader.feed(stream) == []
    with pytest.raises(AssertionError, match="the stream ended within"):
        reader.end()


def test_a_byte_order_mark_cut_anywhere_is_left_out() -> None:
    stream = "\ufeffdata: a\n\n".encode()
    for cut in range(len(stream) + 1):
        reader = EventStreamReader()
        found = reader.feed(stream[:cut]) + reader.feed(stream[cut:])
        assert [event.data for event in found] == ["a"], cut


@pytest.mark.slow
def test_reading_takes_time_in_proportion_to_the_length_of_an_event() -> None:
    def seconds(size: int) -> float:
        reader = EventStreamReader()
        begun = time.process_time()
        reader.feed(b"data: ")
        for _ in range(size // 512):
            reader.feed(b"x" * 512)
        (event,) = reader.feed(b"\n\n")
        assert len(event.data) == size
        return time.process_time() - begun

    short, long = (min(seconds(size) for _ in range(3)) for size in (1 << 20, 1 << 24))
    assert long < 64 * short, "16 times the length takes 16 times as long; 256 times if it were quadratic"
