"""``check-config`` with a log on PostgreSQL: what it says of the database, and what it refuses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from sse_app.process.database_check import promise_of, requires_all
from sse_app.storage.postgres.schema import VERSION
from tests.support.poolers import pgbouncer
from tests.support.postgres import Postgres
from tests.support.server_process import clean_environment, run_program, running


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(tmp_path / "state")


class Check:
    """Gives the command for a database."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def lines(self, url: str, **settings: str) -> list[str]:
        """Return what is said of it, where a server could start."""
        done = self._done(url, settings)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("# ")]

    def refused(self, url: str, **settings: str) -> str:
        """Return why a server could not start."""
        done = self._done(url, settings)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stdout + done.stderr
        return done.stderr

    def _done(self, url: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = clean_environment(
            SSE_APP_EVENT_LOG=url, SSE_APP_STATE_DIR=str(self._state_dir), SSE_APP_PORT="0", **settings
        )
        return run_program("check-config", environment=environment)


def line(lines: list[str], begin: str) -> str:
    (found,) = [line for line in lines if line.startswith(f"# {begin}: ")]
    return found


def schemas(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'sse_app'").fetchall()


@pytest.mark.slow
def test_check_config_says_all_of_a_database_and_changes_nothing(
    check: Check, postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    with_password = database_url.replace("app@", "app:secret@")
    lines = check.lines(with_password)
    assert "secret" not in "".join(lines)
    assert re.fullmatch(
        r"# event log: in the database \S+ on 127\.0\.0\.1:\d+, PostgreSQL \d+\.\d+", lines[4]
    ), lines
    assert line(lines, "schema") == "# schema: not there yet; the start makes it"
    assert re.fullmatch(r"# latency: a query takes \d+\.\d ms", line(lines, "latency"))
    assert line(lines, "clock") == "# clock: as the database's"
    assert line(lines, "a 201 promises") == (
        "# a 201 promises: on disk here before the 201; a failover to an asynchronous standby loses the last events "
        "(synchronous_commit = on, synchronous_standby_names = '')"
    )
    assert line(lines, "connections").startswith(
        "# connections: up to 5 for 1 process of this machine, twice as many in a restart; the database allows 197"
    )
    assert line(lines, "LISTEN") == "# LISTEN: notifications are heard"
    assert schemas(database_url) == []
    with running(state_dir=tmp_path / "node", EVENT_LOG=database_url):
        pass
    assert line(check.lines(database_url), "schema") == f"# schema: version {VERSION}"
    assert "warning" in "".join(check.lines(database_url, SSE_APP_POSTGRES__CONNECTIONS="100"))
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE sse_app.schema SET version = 1")
    assert (
        line(check.lines(database_url), "schema")
        == f"# schema: version 1, which the start brings to {VERSION}"
    )
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE sse_app.schema SET version = 99")
    assert "version 99, newer than" in line(check.lines(database_url), "schema")
    # Another user, without rights; a schema of a later version; an unfinished copy.
    name = database_url.rpartition("/")[2]
    postgres.execute(f"CREATE ROLE other_{name} LOGIN")
    other = database_url.replace("app@", f"other_{name}@")
    assert "permission denied for schema sse_app" in check.refused(other)
    with psycopg.connect(database_url) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA sse_app TO other_{name}".encode())
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA sse_app TO other_{name}".encode())
    assert f"the user other_{name} has no right to DELETE in the table sse_app." in check.refused(other)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE sse_app.schema SET version = 1")
    assert "may not bring it to" in check.refused(other)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE sse_app.schema SET version = 99, oldest = 99")
    assert "made by a newer version" in check.refused(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE sse_app.schema SET version = %s, oldest = 1", (VERSION,))
        connection.execute("INSERT INTO sse_app.copied (source, epoch) VALUES ('/events.db', 'x')")
    assert "has not finished" in check.refused(database_url)


def test_what_is_in_force_for_the_user_is_told(check: Check, postgres: Postgres, database_url: str) -> None:
    name = database_url.rpartition("/")[2]
    postgres.execute(f"ALTER ROLE app IN DATABASE {name} SET synchronous_commit = off")
    assert "loses the last events (synchronous_commit = off" in line(
        check.lines(database_url), "a 201 promises"
    )


def test_notifications_that_are_not_heard_are_told(
    check: Check, postgres: Postgres, database_url: str
) -> None:
    elsewhere = postgres.new_database()  # notified apart, as the sessions of a pooler are
    assert line(check.lines(database_url, SSE_APP_POSTGRES__LISTEN_URL=elsewhere), "LISTEN").startswith(
        "# LISTEN: warning: notifications are not heard"
    )
    nowhere = "postgresql://me:secret@127.0.0.1:1/x"
    assert "cannot use the database x" in check.refused(database_url, SSE_APP_POSTGRES__LISTEN_URL=nowhere)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("127.0.0.1", "nowhere.invalid"), "cannot use the database"),
        (("/test", "/missing"), "does not exist"),
        (("app@", "never_made@"), 'role "never_made" does not exist'),
        (("app@", "weak@"), "may not make it: GRANT CREATE ON DATABASE"),
        (("app@", "locked:secret@"), "password authentication failed"),
        (("//app@", "//app@127.0.0.1:1,"), ""),
    ],
    ids=["host", "database", "role", "rights", "password", "second host"],
)
def test_a_database_that_cannot_be_used_is_refused_with_one_line(
    check: Check, postgres: Postgres, database_url: str, change: tuple[str, str], says: str
) -> None:
    for role in ("weak", "locked"):
        if not postgres.execute(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
            postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'other'")
    hba = postgres.data / "pg_hba.conf"
    if "locked" not in (before := hba.read_text()):
        hba.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}")
        postgres.execute("SELECT pg_reload_conf()")
    url = database_url.replace(*change)
    if says:
        assert says in check.refused(url)
    else:
        assert check.lines(url)


@pytest.mark.parametrize(
    ("commit", "standbys", "says"),
    [
        ("off", "a", "an asynchronous standby loses the last events"),
        ("local", "a", "an asynchronous standby loses the last events"),
        ("on", " ", "an asynchronous standby loses the last events"),
        ("remote_write", "a", "only where its machine has crashed too"),
        ("on", "a", "at a synchronous standby before the 201; a failover to it loses nothing"),
        ("remote_apply", "FIRST 1 (a)", "to be read there before the 201; a failover to it loses nothing"),
        ("on", "ANY 1 (a, b)", "but gives a new epoch"),
    ],
)
def test_each_promise_is_put_in_words(commit: str, standbys: str, says: str) -> None:
    assert says in promise_of(commit, standbys)
    assert promise_of(commit, standbys, fsync=False).startswith("nothing")


def test_a_list_of_standbys_is_read_as_the_log_reads_it(
    postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    with running(state_dir=tmp_path / "node", EVENT_LOG=database_url):
        pass
    name = database_url.rpartition("/")[2]
    postgres.set("primary_conninfo", "application_name=a")  # which the superuser is told
    try:
        for standbys in STANDBYS:
            found = postgres.execute(f"SELECT sse_app.had_all('{standbys}')", name)
            assert found == [(requires_all(standbys),)], standbys
    finally:
        postgres.execute("ALTER SYSTEM RESET primary_conninfo")
        postgres.execute("SELECT pg_reload_conf()")


STANDBYS = ["a", '"a"', "1 (a)", "2 (a, b)", "first 2 (a, b)", "ANY 1 (a, b)", "a, b", "*", "2 (a, *)", ""]


def test_behind_a_pooler_in_transaction_mode_the_missing_notifications_are_told(
    check: Check, postgres: Postgres, database_url: str
) -> None:
    with pgbouncer(postgres, "transaction") as port:
        url = database_url.replace(f":{postgres.port}/", f":{port}/")
        assert "not heard, as behind a pooler" in line(check.lines(url), "LISTEN")
        direct = line(check.lines(url, SSE_APP_POSTGRES__LISTEN_URL=database_url), "LISTEN")
        assert direct == "# LISTEN: notifications are heard"
