"""The rules for channels that the settings have, and what in them is probably not what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ChannelPattern
from sse_app.settings.model import Channels, ChannelSettings, Settings


def rules_of(channels: Sequence[Channels]) -> ChannelRules:
    """Return the rules of the setting ``channels``."""
    return ChannelRules(_rule(each) for each in channels)


def _rule(channels: Channels) -> ChannelRule:
    if not isinstance(channels, ChannelSettings):
        return ChannelRule(ChannelPattern(channels))
    return ChannelRule(
        ChannelPattern(channels.pattern),
        size=1 if channels.last_value_only else channels.history_size,
        age=channels.history_age,
        public=channels.public,
        types=None if channels.types is None else frozenset(map(str, channels.types)),
        stored=channels.stored,
        conflate=channels.conflate or "",
    )


def doubts(settings: Settings) -> Iterator[str]:
    """Yield a line for each element of ``channels`` that never counts, or gives all what is a user's own."""
    rules = rules_of(settings.channels).rules
    for place, rule in enumerate(rules):
        for earlier_place, earlier in enumerate(rules[:place]):
            if earlier.pattern.covers(rule.pattern):
                # A name has its own line in the public status all the same, if no more was meant by it.
                is_listed = rule.pattern.is_name and earlier.pattern != rule.pattern
                if not is_listed or rule != earlier._replace(pattern=rule.pattern):
                    yield (
                        f"channels[{place}] ({rule.pattern.text}) never counts: "
                        f"channels[{earlier_place}] ({earlier.pattern.text}) comes first and covers it"
                    )
                break
    for template in settings.auth.own_channels:
        own = ChannelPattern(template.replace("{sub}", "*"))
        for place, rule in enumerate(rules):
            if rule.pattern.overlaps(own):
                if rule.public:
                    yield (
                        f"channels[{place}] ({rule.pattern.text}) is public, also what is a user's own by "
                        f"auth.own_channels ({template}): put a table for that before it"
                    )
                    break
                if rule.pattern.covers(own):
                    break
