"""Finds the patterns that cover a channel, without a look at the others. Pure, no I/O."""

from __future__ import annotations

from typing import Generic, TypeVar

Value = TypeVar("Value")


class _Node(Generic[Value]):
    """A place in the tree of patterns: what comes after the segments that lead to it."""

    __slots__ = ("ending", "following", "rest")

    def __init__(self) -> None:
        self.following: dict[str, _Node[Value]] = {}
        """By the next segment, ``*`` among them."""
        self.ending: dict[Value, None] = {}
        """The values of the pattern that ends here."""
        self.rest: dict[Value, None] = {}
        """The values of the pattern that ends here with ``**``."""

    @property
    def is_empty(self) -> bool:
        return not (self.following or self.ending or self.rest)


class PatternIndex(Generic[Value]):
    """Values under patterns of channel names, as `ChannelPattern` says what these mean.

    To find the values of a channel takes time by its segments and by the patterns that cover it or begin like those.
    """

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node()

    def __bool__(self) -> bool:
        """Whether there is any value."""
        return not self._root.is_empty

    def add(self, pattern: str, value: Value) -> None:
        """Put a value under a pattern."""
        segments, is_open = _parts(pattern)
        node = self._root
        for segment in segments:
            node = node.following.setdefault(segment, _Node())
        (node.rest if is_open else node.ending)[value] = None

    def discard(self, pattern: str, value: Value) -> None:
        """Remove a value from under a pattern, if it is there."""
        segments, is_open = _parts(pattern)
        way = [self._root]
        for segment in segments:
            node = way[-1].following.get(segment)
            if node is None:
                return
            way.append(node)
        (way[-1].rest if is_open else way[-1].ending).pop(value, None)
        for segment, parent, node in zip(reversed(segments), reversed(way[:-1]), reversed(way), strict=False):
            if not node.is_empty:
                return
            del parent.following[segment]

    def matching(self, channel: str) -> list[Value]:
        """Return the values of every pattern that covers the channel, each once for every such pattern."""
        found = list(self._root.rest)  # a channel has a segment at least
        nodes = [self._root]
        for segment in channel.split("."):
            following: list[_Node[Value]] = []
            for parent in nodes:
                for key in (segment, "*"):
                    if (node := parent.following.get(key)) is not None:
                        following.append(node)
                        found += node.rest
            if not following:
                return found
            nodes = following
        for node in nodes:
            found += node.ending
        return found


def _parts(pattern: str) -> tuple[list[str], bool]:
    """Return the segments of a pattern without a final ``**``, and whether it has that."""
    segments = pattern.split(".")
    return (segments[:-1], True) if segments[-1] == "**" else (segments, False)
