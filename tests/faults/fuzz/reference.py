"""Channel names and patterns as docs say what they are: so slow and simple that they cannot be wrong."""

from __future__ import annotations

from itertools import product

_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_NEW = "z9"
"""A segment that no test uses: it stands for all others."""


def _is_segment(text: str) -> bool:
    return 0 < len(text) <= 64 and set(text) <= _SIGNS


def is_channel(text: str) -> bool:
    """Return whether a text is the name of a channel."""
    return len(text) <= 255 and text != "status" and all(map(_is_segment, text.split(".")))


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern of channels, or a name."""
    *before, last = text.split(".")
    wild = [segment == "*" or _is_segment(segment) for segment in before]
    return len(text) <= 255 and all(wild) and (last in ("*", "**") or _is_segment(last))


def matches(pattern: str, channel: str) -> bool:
    """Return whether a pattern covers a channel."""
    return _match(pattern.split("."), channel.split("."))


def _match(pattern: list[str], channel: list[str]) -> bool:
    if not pattern:
        return not channel
    if pattern == ["**"]:
        return True
    return bool(channel) and pattern[0] in ("*", channel[0]) and _match(pattern[1:], channel[1:])


def covers(mine: str, other: str) -> bool:
    """Return whether a pattern covers every channel that another one covers, by trying all channels that matter."""
    return all(matches(mine, name) for name in _channels(mine, other) if matches(other, name))


def overlap(one: str, other: str) -> bool:
    """Return whether there is a channel that two patterns cover, by trying all channels that matter."""
    return any(matches(one, name) and matches(other, name) for name in _channels(one, other))


def _channels(*patterns: str) -> list[str]:
    """Return channels of so many segments as the longest pattern has, and one more, of all that patterns tell apart."""
    longest = max(len(pattern.split(".")) for pattern in patterns) + 1
    there = {segment for pattern in patterns for segment in pattern.split(".") if "*" not in segment}
    return [
        ".".join(segments)
        for length in range(1, longest + 1)
        for segments in product(sorted({*there, _NEW}), repeat=length)
    ]
