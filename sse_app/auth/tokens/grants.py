"""What a token allows: pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from sse_app.core.channels import ChannelName, ChannelPattern, ChannelPatterns, is_internal, with_presence
from sse_app.core.errors import Forbidden, InvalidChannel
from sse_app.core.nearest import some_of

_NONE = ChannelPatterns()


class Grants(NamedTuple):
    """The channels that may be subscribed and published to, as patterns, and whether administration is allowed.

    ``presence`` are those whose users may be seen.
    """

    subscribe: ChannelPatterns = _NONE
    publish: ChannelPatterns = _NONE
    admin: bool = False
    presence: ChannelPatterns = _NONE

    @classmethod
    def of(
        cls,
        subscribe: Iterable[str] = (),
        publish: Iterable[str] = (),
        admin: bool = False,
        presence: Iterable[str] = (),
    ) -> Grants:
        """Return the grants of these patterns.

        Raises:
            InvalidChannel: one of them is no pattern.
        """
        return _grants(tuple(subscribe), tuple(publish), admin, tuple(presence))

    @classmethod
    def from_claim(cls, claim: object) -> Grants:
        """Return the grants of the ``sse`` claim of a token.

        Raises:
            InvalidChannel: the claim has not the form that `to_claim` gives it.
        """
        if not isinstance(claim, dict):
            raise InvalidChannel("the sse claim is no object")
        lists = []
        for name in ("subscribe", "publish", "presence"):
            texts = claim.get(name, [])
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise InvalidChannel(f"sse.{name} is no list of patterns")
            lists.append(texts)
        admin = claim.get("admin", False)
        if not isinstance(admin, bool):
            raise InvalidChannel("sse.admin is neither true nor false")
        return cls.of(lists[0], lists[1], admin, lists[2])

    def to_claim(self) -> dict[str, Any]:
        """Return the ``sse`` claim that stands for these grants."""
        claim = {
            "subscribe": list(self.subscribe.texts),
            "publish": list(self.publish.texts),
            "admin": self.admin,
        }
        return claim | {"presence": list(self.presence.texts)} if self.presence.texts else claim

    def in_words(self) -> str:
        """Return the grants as a line for people: ``subscribe=dashboard,alerts publish=alerts admin``."""
        patterns = {"subscribe": self.subscribe, "publish": self.publish, "presence": self.presence}
        words = [f"{name}={','.join(each.texts)}" for name, each in patterns.items() if each.texts]
        return " ".join([*words, "admin"] if self.admin else words)

    def may_subscribe(self, channel: str) -> bool:
        """Return whether the channel, or every channel of the pattern, may be subscribed to.

        The server's own channels take the admin grant, those of presence the grant for that.
        """
        if (seen := with_presence(channel)) is not None:
            return self.presence.matches(seen)
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
            takes_admin = is_internal(channel) and with_presence(channel) is None
            allowed = "; that takes the admin grant" if takes_admin else _allowed(channel, self.subscribe)
            raise Forbidden(f"the token does not allow to subscribe to {channel}{allowed}")

    def require_publish(self, channel: ChannelName) -> None:
        """Refuse a channel that may not be published to.

        Raises:
            Forbidden: no pattern covers it.
        """
        if not self.may_publish(channel):
            raise Forbidden(
                f"the token does not allow to publish to {channel}{_allowed(channel, self.publish)}"
            )

    def require_presence(self, channel: ChannelName) -> None:
        """Refuse a channel whose users may not be seen.

        Raises:
            Forbidden: no pattern covers it.
        """
        if not self.presence.matches(channel):
            allowed = _allowed(channel, self.presence)
            raise Forbidden(f"the token does not allow to see who is on {channel}{allowed}")

    def with_subscriptions(self, patterns: Iterable[str]) -> Grants:
        """Return these grants with more patterns to subscribe to."""
        subscribe = (*self.subscribe.texts, *patterns)
        return Grants.of(subscribe, self.publish.texts, self.admin, self.presence.texts)

    def only_subscribing(self, channels: Iterable[str] | None = None) -> Grants:
        """Return what a stream token may carry of these grants: subscriptions, perhaps to some channels only.

        The admin grant goes along where one of the server's own channels is named, and opens nothing but these:
        a stream token is refused wherever something can be done.
        """
        if channels is None:
            return Grants.of(self.subscribe.texts, presence=self.presence.texts)
        names = tuple(channels)
        seen = [name for name in map(with_presence, names) if name is not None]
        own = [name for name in names if is_internal(name) and with_presence(name) is None]
        return Grants.of(
            [name for name in names if with_presence(name) is None],
            admin=self.admin and bool(own),
            presence=[name for name in seen if self.presence.matches(name)],
        )


def _allowed(channel: str, patterns: ChannelPatterns) -> str:
    """Return what an error's text says of that which the token does allow, to whom has the token."""
    return f"; it allows {some_of(channel, patterns.texts) or 'none'}"


@lru_cache(maxsize=1024)
def _grants(
    subscribe: tuple[str, ...], publish: tuple[str, ...], admin: bool, presence: tuple[str, ...]
) -> Grants:
    """Make grants once for all tokens that say the same: many do, and each stream refers to its own."""
    return Grants(ChannelPatterns(subscribe), ChannelPatterns(publish), admin, ChannelPatterns(presence))
