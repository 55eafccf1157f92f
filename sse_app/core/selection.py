"""What a stream carries: channels by name and by pattern, perhaps of some event types only. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from sse_app.core.channels import ChannelName, ChannelPattern, is_internal


class Selection:
    """The channels that texts stand for: one with a ``*`` is a pattern, another one the name of a channel.

    A pattern covers no channel of the server's own.

    Args:
        texts: of the right form, as `parse_channels` returns them.
    """

    __slots__ = ("_prefixes", "names", "patterns", "texts")

    def __init__(self, texts: Collection[str]) -> None:
        self.texts = frozenset(texts)
        self.names = frozenset(ChannelName(text) for text in self.texts if "*" not in text)
        self.patterns = tuple(ChannelPattern(text) for text in sorted(self.texts) if "*" in text)
        self._prefixes = tuple(pattern.prefix for pattern in self.patterns)

    def covers(self, channel: ChannelName) -> bool:
        """Return whether the channel is among them."""
        # A replay asks this of each event of the log: most are ruled out by how their channels begin.
        return channel in self.names or (channel.startswith(self._prefixes) and bool(self.covering(channel)))

    def covering(self, channel: ChannelName) -> list[ChannelPattern]:
        """Return the patterns that cover the channel."""
        if is_internal(channel):
            return []
        return [pattern for pattern in self.patterns if pattern.matches(channel)]

    def floor(self, floors: Mapping[str, int], channel: ChannelName) -> int:
        """Return the ``seq`` which the events of a channel follow that is among them.

        Args:
            floors: of channels by their names; and of patterns by their texts, for the channels of theirs that have
                none by name.
        """
        if not floors:
            return 0
        own = floors.get(channel)
        if own is not None:
            return own
        if not self.patterns or channel in self.names:
            return 0
        if len(self.patterns) == 1:  # which covers it, since it is among them
            return floors.get(self.patterns[0].text, 0)
        return min((floors.get(pattern.text, 0) for pattern in self.covering(channel)), default=0)


class Interest(NamedTuple):
    """Which events a stream is sent; streams that share it share the bytes.

    Args:
        channels: names of channels, and patterns of them.
        types: the event types; all where it is None.
        rate: how many events of each key of a conflated channel a second at most; None: as they come.
    """

    channels: frozenset[str]
    types: frozenset[str] | None = None
    rate: float | None = None

    @property
    def selection(self) -> Selection:
        """The channels."""
        return selection_of(self.channels)

    def takes(self, type: str) -> bool:
        """Return whether events of a type are among them."""
        return self.types is None or type in self.types


@lru_cache(maxsize=4096)
def selection_of(texts: frozenset[str]) -> Selection:
    """Return the selection of texts, made once for all that ask for the same."""
    return Selection(texts)


@lru_cache(maxsize=4096)
def interest_of(
    channels: tuple[str, ...], types: frozenset[str] | None = None, rate: float | None = None
) -> Interest:
    """Return the interest in channels, in any order, made once for all streams that ask in the same way."""
    return Interest(frozenset(channels), types, rate)
