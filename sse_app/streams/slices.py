"""Walks over many streams in slices, between which other tasks run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_app.streams.stream import Stream

SLICE = 512
"""How many streams are looked at before other tasks run: about a millisecond."""


async def slices(streams: list[Stream]) -> AsyncIterator[list[Stream]]:
    """Yield the streams, some at a time."""
    for start in range(0, len(streams), SLICE):
        yield streams[start : start + SLICE]
        await asyncio.sleep(0)
