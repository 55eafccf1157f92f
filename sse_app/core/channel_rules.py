"""What is configured for channels, by patterns of which the first that covers a channel counts. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sse_app.core.channels import ChannelName, ChannelPattern, is_internal

MOST_KNOWN = 10_000
"""For how many channels it is remembered which rule is theirs."""


class ChannelRule(NamedTuple):
    """What is configured for the channels of a pattern.

    Args:
        pattern: of the channels.
        size: how many events of each are kept; None: as many as of any other.
        age: for how many seconds they are kept; None: as long as those of any other.
        public: whether they can be subscribed to without a token.
        types: the event types that may be published; None: any.
        stored: whether their events are in the log, and can be replayed.
        conflate: the member of the data of which streams that are behind get the newest event of each value; empty:
            they get every event.
    """

    pattern: ChannelPattern
    size: int | None = None
    age: float | None = None
    public: bool = False
    types: frozenset[str] | None = None
    stored: bool = True
    conflate: str = ""


class ChannelRules:
    """The configured channels.

    Args:
        rules: in the order in which they count.
    """

    def __init__(self, rules: Iterable[ChannelRule] = ()) -> None:
        self.rules = tuple(rules)
        self._known: dict[str, ChannelRule | None] = {}

    def rule(self, channel: str) -> ChannelRule | None:
        """Return the first rule that covers the channel, or None where it is not configured."""
        try:
            return self._known[channel]
        except KeyError:
            found = next((rule for rule in self.rules if rule.pattern.matches(channel)), None)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[channel] = found
            return found

    def matches(self, channel: str) -> bool:
        """Return whether the channel is configured."""
        return self.rule(channel) is not None

    def stores(self, channel: str) -> bool:
        """Return whether the channel's events are in the log."""
        rule = self.rule(channel)
        return rule is None or rule.stored

    def overlapping(self, pattern: ChannelPattern) -> list[ChannelRule]:
        """Return the rules that may be those of channels of a pattern, in order."""
        return [rule for rule in self.rules if rule.pattern.overlaps(pattern)]

    def is_public(self, text: str) -> bool:
        """Return whether no token is needed for a channel, or for every channel of a pattern.

        Args:
            text: the name, or the pattern, all of whose channels have to be configured.
        """
        if is_internal(text):
            return False
        if "*" not in text:
            rule = self.rule(text)
            return rule is not None and rule.public
        pattern = ChannelPattern(text)
        for rule in self.rules:
            if rule.pattern.overlaps(pattern):
                if not rule.public:
                    return False
                if rule.pattern.covers(pattern):
                    return True
        return False

    @property
    def texts(self) -> tuple[str, ...]:
        """The patterns, each once."""
        return tuple(dict.fromkeys(rule.pattern.text for rule in self.rules))

    @property
    def names(self) -> tuple[ChannelName, ...]:
        """The patterns without wildcards, as channel names, in order."""
        return tuple(
            ChannelName(text)
            for text in dict.fromkeys(rule.pattern.text for rule in self.rules if rule.pattern.is_name)
        )
