"""What a token allows: pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from sse_app.core.channels import ChannelName, ChannelPattern, ChannelPatterns, is_internal
from sse_app.core.errors import Forbidden, InvalidChannel

_NONE = ChannelPatterns()


class Grants(NamedTuple):
    """The channels that may be subscribed and published to, as patterns, and whether administration is allowed."""

    subscribe: ChannelPatterns = _NONE
    publish: ChannelPatterns = _NONE
    admin: bool = False

    @classmethod
    def of(cls, subscribe: Iterable[str] = (), publish: Iterable[str] = (), admin: bool = False) -> Grants:
        """Return the grants of these patterns.

        Raises:
            InvalidChannel: one of them is no pattern.
        """
        return _grants(tuple(subscribe), tuple(publish), admin)

    @classmethod
    def from_claim(cls, claim: object) -> Grants:
        """Return the grants of the ``sse`` claim of a token.

        Raises:
            InvalidChannel: the claim has not the form that `to_claim` gives it.
        """
        if not isinstance(claim, dict):
            raise InvalidChannel("the sse claim is no object")
        lists = []
        for name in ("subscribe", "publish"):
            texts = claim.get(name, [])
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise InvalidChannel(f"sse.{name} is no list of patterns")
            lists.append(texts)
        admin = claim.get("admin", False)
        if not isinstance(admin, bool):
            raise InvalidChannel("sse.admin is neither true nor false")
        return cls.of(lists[0], lists[1], admin)

    def to_claim(self) -> dict[str, Any]:
        """Return the ``sse`` claim that stands for these grants."""
        return {
            "subscribe": list(self.subscribe.texts),
            "publish": list(self.publish.texts),
            "admin": self.admin,
        }

    def may_subscribe(self, channel: str) -> bool:
        """Return whether the channel, or every channel of the pattern, may be subscribed to.

        The server's own channels take the admin grant.
        """
        if "*" in channel:
            return not is_internal(channel) and self.subscribe.covers(ChannelPattern(channel))
        return self.admin if is_internal(channel) else self.subscribe.matches(channel)

    def may_publish(self, channel: ChannelName) -> bool:
        """Return whether events may be published to the channel."""
        return not is_internal(channel) and self.publish.matches(channel)

    def require_subscribe(self, channel: str) -> None:
        """Refuse a channel or pattern that may not be subscribed to.

        Raises:
            Forbidden: no pattern covers it.
        """
        if not self.may_subscribe(channel):
            raise Forbidden(f"the token does not allow to subscribe to {channel}")

    def require_publish(self, channel: ChannelName) -> None:
        """Refuse a channel that may not be published to.

        Raises:
            Forbidden: no pattern covers it.
        """
        if not self.may_publish(channel):
            raise Forbidden(f"the token does not allow to publish to {channel}")

    def with_subscriptions(self, patterns: Iterable[str]) -> Grants:
        """Return these grants with more patterns to subscribe to."""
        return Grants.of((*self.subscribe.texts, *patterns), self.publish.texts, self.admin)

    def only_subscribing(self, channels: Iterable[str] | None = None) -> Grants:
        """Return what a stream token may carry of these grants: subscriptions, perhaps to some channels only.

        The admin grant goes along where one of the server's own channels is named, and opens nothing but these:
        a stream token is refused wherever something can be done.
        """
        if channels is None:
            return Grants.of(self.subscribe.texts)
        names = tuple(channels)
        return Grants.of(names, admin=self.admin and any(is_internal(name) for name in names))


@lru_cache(maxsize=1024)
def _grants(subscribe: tuple[str, ...], publish: tuple[str, ...], admin: bool) -> Grants:
    """Make grants once for all tokens that say the same: many do, and each stream refers to its own."""
    return Grants(ChannelPatterns(subscribe), ChannelPatterns(publish), admin)
