"""Which channels have ended, as a hub remembers them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.events import FINAL, TEXT, Event, NewEvent
from sse_app.core.selection import interest_of
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


class Desk(MemoryEventLog):
    """A log of which a test does something while the last event of a channel is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: dict[str, Callable[[], object]] = {}

    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        found = await super().latest(channels, limit)
        for channel in channels:
            self.meanwhile.get(channel, lambda: None)()
        return found


@pytest.mark.gen_test
async def test_channels_that_change_while_the_log_is_asked_are_not_confirmed() -> None:
    log = Desk()
    ended = EndedChannels(log)
    interest = interest_of((A, B), None)
    await log.append([NewEvent(A, "e", b"", None, FINAL), NewEvent(B, "e", b"", None, FINAL)])
    ended.learn({A: 1, B: 2})
    assert await ended.confirm(interest)
    log.meanwhile = dict.fromkeys((A, B), lambda: ended.end([Event(3, A, "e", b"", None, FINAL)]))
    assert not await ended.confirm(interest)  # the later one is yet to be given to a client that comes
    assert (ended.last_of(A), ended.last_of(B)) == (3, 2)


@pytest.mark.gen_test
async def test_an_end_that_comes_while_the_one_before_is_found_to_be_trimmed_is_remembered() -> None:
    log = Desk()  # which keeps nothing of the channel
    ended = EndedChannels(log)
    ended.learn({A: 1})
    log.meanwhile = {A: lambda: ended.end([Event(3, A, "e", b"", None, FINAL)])}
    assert not await ended.confirm(interest_of((A,), None))
    assert ended.last_of(A) == 3
    log.meanwhile = {}
    assert not await ended.confirm(interest_of((A,), None))
    assert ended.last_of(A) == 0  # nothing tells any more that it has ended
