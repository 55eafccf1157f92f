"""What an earlier version of this program has stored, to be found by this one."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

OLD = Path(__file__).with_name("old_databases")


def lay_down(state: Path, *names: str) -> None:
    """Make the old databases, as if they had been written just now."""
    state.mkdir(mode=0o700, exist_ok=True)
    now = time.time()
    for name in names:
        path = state / f"{name.partition('-')[0]}.db"
        path.touch(mode=0o600)
        with closing(sqlite3.connect(path)) as database, database:
            database.executescript((OLD / f"{name}.sql").read_text())
            if name == "events-1":
                database.execute("UPDATE events SET at = ?", (now,))
                database.execute("UPDATE answers SET at = ?", (now,))
            if name == "accounts-2":
                database.execute("UPDATE sessions SET used_at = ?, expires_at = ?", (now, now + 86_400))
                database.execute("UPDATE revocations SET forget_at = ?", (now + 86_400,))
