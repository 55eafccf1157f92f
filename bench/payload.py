"""The events that are published: JSON of a fixed length with a number and the moment of sending inside."""

from __future__ import annotations

EVENT_BYTES = 200
SEQ_WIDTH = 10
SENT_WIDTH = 16
KEY_WIDTH = 4
SEQ_BASE = 10 ** (SEQ_WIDTH - 1)
SENT_BASE = 10 ** (SENT_WIDTH - 1)
"""What is added to the numbers, so that they have their width (`sse_parser.h`)."""


def event_item(size: int = EVENT_BYTES, *, keyed: bool = False) -> str:
    """Return the template of an event's data: `size` bytes once `publisher.c` has put the numbers in.

    Args:
        size: in bytes.
        keyed: whether it has a member `symbol`, one of several keys.
    """
    head, tail = '{"seq":{SEQ},"sent":{SENT},', '"}'
    used = len(head) - len("{SEQ}{SENT}") + SEQ_WIDTH + SENT_WIDTH
    if keyed:
        head += '"symbol":"S{KEY}",'
        used += len('"symbol":"S",') + KEY_WIDTH
    head += '"pad":"'
    return head + "x" * (size - used - len('"pad":"') - len(tail)) + tail


EVENT_ITEM = event_item()
KEYED_ITEM = event_item(keyed=True)
