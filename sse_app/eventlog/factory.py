"""Makes the event log that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sse_app.core.channel_rules import ChannelRules
from sse_app.eventlog.base import EventLog, Retention, RetentionRules
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.eventlog.sqlite.schema import APPLICATION_ID
from sse_app.settings.model import History
from sse_app.settings.types import POSTGRES_SCHEMES
from sse_app.storage.sqlite import has_database
from sse_app.storage.state_dir import StateDirectory

if TYPE_CHECKING:
    from sse_app.storage.postgres.database import Database


def event_log_path(url: str, state: StateDirectory) -> Path | None:
    """Return the file of an event log, or None where it is in none.

    Args:
        url: the setting ``event_log``.
        state: holds the file unless the URL names one.
    """
    if url == "memory:" or url.startswith(POSTGRES_SCHEMES):
        return None
    return Path(url.removeprefix("sqlite:") or state.events)


def stored_event_log(url: str, state: StateDirectory) -> Path | None:
    """Return the file of an event log that is there already, or None.

    Args:
        url: the setting ``event_log``.
        state: holds the file unless the URL names one.

    Raises:
        StateError: there is another file in its place.
    """
    path = event_log_path(url, state)
    return path if path is not None and has_database(path, APPLICATION_ID) else None


def kept_of(history: History, channels: ChannelRules) -> RetentionRules:
    """Return how much of each channel is kept.

    Args:
        history: of channels for which nothing else is configured.
        channels: those that are configured.
    """
    default = Retention(history.size, history.age)
    rules = [
        (
            rule.pattern,
            Retention(
                default.size if rule.size is None else rule.size,
                default.age if rule.age is None else rule.age,
            ),
        )
        for rule in channels.rules
    ]
    while rules and rules[-1][1] == default:
        rules.pop()
    return RetentionRules(default, rules)


def make_event_log(
    url: str, retention: RetentionRules, state: StateDirectory, database: Database | None = None
) -> EventLog:
    """Return the event log that a URL names, not yet open.

    Args:
        url: the setting ``event_log``.
        retention: how much of each channel it keeps.
        state: holds its file unless the URL names one.
        database: keeps it, where the URL names one.
    """
    if database is not None:
        from sse_app.eventlog.postgres.log import PostgresEventLog  # only here: it takes a while to load

        return PostgresEventLog(database, retention, state.log_position)
    path = event_log_path(url, state)
    return MemoryEventLog(retention) if path is None else SqliteEventLog(path, retention)
