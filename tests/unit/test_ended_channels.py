"""Which channels have ended, as a hub remembers them."""

from __future__ import annotations

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.events import FINAL, TEXT, Event
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.streams import ended_channels
from sse_app.streams.ended_channels import EndedChannels

A, B, C, D = map(ChannelName, "abcd")


def test_only_the_last_event_of_a_channel_ends_it() -> None:
    ended = EndedChannels(MemoryEventLog())
    events = [
        Event(1, A, "e", b"", None, FINAL),
        Event(2, B, "e", b"", None, FINAL | TEXT),
        Event(3, A, "e", b""),
    ]
    assert ended.end(events) == [B]
    assert ended.have_ended([B])
    assert not ended.have_ended([A, B])
    assert (ended.last_of(A), ended.last_of(B)) == (0, 2)
    ended.reopen([B, C])
    assert not ended


def test_those_that_ended_first_are_forgotten_and_what_is_remembered_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ended_channels, "MOST_ENDED", 2)
    ended = EndedChannels(MemoryEventLog())
    ended.learn({A: 5, B: 1, C: 3})
    assert (len(ended), ended.have_ended([A, C]), ended.have_ended([B])) == (2, True, False)
    ended.end([Event(6, C, "e", b"", None, FINAL)])  # again, so it ended last
    ended.end([Event(7, D, "e", b"", None, FINAL)])
    assert (len(ended), ended.have_ended([C, D]), ended.have_ended([A])) == (2, True, False)
    ended.end([Event(number, ChannelName(f"x{number}"), "e", b"", None, FINAL) for number in range(8, 20)])
    assert len(ended) == 2
