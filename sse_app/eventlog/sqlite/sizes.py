"""How much of a channel on SQLite is over its size."""

from __future__ import annotations

import sqlite3

from sse_app.storage.sqlite import content_of_ours


def beyond(
    db: sqlite3.Connection, size: int, id: int, published: int, trimmed: int, dropped: int | None
) -> tuple[int, int]:
    """Return a channel's ``trimmed`` and ``dropped``, as of `ChannelState`, once it keeps no more events than its size.

    Args:
        db: in a transaction in which its new events are stored already.
        size: how many it keeps.
        id, published, trimmed, dropped: as of `ChannelState`.
    """
    counted = dropped is None
    if dropped is None:
        dropped = published - _kept(db, id, trimmed)
    while (excess := published - dropped - size) > 0:
        row = db.execute(
            "SELECT seq FROM events WHERE channel = ? AND seq > ? ORDER BY seq LIMIT 1 OFFSET ?",
            (id, trimmed, excess - 1),
        ).fetchone()
        if row is None and not counted:  # some were erased by hand
            counted, dropped = True, published - _kept(db, id, trimmed)
            continue
        with content_of_ours():
            trimmed, dropped = int(row[0]), dropped + excess
    return trimmed, dropped


def _kept(db: sqlite3.Connection, id: int, trimmed: int) -> int:
    """Count the kept events of a channel, those of this transaction included."""
    (kept,) = db.execute(
        "SELECT count(*) FROM events WHERE channel = ? AND seq > ?", (id, trimmed)
    ).fetchone()
    return int(kept)
