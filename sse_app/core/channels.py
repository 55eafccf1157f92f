"""Channel names and the patterns that grant them: pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import zip_longest
from typing import NewType

from sse_app.core.errors import InvalidChannel, InvalidInput

ChannelName = NewType("ChannelName", str)

MAX_NAME_LENGTH = 255
RESERVED_NAMES = frozenset({"status"})
"""Names that the HTTP interface uses for itself: ``GET /api/v1/sse/status``."""

ADMIN_CHANNEL = ChannelName("sse_app.admin")
"""The channel on which administrators get the server's own figures; it is not in the event log."""

PRESENCE_PREFIX = "sse_app.presence."
"""What the name of a channel of presence begins with; the channel whose users it tells of follows."""

_INTERNAL = ADMIN_CHANNEL.partition(".")[0]

_SEGMENT = r"[a-z0-9_-]{1,64}"
_NAME = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*")
_SUBJECT_SEGMENT = re.compile(_SEGMENT)
_PATTERN = re.compile(rf"(?:\*\*|(?:{_SEGMENT}|\*)(?:\.(?:{_SEGMENT}|\*))*(?:\.\*\*)?)")


@lru_cache(maxsize=4096)
def parse_channel(text: str) -> ChannelName:
    """Return ``text`` as a channel name.

    Raises:
        InvalidChannel: it is not dot-separated segments of ``[a-z0-9_-]{1,64}``, or it is reserved.
    """
    if len(text) > MAX_NAME_LENGTH or not _NAME.fullmatch(text) or text in RESERVED_NAMES:
        raise InvalidChannel(f"not a channel name: {_shown(text)}{_hint(text)}", "channel")
    return ChannelName(text)


def parse_channels(text: str, limit: int) -> tuple[str, ...]:
    """Return the channel names and patterns of a comma-separated list, in its order, each once.

    Raises:
        InvalidChannel: one of them is neither, or there are more than ``limit``.
    """
    if "," not in text:
        return _alone(text)
    names = text.split(",", limit)
    if len(names) > limit:
        raise InvalidChannel(f"more than {limit} channels on one stream", "channels")
    return tuple(dict.fromkeys(map(parse_channel_or_pattern, names)))


@lru_cache(maxsize=4096)
def _alone(text: str) -> tuple[str, ...]:
    """Return the one name or pattern as a list, made once for all streams on it."""
    return (parse_channel_or_pattern(text),)


def parse_channel_or_pattern(text: str) -> str:
    """Return ``text`` as a channel name, or as a pattern where it has a ``*``.

    Raises:
        InvalidChannel: it is neither.
    """
    if "*" not in text:
        return parse_channel(text)
    try:
        return ChannelPattern(text).text
    except InvalidChannel as error:
        raise InvalidChannel(str(error), "channel") from None  # it stands where a name may stand


def channel_in(value: object, field: str) -> ChannelName:
    """Return the channel name that a member of a request has.

    Args:
        value: of the member.
        field: where it stands, such as ``channels[2]``, for the error's text.

    Raises:
        InvalidInput: it is no channel name.
    """
    return ChannelName(_text_in(value, field, parse_channel))


def channel_or_pattern_in(value: object, field: str) -> str:
    """Return the channel name or pattern that a member of a request has; as `channel_in` else."""
    return _text_in(value, field, parse_channel_or_pattern)


def _text_in(value: object, field: str, parse: Callable[[str], str]) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{field} must be a channel name", field)
    try:
        return parse(value)
    except InvalidChannel as error:
        raise InvalidInput(f"{field}: {error}", field) from None


def is_internal(channel: str) -> bool:
    """Return whether a name or pattern is the server's own: no client publishes there, no ``subscribe`` grants it."""
    return channel.partition(".")[0] == _INTERNAL


def presence_channel(channel: ChannelName) -> ChannelName:
    """Return the channel on which it is told which users come to a channel and leave it."""
    return ChannelName(PRESENCE_PREFIX + channel)


def with_presence(channel: str) -> ChannelName | None:
    """Return the channel whose users a channel of presence tells of; None where it is another one."""
    name = channel.removeprefix(PRESENCE_PREFIX)
    return None if name == channel or "*" in name or is_internal(name) else ChannelName(name)


class ChannelPattern:
    """A pattern of channel names: ``*`` stands for one segment, a final ``**`` for any number, also none.

    >>> ChannelPattern("user.*.orders").matches("user.ann.orders")
    True
    >>> ChannelPattern("user.ann.**").matches("user.ann")
    True

    Raises:
        InvalidChannel: the text is no pattern.
    """

    __slots__ = ("_regex", "is_name", "text")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_NAME_LENGTH or not _PATTERN.fullmatch(text):
            raise InvalidChannel(f"not a channel pattern: {_shown(text)}{_hint(text)}", "pattern")
        self.text = str(text)  # never a subclass, which orjson does not accept as a key
        self.is_name = "*" not in text
        """Whether the pattern has no wildcard, so that it is the name of one channel."""
        self._regex: re.Pattern[str] | None = None

    @property
    def prefix(self) -> str:
        """What the name of every channel begins with that the pattern covers; empty where that is nothing."""
        before = self.text.partition("*")[0]
        return before.removesuffix(".") if self.text == f"{before}**" else before

    def matches(self, channel: str) -> bool:
        """Return whether the pattern covers the channel."""
        if self.is_name:
            return self.text == channel
        if self._regex is None:  # most patterns are never matched, such as that of each user's own channels
            self._regex = re.compile(self._expression())
        return self._regex.fullmatch(channel) is not None

    def covers(self, other: ChannelPattern) -> bool:
        """Return whether the pattern covers every channel that another one covers."""
        mine, theirs = self.text.split("."), other.text.split(".")
        if theirs == ["**"]:
            theirs = ["*", "**"]  # any channel has a segment at least
        for place, segment in enumerate(mine):
            if segment == "**":
                return True
            if place == len(theirs) or theirs[place] == "**" or segment not in ("*", theirs[place]):
                return False
        return len(mine) == len(theirs)

    def overlaps(self, other: ChannelPattern) -> bool:
        """Return whether there is a channel name that both cover."""
        for mine, theirs in zip_longest(self.text.split("."), other.text.split(".")):
            if "**" in (mine, theirs):
                return True
            if mine is None or theirs is None or (mine != theirs and "*" not in (mine, theirs)):
                return False
        return True

    def _expression(self) -> str:
        *segments, last = self.text.split(".")
        expression = r"\.".join(_SEGMENT if s == "*" else re.escape(s) for s in segments)
        if last == "**":
            return expression + (rf"(?:\.{_SEGMENT})*" if segments else r".+")
        return expression + (r"\." if segments else "") + (_SEGMENT if last == "*" else re.escape(last))

    def __repr__(self) -> str:
        return f"ChannelPattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelPattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class ChannelPatterns:
    """Several patterns together; a channel is covered when one of them matches it."""

    __slots__ = ("_names", "_wild", "texts")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        patterns = tuple(dict.fromkeys(ChannelPattern(text) for text in texts))
        self.texts = tuple(pattern.text for pattern in patterns)
        self._names = frozenset(pattern.text for pattern in patterns if pattern.is_name)
        self._wild = tuple(pattern for pattern in patterns if not pattern.is_name)

    def matches(self, channel: str) -> bool:
        """Return whether any of the patterns covers the channel."""
        if channel in self._names:
            return True
        for pattern in self._wild:  # noqa: SIM110 - each event comes here several times: quicker than any()
            if pattern.matches(channel):
                return True
        return False

    def covers(self, pattern: ChannelPattern) -> bool:
        """Return whether one of the patterns covers every channel that another one covers."""
        return any(mine.covers(pattern) for mine in map(ChannelPattern, self.texts))

    def __repr__(self) -> str:
        return f"ChannelPatterns({list(self.texts)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelPatterns) and other.texts == self.texts

    def __hash__(self) -> int:
        return hash(self.texts)


def own_patterns(templates: Iterable[str], subject: str) -> tuple[str, ...]:
    """Return the templates with ``{sub}`` filled in: the patterns that belong to a subject.

    Only a subject that is itself one channel segment owns any, else ``a.b`` would own channels of ``a``.
    """
    if not _SUBJECT_SEGMENT.fullmatch(subject):
        return ()
    return tuple(template.replace("{sub}", subject) for template in templates)


def _hint(text: str) -> str:
    """Return what an error's text says beside of a text that is no channel name or pattern."""
    if text in RESERVED_NAMES:
        return ", which is kept for /api/v1/sse/status"
    if "*" in text:
        return "; in a pattern * stands for one whole segment, and ** at the end for any number of them"
    if "," in text:
        return "; it takes one channel, not several"
    meant = re.sub(r"[/:\\]+", ".", text[: MAX_NAME_LENGTH + 1].strip(" /\t\r\n").lower())
    if meant != text and len(meant) <= MAX_NAME_LENGTH and _NAME.fullmatch(meant):
        return f"; perhaps {meant} is meant"
    return "; one is of a-z, 0-9, _ and -, in segments with dots between them, such as user.ann.orders"


def _shown(text: str) -> str:
    """Return the text for an error message: quoted, without control characters, cut short."""
    return ascii(text if len(text) <= 80 else text[:80] + "…")
