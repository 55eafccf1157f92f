"""The events that are published: JSON of a fixed length with a number and the moment of sending inside."""

from __future__ import annotations

EVENT_BYTES = 200
SEQ_WIDTH = 10
SENT_WIDTH = 16
SEQ_BASE = 10 ** (SEQ_WIDTH - 1)
SENT_BASE = 10 ** (SENT_WIDTH - 1)
"""What is added to the numbers, so that they have their width (`sse_parser.h`)."""


def event_item(size: int = EVENT_BYTES) -> str:
    """Return the template of an event's data: `size` bytes once `publisher.c` has put the numbers in."""
    head, tail = '{"seq":{SEQ},"sent":{SENT},"pad":"', '"}'
    used = len(head) - len("{SEQ}{SENT}") + SEQ_WIDTH + SENT_WIDTH + len(tail)
    return head + "x" * (size - used) + tail


EVENT_ITEM = event_item()
