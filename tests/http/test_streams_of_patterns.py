"""Streams of patterns: channels that come later join by themselves, in the order of the log with the others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fnmatch import fnmatchcase
from itertools import chain

import httpx
import pytest

from sse_app.streams.hub import FANOUT_SLICE
from tests.support.room import DEADLINE, Acknowledged, Room, first, listen, sequence, take

PUBLISHERS = 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "turns"), [(1, 50), (FANOUT_SLICE + 20, 3)], ids=["few streams", "more than a slice"]
)
def test_the_first_event_of_a_new_channel_comes_in_order_with_those_of_the_others(
    room: Room, streams: int, turns: int
) -> None:
    """Publishers take turns with channels that are new and one that is not, one by one and in batches."""
    root = room.channel()
    old = f"{root}.old.orders"
    room.publish(old, 0)
    wishes = [f"{root}.*.orders", f"{root}.*.mail,{old}", f"{root}.p1-2.*", f"{root}.none.*,{old}", old]
    wishes += [f"{root}.**"] * streams

    def publish(publisher: int) -> list[Acknowledged]:
        published: list[Acknowledged] = []
        for n in range(turns):
            new = f"{root}.p{publisher}-{n}"
            channels = [old, f"{new}.orders", f"{new}.mail", f"{new}.orders", old]
            if n % 2:
                ids = room.publish_batch((channel, n) for channel in channels)
            else:
                ids = [room.publish(channel, n) for channel in channels]
            published += map(Acknowledged, ids, channels, [n] * len(channels))
        return published

    with ExitStack() as opened, ThreadPoolExecutor(PUBLISHERS) as pool:
        client = opened.enter_context(httpx.Client(timeout=DEADLINE, limits=httpx.Limits()))
        all_frames = [opened.enter_context(listen(room.url(wish), client=client)) for wish in wishes]
        for frames in all_frames:
            first(frames)
        parts = list(pool.map(publish, range(PUBLISHERS)))
        acknowledged = sorted(chain.from_iterable(parts), key=lambda event: sequence(event.id))
        for wish, frames in zip(wishes, all_frames, strict=True):
            wanted = [
                event
                for event in acknowledged
                if any(fnmatchcase(event.channel, pattern) for pattern in wish.split(","))
            ]
            seen = take(frames, len(wanted))
            assert [(frame.id, frame.data["channel"], frame.data["n"]) for frame in seen] == wanted, wish
