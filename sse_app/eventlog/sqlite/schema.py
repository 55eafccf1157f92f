"""The tables of the SQLite event log, and the statements that fill them."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from sse_app.eventlog.base import LogClock, hash_of_key
from sse_app.storage.boot import boot_id
from sse_app.storage.sqlite import Migration

APPLICATION_ID = 0x53534531  # "SSE1"


def _hash_keys(connection: sqlite3.Connection) -> None:
    """Have every idempotency key known by its hash: programs of version 1 first kept the keys themselves.

    One that looks like a hash may be a key all the same, and stays known as both for its 24 hours.
    """
    connection.create_function("hash_of_key", 1, hash_of_key, deterministic=True)
    connection.execute(
        "INSERT OR IGNORE INTO answers (subject, key, digest, first_seq, count, at) "
        "SELECT subject, hash_of_key(key), digest, first_seq, count, at FROM answers"
    )
    connection.execute("DELETE FROM answers WHERE length(key) != 64 OR key GLOB '*[^0-9a-f]*'")


MIGRATIONS: list[Migration] = [
    """
    CREATE TABLE log (epoch TEXT NOT NULL);
    CREATE TABLE channels (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        published INTEGER NOT NULL, last_seq INTEGER NOT NULL, trimmed INTEGER NOT NULL
    );
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY, channel INTEGER NOT NULL, type TEXT NOT NULL, data BLOB NOT NULL,
        retry INTEGER, at REAL NOT NULL
    );
    CREATE INDEX events_of_channel ON events (channel, seq);
    CREATE TABLE answers (
        subject TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL,
        first_seq INTEGER NOT NULL, count INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (subject, key)
    ) WITHOUT ROWID;
    CREATE INDEX answers_by_age ON answers (at);
    """,
    _hash_keys,
    """
    ALTER TABLE log ADD COLUMN probes INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE log ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
    """,
    # By how much the log's time is ahead of the monotonic clock, which runs through one start of the machine.
    """
    ALTER TABLE log ADD COLUMN boot TEXT NOT NULL DEFAULT '';
    ALTER TABLE log ADD COLUMN ahead REAL NOT NULL DEFAULT 0;
    """,
    # So that a channel's size and the log's head are known without all events or channels being read: how many of a
    # channel's events are no longer kept (NULL: to be counted), and a head that is at least that of all erased events.
    # Where a process of an earlier version writes beside this one, the trigger does what that version does not.
    """
    ALTER TABLE log ADD COLUMN head INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE channels ADD COLUMN dropped INTEGER;
    UPDATE log SET head = max(forgotten, ifnull((SELECT max(last_seq) FROM channels), 0));
    CREATE TRIGGER trimmed_by_an_earlier_version AFTER UPDATE OF trimmed ON channels
        WHEN new.trimmed <> old.trimmed AND new.dropped IS old.dropped
        BEGIN
            UPDATE channels SET dropped = NULL WHERE id = new.id; UPDATE log SET head = max(head, new.last_seq); END;
    """,
    # The index has only events with the flag FINAL, so that a start finds the channels that have ended at once.
    """
    ALTER TABLE events ADD COLUMN flags INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX final_events ON events (seq) WHERE flags & 2;
    """,
]

COLUMNS = 7
INSERT_SIZES = (512, 128, 32, 8, 1)
"""How many rows an INSERT statement takes; one has at most 32,766 parameters."""


class ChannelState(NamedTuple):
    """What is committed of a channel: ``trimmed`` is the ``seq`` of its last event that is no longer kept."""

    id: int
    published: int
    last_seq: int
    trimmed: int
    dropped: int | None
    """How many of the published events are no longer kept; None where that has to be counted."""


CHANNEL_STATE = "id, published, last_seq, trimmed, dropped"
"""The columns of a `ChannelState`."""


def channel_state(row: Sequence[object]) -> ChannelState:
    """Return what a row says of a channel.

    Raises:
        TypeError, ValueError: this program has not written it.
    """
    id, published, last_seq, trimmed = map(_integer, row[:4])
    return ChannelState(id, published, last_seq, trimmed, None if row[4] is None else _integer(row[4]))


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


class LogState(NamedTuple):
    """What is committed of the log as a whole."""

    epoch: str
    head: int
    """The ``seq`` of the last event that was ever appended."""
    forgotten: int
    """The ``seq`` of the last event of any channel that was forgotten."""
    last_at: float
    """When the last event was appended that is known of."""


def log_state(connection: sqlite3.Connection) -> LogState:
    """Return the state of a log that has an epoch, without a look at all of its channels."""
    epoch, head, forgotten, at = connection.execute(
        "SELECT epoch, max(head, forgotten, ifnull((SELECT max(seq) FROM events), 0)), forgotten, "
        "max(ifnull((SELECT at FROM events ORDER BY seq DESC LIMIT 1), 0), "
        "ifnull((SELECT max(at) FROM answers), 0)) FROM log"
    ).fetchone()
    return LogState(str(epoch), _integer(head), _integer(forgotten), float(at))


def epoch_of(connection: sqlite3.Connection) -> str:
    """Return the log's epoch, which a new log is given here; two processes that open it at once agree on one."""
    connection.execute("BEGIN IMMEDIATE")
    row = connection.execute("SELECT epoch FROM log").fetchone()
    epoch = str(row[0]) if row else secrets.token_hex(4)
    if not row:
        connection.execute("INSERT INTO log (epoch) VALUES (?)", (epoch,))
    connection.execute("COMMIT")
    return epoch


def new_epoch(connection: sqlite3.Connection) -> str:
    """Give the log another epoch, so that no id of the old one is taken for an event of the new, and return it."""
    epoch = secrets.token_hex(4)
    connection.execute("BEGIN IMMEDIATE")
    if not connection.execute("UPDATE log SET epoch = ?", (epoch,)).rowcount:
        connection.execute("INSERT INTO log (epoch) VALUES (?)", (epoch,))
    connection.execute("COMMIT")
    return epoch


def clock_of(connection: sqlite3.Connection) -> LogClock | None:
    """Return the clock that a process has begun since the machine was started, as it is in the log."""
    row = connection.execute("SELECT ahead FROM log WHERE boot = ?", (boot_id(),)).fetchone()
    return LogClock(float(row[0])) if row else None


def keep_clock(connection: sqlite3.Connection, clock: LogClock) -> None:
    """Have the clock continued by the processes that open the log until the machine is started again."""
    connection.execute("UPDATE log SET boot = ?, ahead = ?", (boot_id(), clock.ahead))


def head_of(connection: sqlite3.Connection) -> int:
    """Return the ``seq`` of the last event that was ever appended."""
    row = connection.execute(
        "SELECT max(head, forgotten, ifnull((SELECT max(seq) FROM events), 0)) FROM log"
    ).fetchone()
    return int(row[0]) if row else 0


def keep_head(connection: sqlite3.Connection, head: int) -> None:
    """Have the head known when the last events are erased."""
    connection.execute("UPDATE log SET head = max(head, ?)", (head,))


def require_head(connection: sqlite3.Connection) -> None:
    """Make sure that the head is at least that of all channels, also where events were erased by hand."""
    (last,) = connection.execute("SELECT ifnull(max(last_seq), 0) FROM channels").fetchone()
    if last > head_of(connection):
        keep_head(connection, int(last))


def forgotten_until(connection: sqlite3.Connection) -> int:
    """Return the ``seq`` of the last event of any channel that was forgotten."""
    row = connection.execute("SELECT forgotten FROM log").fetchone()
    return int(row[0]) if row else 0


def probe(connection: sqlite3.Connection) -> None:
    """Find out, within a transaction, whether the log can be written.

    SQLite writes no page whose content stays the same, so something changes.
    """
    connection.execute("UPDATE log SET probes = probes + 1")


@cache
def insertion(rows: int) -> str:
    """Return the statement that inserts so many events."""
    return "INSERT INTO events (seq, channel, type, data, retry, flags, at) VALUES " + ", ".join(
        ["(?, ?, ?, ?, ?, ?, ?)"] * rows
    )
