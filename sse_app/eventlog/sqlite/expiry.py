"""Erases what is older than the event log keeps: events, channels, and the answers to idempotency keys."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any

from sse_app.core.channels import ChannelName
from sse_app.eventlog.base import EMPTY_CHANNELS, IDEMPOTENCY_AGE, RetentionRules
from sse_app.eventlog.sqlite.file import LogFile
from sse_app.eventlog.sqlite.reports import Commit, Forgotten
from sse_app.eventlog.sqlite.schema import CHANNEL_STATE, ChannelState, channel_state, keep_head
from sse_app.eventlog.sqlite.sizes import beyond
from sse_app.storage.sqlite import content_of_ours

ERASE_STEP = 2_000
"""How many expired events one transaction erases, so that publishers do not wait long behind it."""

SURPLUS_STEP = 50
"""How many channels are looked at together, whether they are over their size."""

ERASED_BYTES = 700
"""About how much of the write-ahead log it takes to erase an event, in bytes."""


class Expiry:
    """Looks after the age of what is in the log, a step at a time; of several processes one does it at a time.

    Args:
        file: the log.
        retention: how much of each channel is kept.
        locked: holds the lock.
        report: is told of what has been erased, while the lock is held.
    """

    def __init__(
        self,
        file: LogFile,
        retention: RetentionRules,
        locked: Callable[[], AbstractContextManager[None]],
        report: Callable[[Commit], None],
    ) -> None:
        self._file = file
        self.retention = retention
        self._locked = locked
        self._report = report
        self._looked_by = retention
        """The rules by which `_looked` and `_measured` came about."""
        self._looked: dict[float, int] = {}
        """By an age that is not the longest: up to which ``seq`` events that are kept so long have been erased."""
        self._measured: int | None = 0
        """Up to which id channels have been looked at, whether they are over their sizes; None: all have been."""

    def step(self) -> bool:
        """Erase some of what is due, and return whether there may be more.

        Raises:
            StateError, sqlite3.Error: it cannot be done.
        """
        with content_of_ours():
            if self._looked_by is not self.retention:
                self._looked_by = self.retention
                self._looked.clear()
                self._measured = 0
            if self._events_are_due() and self._erase_events():
                return True
            if self._measured is not None:
                self._measured = self._erase_surplus(self._measured)
                return True
            if self._erase_short_lived():
                return True
            if self._answers_are_due():
                with self._locked(), self._file.transaction():
                    until = self._file.clock.now() - IDEMPOTENCY_AGE
                    self._file.db.execute("DELETE FROM answers WHERE at <= ?", (until,))
            self._forget_channels()
        return False

    def _events_are_due(self) -> bool:
        oldest = self._file.db.execute("SELECT at FROM events ORDER BY seq LIMIT 1").fetchone()
        now = self._file.clock.now()
        return oldest is not None and not now - self.retention.longest_age < oldest[0] <= now

    def _answers_are_due(self) -> bool:
        until = self._file.clock.now() - IDEMPOTENCY_AGE
        return self._file.db.execute("SELECT 1 FROM answers WHERE at <= ?", (until,)).fetchone() is not None

    def _erase_events(self) -> bool:
        """Erase some of the oldest events, and return whether there may be more that are due.

        Every channel that loses some is told to be trimmed.
        """
        file, db = self._file, self._file.db
        with self._locked():
            changed: dict[ChannelName, ChannelState] = {}
            with file.transaction():
                now = file.clock.now()
                oldest = db.execute("SELECT at FROM events ORDER BY seq LIMIT 1").fetchone()
                if oldest is not None and oldest[0] > now:
                    # It was dated by a clock that was ahead, and later ones were not. Its age is not known: from now.
                    db.execute("UPDATE events SET at = ? WHERE at > ?", (now, now))
                (until,) = db.execute(
                    "SELECT max(seq) FROM (SELECT seq, at FROM events ORDER BY seq LIMIT ?) WHERE at <= ?",
                    (ERASE_STEP, now - self.retention.longest_age),
                ).fetchone()
                if until is None:
                    return False
                losses = db.execute(
                    f"SELECT name, max(seq), sum(seq > trimmed), {CHANNEL_STATE} "
                    "FROM events JOIN channels ON id = channel WHERE seq <= ? GROUP BY channel",
                    (until,),
                ).fetchall()
                self._trim(losses, changed)
                erased = db.execute("DELETE FROM events WHERE seq <= ?", (until,)).rowcount
            self._tell(changed, erased)
        # Where events are published all the time there is always one that has just become too old.
        return bool(erased >= ERASE_STEP)

    def _erase_short_lived(self) -> bool:
        """Erase some events of channels that keep theirs for less long than others.

        Each event is looked at once for each age.

        Returns:
            Whether there may be more.
        """
        more = False
        for age in self.retention.ages[:-1]:
            until, looked, last = self._old_events(age)
            if last:
                self._erase_of_channels(last)
            self._looked[age] = until
            more = more or looked == ERASE_STEP
        return more

    def _old_events(self, age: float) -> tuple[int, int, dict[int, int]]:
        """Look for events that are older than their channels keep them.

        Returns:
            Up to which ``seq`` it has been looked, and at how many; and by the ids of channels of this age, which is
            their last one so far.
        """
        db, now = self._file.db, self._file.clock.now()
        until, looked = self._looked.get(age, 0), 0
        of_this_age: dict[int, bool] = {}
        last: dict[int, int] = {}
        with closing(
            db.execute(
                "SELECT seq, channel, at FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (until, ERASE_STEP)
            )
        ) as rows:
            for seq, channel, at in rows:
                if now - age < at <= now:
                    break
                until, looked = seq, looked + 1
                if channel not in of_this_age:
                    name = db.execute("SELECT name FROM channels WHERE id = ?", (channel,)).fetchone()
                    of_this_age[channel] = name is not None and self.retention.of(name[0]).age == age
                if of_this_age[channel] and at <= now:
                    last[channel] = seq
        return until, looked, last

    def _erase_surplus(self, after: int) -> int | None:
        """Erase what channels have over the sizes that are in force since the start or a change of them.

        Later on each commit sees to the channels that it adds to.

        Args:
            after: the id of the last channel that has been looked at.

        Returns:
            The id of the last one that has been now; None where there are no more.
        """
        file, db, retention = self._file, self._file.db, self.retention
        least = min([retention.default.size, *(kept.size for _, kept in retention.rules)])
        candidates = db.execute(
            "SELECT id, name, published - ifnull(dropped, 0) AS kept FROM channels WHERE id > ? AND kept > ? "
            "ORDER BY id LIMIT ?",
            (after, least, SURPLUS_STEP),
        ).fetchall()
        if not candidates:
            return None
        reached = int(candidates[-1][0])
        over = [(id, name) for id, name, kept in candidates if kept > retention.of(name).size]
        if over:
            erased = 0
            with self._locked():
                changed: dict[ChannelName, ChannelState] = {}
                with file.transaction():
                    for id, name in over:
                        if (state := file.channel(name)) is not None:
                            erased += self._trim_to_size(name, state, changed)
                        if erased >= ERASE_STEP:
                            reached = int(id)
                            break
                self._tell(changed, erased)
        return reached

    def _trim_to_size(
        self, name: ChannelName, state: ChannelState, changed: dict[ChannelName, ChannelState]
    ) -> int:
        """Erase what a channel has over its size, in a transaction, and return how many events."""
        db, size = self._file.db, self.retention.of(name).size
        trimmed, dropped = beyond(db, size, state.id, state.published, state.trimmed, state.dropped)
        if trimmed == state.trimmed:
            return 0
        changed[name] = state._replace(trimmed=trimmed, dropped=dropped)
        db.execute("UPDATE channels SET trimmed = ?, dropped = ? WHERE id = ?", (trimmed, dropped, state.id))
        return db.execute("DELETE FROM events WHERE channel = ? AND seq <= ?", (state.id, trimmed)).rowcount

    def _erase_of_channels(self, last: dict[int, int]) -> None:
        """Erase events of channels, of each up to one of them."""
        file, db = self._file, self._file.db
        with self._locked():
            changed: dict[ChannelName, ChannelState] = {}
            with file.transaction():
                losses: list[tuple[Any, ...]] = []
                erased = 0
                for channel, seq in last.items():
                    losses += db.execute(
                        "SELECT name, ?, "
                        "(SELECT count(*) FROM events WHERE channel = id AND seq > trimmed AND seq <= ?), "
                        f"{CHANNEL_STATE} FROM channels WHERE id = ?",
                        (seq, seq, channel),
                    ).fetchall()
                    erased += db.execute(
                        "DELETE FROM events WHERE channel = ? AND seq <= ?", (channel, seq)
                    ).rowcount
                self._trim(losses, changed)
            self._tell(changed, erased)

    def _trim(self, losses: list[tuple[Any, ...]], changed: dict[ChannelName, ChannelState]) -> None:
        """Note of every channel that loses events that it is trimmed; in the transaction that erases them."""
        file, db = self._file, self._file.db
        for name, last, dropped, *row in losses:
            state = channel_state(row)
            if dropped:
                known = None if state.dropped is None else state.dropped + dropped
                changed[name] = state._replace(trimmed=last, dropped=known)
        db.executemany(
            "UPDATE channels SET trimmed = ?, dropped = ? WHERE id = ?",
            [(state.trimmed, state.dropped, state.id) for state in changed.values()],
        )
        keep_head(db, file.head)

    def _tell(self, changed: dict[ChannelName, ChannelState], erased: int) -> None:
        """Report what has become of channels; the lock is held."""
        file = self._file
        for name in changed:
            file.channels.pop(name, None)
        self._report(Commit(channels=changed))
        if file.is_long_after(erased * ERASED_BYTES):
            file.checkpoint()

    def _forget_channels(self) -> None:
        """Forget the channels that were used longest ago, of those of which no event is kept any more."""
        file, db = self._file, self._file.db
        (empty,) = db.execute("SELECT count(*) FROM channels WHERE trimmed >= last_seq").fetchone()
        if empty <= EMPTY_CHANNELS:
            return
        with self._locked():
            with file.transaction():
                surplus = db.execute(
                    "SELECT id, name, last_seq FROM channels WHERE trimmed >= last_seq "
                    "ORDER BY last_seq DESC LIMIT -1 OFFSET ?",
                    (EMPTY_CHANNELS,),
                ).fetchall()
                until = max([file.forgotten, *(last for _, _, last in surplus)])
                db.executemany("DELETE FROM channels WHERE id = ?", [(id,) for id, _, _ in surplus])
                db.execute("UPDATE log SET forgotten = ?", (until,))
            file.forgotten = until
            names = frozenset(ChannelName(name) for _, name, _ in surplus)
            for name in names:
                file.channels.pop(name, None)
            self._report(Commit(forgotten=Forgotten(until, names)))
