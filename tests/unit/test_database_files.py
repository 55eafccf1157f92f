"""The files of an open database, which others may cut or replace while it is used."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sse_app.storage.sqlite import DatabaseDamaged, DatabaseFiles, connect, open_database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.db"


def filled(path: Path) -> sqlite3.Connection:
    """Return a connection to a database of a hundred pages, all of them in the file and in the write-ahead log."""
    database = open_database(path, 1, ["CREATE TABLE texts (text TEXT);\n"])
    database.executemany("INSERT INTO texts VALUES (?)", [("x" * 4000,)] * 100)
    database.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return database


def test_a_file_that_is_cut_is_damaged_although_the_write_ahead_log_has_its_pages_too(path: Path) -> None:
    with closing(filled(path)) as database:
        files = DatabaseFiles(path)
        os.truncate(path, path.stat().st_size // 8192 * 4096)
        database.execute("BEGIN IMMEDIATE")  # SQLite may begin the log anew, and would then read zeros
        with pytest.raises(DatabaseDamaged, match="pages are missing"):
            files.check(database)
        database.execute("ROLLBACK")


def test_a_file_that_has_become_smaller_because_there_is_less_in_it_is_whole(path: Path) -> None:
    with closing(filled(path)) as database:
        files = DatabaseFiles(path)
        database.execute("DELETE FROM texts WHERE rowid > 10")
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert files.have_shrunk()
        database.execute("BEGIN IMMEDIATE")
        files.check(database)
        database.execute("ROLLBACK")
        assert not files.have_shrunk()


def test_a_write_ahead_log_counts_as_written_to_until_nothing_was_written_for_a_while(path: Path) -> None:
    wal = f"{path}-wal"
    with closing(filled(path)) as database, closing(connect(path)) as other:
        files = DatabaseFiles(path)
        assert files.may_be_written(0.0)
        assert files.may_be_written(0.0), (
            "it was written to a moment ago, and may be again without another time of change"
        )
        os.utime(wal, (1, 1))
        assert files.may_be_written(0.0)
        assert not files.may_be_written(0.0)
        for connection in (other, database):
            connection.execute("UPDATE texts SET text = text || 'y' WHERE rowid = 1")
            assert files.may_be_written(0.0)
            os.utime(wal, (1, 1))
            assert files.may_be_written(0.0)
            assert not files.may_be_written(0.0)
        os.utime(wal, (2, 2))
        assert not files.may_be_written(2.0), "what was written until then is known"
        os.utime(wal, (3, 3))
        assert files.may_be_written(2.0)
    assert files.may_be_written(0.0), "it is not there any more, which is for a look to say"
