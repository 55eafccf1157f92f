"""``eventlog copy``: a server on SQLite becomes nodes on PostgreSQL, and its clients go on where they were."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from sse_app.core.events import FINAL, TEXT
from sse_app.storage.postgres.schema import migrate
from sse_app.storage.postgres.single import connected
from tests.support.people import bearer, claims_of
from tests.support.poolers import pgbouncer
from tests.support.postgres import Postgres, cluster
from tests.support.room import first, listen, numbers, sequence, take
from tests.support.server_process import ROOT, ServerProcess, run_program, running, starting
from tests.support.waiting import until

PASSWORD = "correct horse battery"


@pytest.fixture
def start(tmp_path: Path, database_url: str) -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts servers, which end before the database is removed."""

    def make(name: str = "old", **settings: Any) -> ServerProcess:
        return ServerProcess(state_dir=tmp_path / name, CHANNELS=["**"], **settings)

    yield from starting(make)


def node_of(
    start: Callable[..., ServerProcess], old: ServerProcess, url: str, number: int, **settings: Any
) -> ServerProcess:
    """Start a server on PostgreSQL, with a copy of the keys of the old one."""
    name = f"node{number}"
    shutil.copytree(old.state_dir / "keys", old.state_dir.parent / name / "keys")
    return start(name=name, EVENT_LOG=url, NODE=name, **settings)


def publish(http: httpx.Client, channel: str, number: int, **headers: str) -> str:
    answer = http.post(f"/api/v1/sse/{channel}", json={"event": "e", "data": {"n": number}}, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def publish_many(http: httpx.Client, channel: str, count: int, start: int = 0) -> list[str]:
    ids: list[str] = []
    for begin in range(start, start + count, 500):
        events = [
            {"channel": channel, "event": "e", "data": {"n": n}}
            for n in range(begin, min(begin + 500, start + count))
        ]
        answer = http.post("/api/v1/sse", json={"events": events})
        assert answer.status_code == 201, answer.text
        ids += answer.json()["ids"]
    return ids


def copied(server: ServerProcess, url: str, status: int = 0) -> str:
    """Give the command, and return what it printed, or complained of where it fails."""
    done = run_program("eventlog", "copy", "--to", url, environment=server.environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status:
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    return done.stdout


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.mark.slow
def test_clients_go_on_at_nodes_from_where_they_were_at_the_server_before(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    old = start(HISTORY__SIZE=20)
    old.add_user("ann", PASSWORD, subscribe="**")
    token, revoked = old.stream_token("**"), old.stream_token("**")
    with old.publisher() as http:
        session, ended = log_in(old), log_in(old)
        publish_many(http, "busy", 50)  # more than is kept
        ids = [publish(http, "quiet", n) for n in range(5)]
        for event in ({"event": "text", "data": "one\ntwo"}, {"event": "end", "data": [3], "final": True}):
            assert http.post("/api/v1/sse/told", json=event).status_code == 201
        keyed = publish(http, "quiet", 5, **{"Idempotency-Key": "k"})
        said = copied(old, database_url)
        assert f"copied up to event {sequence(keyed)}" in said
        assert "a server uses this log: stop it" in said
        # It serves on, and no other one can begin with what is not whole.
        early = ServerProcess(state_dir=old.state_dir.parent / "early", EVENT_LOG=database_url)
        done = run_program("serve", environment=early.environment)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "has not finished" in done.stderr
        publish(http, "quiet", 6)
        publish_many(http, "busy", 30, 50)
        last = publish(http, "new", 7)
        assert old.command("revoke", "--token-id", str(claims_of(revoked)["jti"])) == ""
        session = refreshed(old, session)
        assert old.command("revoke", "--session", str(claims_of(ended["access_token"])["sid"])) == ""
    assert old.stop() == 0
    said = copied(old, database_url)
    assert f"continues after event {sequence(keyed)}" in said
    assert "the same on both sides" in said
    kinds = "SELECT type, data, flags FROM sse_app.events WHERE type IN ('text', 'end') ORDER BY seq"
    assert rows(database_url, kinds) == [("text", b"one\ntwo", TEXT), ("end", b"[3]", FINAL)]

    nodes = [node_of(start, old, database_url, number, HISTORY__SIZE=20) for number in (1, 2)]
    for node in nodes:
        with listen(node.stream_url("quiet,new", token), after=ids[2]) as frames:
            connected = first(frames)
            assert (connected.id, connected.data["recovered"]) == (ids[2], True)
            assert numbers(take(frames, 5)) == [3, 4, 5, 6, 7]
        with listen(node.stream_url("busy", token), after=ids[0]) as frames:
            assert first(frames).data["recovered"] is False  # as before: those are no longer kept
        assert httpx.get(node.stream_url("quiet", revoked)).status_code == 401
        assert refresh(node, ended["refresh_token"]).status_code == 401
        session = refreshed(node, session)
        with httpx.Client(base_url=node.url, headers=bearer(session["access_token"]), timeout=30) as http:
            history = http.get("/api/v1/sse/busy/history").json()
            assert [event["data"]["n"] for event in history["events"]] == list(range(60, 80))
    with nodes[1].publisher() as http:
        assert publish(http, "quiet", 5, **{"Idempotency-Key": "k"}) == keyed
        following = publish(http, "quiet", 8)
        assert following == f"{last.rpartition('-')[0]}-{sequence(last) + 1}"
        with listen(nodes[0].stream_url("quiet", token), after=last) as frames:
            assert first(frames).data["recovered"] is True
            assert [frame.id for frame in take(frames, 1)] == [following]
    # Another copy would take back what users have done since.
    assert "is in use by the node" in copied(old, database_url, status=1)
    for node in nodes:
        assert node.stop() == 0
    assert "has been used since" in copied(old, database_url, status=1)


def log_in(server: ServerProcess) -> dict[str, Any]:
    body = {"username": "ann", "password": PASSWORD, "cookie": False}
    answer = httpx.post(f"{server.url}/api/v1/auth/login", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    session: dict[str, Any] = answer.json()
    return session


def refresh(server: ServerProcess, token: str) -> httpx.Response:
    return httpx.post(f"{server.url}/api/v1/auth/refresh", json={"refresh_token": token}, timeout=30)


def refreshed(server: ServerProcess, session: dict[str, Any]) -> dict[str, Any]:
    answer = refresh(server, session["refresh_token"])
    assert answer.status_code == 200, answer.text
    following: dict[str, Any] = answer.json()
    return following


class Filled:
    """A stopped server's state with some thousand events, of which some have been trimmed, and a second channel."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.log = server.state_dir / "events.db"
        with server.publisher() as http:
            publish_many(http, "busy", 1_000)
            publish(http, "quiet", 1, **{"Idempotency-Key": "k"})
            publish_many(http, "busy", 11_000, 1_000)
        server.command("user", "add", "ann", "--password-stdin", input=PASSWORD)

    def stop(self) -> None:
        assert self.server.stop() == 0

    def kept(self) -> list[tuple[Any, ...]]:
        """Return every event that is kept, with its channel, and its place there as a count of all that it had."""
        with closing(sqlite3.connect(self.log)) as db:
            return db.execute(
                "SELECT seq, name, published + 1 - row_number() OVER (PARTITION BY name ORDER BY seq DESC), "
                "type, data FROM events JOIN channels ON id = channel WHERE seq > trimmed ORDER BY seq"
            ).fetchall()

    def assert_copied(self, url: str) -> None:
        assert self.kept() == rows(
            url,
            "SELECT seq, name, n, type, data FROM sse_app.events JOIN sse_app.channels ON id = channel ORDER BY seq",
        )
        with closing(sqlite3.connect(self.log)) as db:
            channels = db.execute("SELECT name, published, last_seq, trimmed FROM channels ORDER BY name")
            assert channels.fetchall() == rows(
                url, "SELECT name, published, last_seq, trimmed FROM sse_app.channels ORDER BY name"
            )
            epoch = db.execute("SELECT epoch FROM log").fetchone()
        assert rows(url, "SELECT epoch, seq FROM sse_app.log") == [(*epoch, 12_001)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with one event, which no test changes."""
    with running(state_dir=tmp_path_factory.mktemp("small") / "state") as server:
        with server.publisher() as http:
            publish(http, "alerts", 1)
        yield server


@pytest.fixture
def filled(start: Callable[..., ServerProcess]) -> Filled:
    return Filled(start())


@pytest.mark.long
def test_a_copy_that_is_killed_again_and_again_ends_as_one_that_is_not(
    filled: Filled, database_url: str
) -> None:
    filled.stop()
    command = [sys.executable, "-c", SLOW, "eventlog", "copy", "--to", database_url]
    positions = [0]
    for _ in range(3):
        with subprocess.Popen(
            command, cwd=ROOT, env=filled.server.environment, stdout=subprocess.DEVNULL
        ) as process:
            until(lambda: position(database_url) > positions[-1], "it has come further")
            process.kill()
        positions.append(position(database_url))
    assert positions[-1] < 12_001
    assert rows(database_url, "SELECT FROM sse_app.log") == []
    said = copied(filled.server, database_url)
    assert f"continues after event {positions[-1]:,}" in said
    filled.assert_copied(database_url)
    # Once more changes nothing.
    assert "continues after event 12,001" in copied(filled.server, database_url)
    filled.assert_copied(database_url)


SLOW = """
import signal, sys, time
from sse_app.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs the tests in the background may have it ignored
from sse_app.eventlog.sqlite import export

export.PAGE_EVENTS = 200
read = export.Export.page
export.Export.page = lambda *arguments: (time.sleep(0.1), read(*arguments))[1]
sys.exit(main(sys.argv[1:]))
"""
"""The command with small pages and a pause before each, so that it can be ended between two."""


def position(url: str) -> int:
    try:
        found = rows(url, "SELECT seq FROM sse_app.copied")
    except psycopg.errors.UndefinedTable:
        return 0
    return int(found[0][0]) if found else 0


@pytest.mark.slow
def test_what_is_trimmed_and_forgotten_between_two_runs_is_so_in_the_copy_too(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    server = start(HISTORY__SIZE=100)
    with server.publisher() as http:
        publish_many(http, "busy", 150)
        publish(http, "forgotten", 1)
    copied(server, database_url)
    with server.publisher() as http:
        publish_many(http, "busy", 500, 150)  # all that was copied of it is trimmed
    assert server.stop() == 0
    with closing(
        sqlite3.connect(server.state_dir / "events.db")
    ) as db:  # as its age and many others would have it
        (forgotten,) = db.execute("SELECT last_seq FROM channels WHERE name = 'forgotten'").fetchone()
        db.execute("DELETE FROM events WHERE seq = ?", (forgotten,))
        db.execute("DELETE FROM channels WHERE name = 'forgotten'")
        db.execute("UPDATE log SET forgotten = ?", (forgotten,))
        db.commit()
    server.start()
    with server.publisher() as http:
        again = sequence(publish(http, "forgotten", 2))
    assert server.stop() == 0
    copied(server, database_url)
    assert rows(database_url, "SELECT forgotten FROM sse_app.log") == [(forgotten,)]
    events = rows(
        database_url,
        "SELECT seq, name, n FROM sse_app.events JOIN sse_app.channels ON id = channel ORDER BY seq",
    )
    assert [(name, n) for _, name, n in events] == [*(("busy", n) for n in range(551, 651)), ("forgotten", 1)]
    assert events[-1][0] == again
    node = node_of(start, server, database_url, 1, HISTORY__SIZE=100)
    epoch = rows(database_url, "SELECT epoch FROM sse_app.log")[0][0]
    token = node.stream_token("**")
    with listen(node.stream_url("forgotten", token), after=f"{epoch}-{forgotten - 1}") as frames:
        assert first(frames).data["recovered"] is False
    with listen(node.stream_url("forgotten,busy", token), after=f"{epoch}-{again - 3}") as frames:
        assert first(frames).data["recovered"] is True
        assert numbers(take(frames, 3)) == [648, 649, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "says"),
    [
        (
            "INSERT INTO sse_app.log (epoch, seq, at, wall, system, timeline, made) VALUES ('x', 3, 0, 0, 0, 0, 0)",
            "holds another log (epoch x, 3 events published)",
        ),
        ("INSERT INTO sse_app.accounts VALUES ('bob', '', '{}', false)", "has accounts"),
        (
            "INSERT INTO sse_app.copied (source, epoch) VALUES ('/other/events.db', 'x')",
            "holds another log (epoch x; ",
        ),
        ("UPDATE sse_app.schema SET version = 99, oldest = 99", "made by a newer version"),
    ],
    ids=["log", "accounts", "copy", "schema"],
)
def test_a_database_that_holds_something_else_is_refused_and_left_as_it_is(
    small: ServerProcess, database_url: str, statement: str, says: str
) -> None:
    done = run_program(
        "eventlog", "show", environment={**small.environment, "SSE_APP_EVENT_LOG": database_url}
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no event log in the database" in done.stderr
    migrated(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute(statement.encode())
    assert says in copied(small, database_url, status=1)
    assert rows(database_url, "SELECT FROM sse_app.events") == []


def migrated(url: str) -> None:
    """Make the schema, as the first server does."""

    async def make() -> None:
        async with connected(url) as connection:
            await migrate(connection)

    asyncio.run(make())


@pytest.mark.slow
def test_an_empty_log_that_a_server_has_made_gives_way_to_the_copy(
    filled: Filled, start: Callable[..., ServerProcess], database_url: str
) -> None:
    other = start(name="other", EVENT_LOG=database_url)
    assert "is in use by the node" in copied(filled.server, database_url, status=1)
    assert other.stop() == 0
    filled.stop()
    copied(filled.server, database_url)
    filled.assert_copied(database_url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "cannot use the database x on 127.0.0.1:1: "),
        ("postgresql://me:secret@nowhere.invalid/x", "cannot use the database x on nowhere.invalid:5432: "),
        (
            "postgresql://me:secret@127.0.0.1/x?nonsense=1",
            "cannot use the URL of the database: invalid URI query parameter",
        ),
        (
            "postgresql://me:%secret@127.0.0.1/x",
            "cannot use the URL of the database: invalid percent-encoded token",
        ),
        ("sqlite:/x", "--to takes the URL of a database"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_one_line_without_its_password(
    small: ServerProcess, url: str, says: str
) -> None:
    said = copied(small, url, status=1)
    assert says in said
    assert "secret" not in said


@pytest.mark.slow
def test_a_bar_is_shown_at_a_terminal_and_ctrl_c_ends_the_copy_with_one_line(
    filled: Filled, database_url: str
) -> None:
    filled.stop()
    command = [sys.executable, "-c", SLOW, "eventlog", "copy", "--to", database_url]
    shown = b""
    terminal, inner = pty.openpty()
    with os.fdopen(terminal, "rb", 0) as reader:
        with subprocess.Popen(
            command, cwd=ROOT, env=filled.server.environment, stderr=inner, stdout=subprocess.DEVNULL
        ) as process:
            os.close(inner)
            while not re.search(
                rb"\r +[1-9]\d?% \[#+-+\] [\d,]+/10,001 events, [\d,]+ events/s, \d+:\d\d left", shown
            ):
                shown += reader.read(1000)
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # its end
                while piece := reader.read(1000):
                    shown += piece
        assert process.returncode == 130
    assert b"Traceback" not in shown
    assert shown.endswith(b"\r\nsse-app: interrupted: the same command continues from there\r\n"), shown[
        -300:
    ]
    copied(filled.server, database_url)
    filled.assert_copied(database_url)


def test_the_commands_show_the_log_on_postgres_and_give_it_a_new_epoch(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    node = start(EVENT_LOG=database_url, expected=("log_replaced",))
    with node.publisher() as http, listen(node.stream_url("b", node.stream_token("**"))) as frames:
        first(frames)
        publish(http, "b", 1)
        last = publish(http, "a-b", 2)
        epoch = last.rpartition("-")[0]
        assert node.command("eventlog", "show").splitlines() == [
            f"epoch {epoch}",
            "head 2",
            "channel a-b published=1 last=2",
            "channel b published=1 last=1",
        ]
        new = node.command("eventlog", "new-epoch")
        assert new != epoch
        assert [frame.type for frame in take(frames, 2)] == ["e", "closing"]
        assert publish(http, "b", 3) == f"{new}-3"
        with listen(node.stream_url("b", node.stream_token("**")), after=last) as back:
            assert first(back).data["recovered"] is False
    done = run_program("eventlog", "copy", "--to", database_url, environment=node.environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not on SQLite" in done.stderr


@pytest.mark.slow
def test_a_copy_whose_source_is_lost_can_be_used_with_a_new_epoch(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    old = start()
    with old.publisher() as http:
        id = publish(http, "b", 1)
    copied(old, database_url)
    environment = {**old.environment, "SSE_APP_EVENT_LOG": database_url}
    done = run_program("eventlog", "new-epoch", environment=environment)
    assert done.returncode == 0, done.stderr
    node = node_of(start, old, database_url, 1)
    with node.publisher() as http:
        assert publish(http, "b", 2) == f"{done.stdout.strip()}-2"
    with listen(node.stream_url("b", node.stream_token("**")), after=id) as frames:
        assert first(frames).data["recovered"] is False
    assert "is in use by the node" in copied(old, database_url, status=1)


def test_the_document_shows_what_is_printed(start: Callable[..., ServerProcess], database_url: str) -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    blocks = re.findall(r"```console\n(\$ .*?eventlog copy.*?)```", text, re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines() if not line.startswith("$ ")]
    server = start()
    printed = copied(server, database_url).splitlines()
    assert server.stop() == 0
    printed += copied(server, database_url).splitlines()
    assert len(shown) == len(printed) == 6
    for expected, line in zip(shown, printed, strict=True):
        pattern = re.sub(
            r"[\d,]*\d", r"[\\d,]+", re.escape(expected).replace(re.escape("/var/lib/sse_app/keys"), r"\S+")
        )
        assert re.fullmatch(pattern, line), (expected, line)


@pytest.mark.slow
def test_keys_come_sealed_where_the_settings_have_a_seal(
    start: Callable[..., ServerProcess], database_url: str, tmp_path: Path
) -> None:
    old = start()
    token = old.stream_token("b")
    assert old.stop() == 0
    secrets_dir = tmp_path / "secrets"
    secrets_dir.mkdir(mode=0o700)
    seal = secrets_dir / "keys.seal"
    seal.write_bytes(os.urandom(32))
    seal.chmod(0o600)
    old.environment["SSE_APP_AUTH__KEYS_SEAL"] = str(seal)
    assert f"keys: sealed in the database; copy {seal} to each machine" in copied(old, database_url)
    node = start(name="node", EVENT_LOG=database_url, AUTH__KEYS_SEAL=str(seal))
    with listen(node.stream_url("b", token)) as frames:
        first(frames)


@pytest.mark.slow
def test_what_is_published_while_it_is_copied_comes_once_and_in_order(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    server = start(HISTORY__SIZE=1_000_000)
    ids: list[str] = []
    ended = threading.Event()

    def publish_on() -> None:
        with server.publisher() as http:
            while not ended.is_set():
                ids.extend(publish_many(http, "busy", 100, len(ids)))
                ids.append(publish(http, f"user.u{len(ids)}.x", len(ids)))
                time.sleep(0.01)

    publisher = threading.Thread(target=publish_on)
    publisher.start()
    try:
        for _ in range(2):
            before = len(ids)
            copied(server, database_url)
            assert position(database_url) >= before
    finally:
        ended.set()
        publisher.join()
    assert server.stop() == 0
    copied(server, database_url)
    seqs = [seq for (seq,) in rows(database_url, "SELECT seq FROM sse_app.events ORDER BY seq")]
    assert seqs == [sequence(id) for id in ids] == list(range(1, len(ids) + 1))
    counts = rows(
        database_url,
        "SELECT c.published, count(*), max(n), max(seq) = last_seq FROM sse_app.channels AS c "
        "JOIN sse_app.events ON channel = id GROUP BY c.id",
    )
    assert {(published == count == last, newest) for published, count, last, newest in counts} == {
        (True, True)
    }


def test_a_copy_that_has_lost_something_is_not_taken_for_whole(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    server = start()
    with server.publisher() as http:
        publish_many(http, "busy", 10)
    copied(server, database_url)
    assert server.stop() == 0
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM sse_app.events WHERE seq = 5")
    said = copied(server, database_url, status=1)
    assert "the copy is not whole: 10 events" in said
    assert rows(database_url, "SELECT FROM sse_app.log") == []
    done = run_program("serve", environment={**server.environment, "SSE_APP_EVENT_LOG": database_url})
    assert (done.returncode, "has not finished" in done.stderr) == (1, True)


@pytest.mark.slow
def test_odd_dates_and_texts_come_as_the_database_can_keep_them(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    server = start(HISTORY__AGE=1e6)
    with server.publisher() as http:
        publish_many(http, "busy", 6)
    assert server.stop() == 0
    now = time.time()
    with closing(
        sqlite3.connect(server.state_dir / "events.db")
    ) as db:  # as clocks that were set have left them
        for seq, at in (
            (1, now - 50),
            (2, now + 1e9),
            (3, now - 40),
            (4, now - 90),
            (5, now - 10),
            (6, now - 5),
        ):
            db.execute("UPDATE events SET at = ? WHERE seq = ?", (at, seq))
        db.commit()
    with closing(sqlite3.connect(server.state_dir / "accounts.db")) as db:
        db.execute(
            "INSERT INTO audit (at, action, subject, address, target, detail) "
            "VALUES (?, 'login_failed', ?, '', '', '')",
            (now, "a\0b\x1bc\x1b0"),
        )
        db.commit()
    copied(server, database_url)
    dates = [at for (at,) in rows(database_url, "SELECT at FROM sse_app.events ORDER BY seq")]
    assert dates == sorted(dates)
    assert dates[0] == pytest.approx(now - 50)
    assert dates[-1] <= time.time() + 1
    node = node_of(start, server, database_url, 1, HISTORY__AGE=1e6)
    (entry,) = [json.loads(line) for line in node.command("audit").splitlines() if "login_failed" in line]
    assert entry["subject"] == "a\0b\x1bc\x1b0"
    with node.publisher() as http:
        publish(http, "busy", 6)
    (last,) = rows(database_url, "SELECT max(at) FROM sse_app.events")[0]
    assert dates[-1] <= last <= time.time() + 1


@pytest.mark.slow
def test_texts_and_ends_come_as_they_were_and_nothing_that_is_over_the_size_of_a_channel(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    server = start(HISTORY__SIZE=2)
    text = "one\r\n\r\ntwo: \N{SNOWMAN}\n"
    with server.publisher() as http:
        publish_many(http, "busy", 30)
        plain = {"Content-Type": "text/plain"}
        answer = http.post("/api/v1/sse/busy?event=t", content=text.encode(), headers=plain)
        assert answer.status_code == 201
        end = {"event": "end", "data": [1], "final": True}
        assert http.post("/api/v1/sse/over", json=end).status_code == 201
    assert server.stop() == 0
    copied(server, database_url)
    stored = rows(
        database_url, "SELECT seq, type, convert_from(data, 'UTF8'), flags FROM sse_app.events ORDER BY seq"
    )
    assert [(seq, type) for seq, type, *_ in stored] == [(30, "e"), (31, "t"), (32, "end")]
    assert [(data, flags) for _, _, data, flags in stored[1:]] == [(text, TEXT), ("[1]", FINAL)]
    node = node_of(start, server, database_url, 1, HISTORY__SIZE=2)
    with node.publisher() as http:
        history = http.get("/api/v1/sse/busy/history").json()["events"]
    assert [event["data"] for event in history][1:] == [text]


@pytest.mark.long
def test_a_pooler_in_transaction_mode_may_stand_before_the_database(
    filled: Filled, postgres: Postgres, database_url: str
) -> None:
    filled.stop()
    with pgbouncer(postgres, "transaction") as port:
        copied(filled.server, database_url.replace(f":{postgres.port}/", f":{port}/"))
    filled.assert_copied(database_url)


@pytest.mark.long
def test_a_copy_goes_on_after_a_crash_of_the_database(filled: Filled) -> None:
    filled.stop()
    with cluster(wal_writer_delay="10s") as server:  # what was copied last is not on its disk
        url = server.new_database()
        command = [sys.executable, "-c", SLOW, "eventlog", "copy", "--to", url]
        with subprocess.Popen(
            command, cwd=ROOT, env=filled.server.environment, stderr=subprocess.PIPE, text=True
        ) as process:
            until(lambda: position(url) > 1_000, "it has come some way")
            server.kill()
            assert process.stderr is not None
            said = process.stderr.read()
        assert (process.returncode, said.count("\n"), "cannot use the database" in said) == (1, 1, True), said
        server.start()
        assert position(url) < 12_001
        copied(filled.server, url)
        filled.assert_copied(url)


def test_a_log_that_has_not_begun_and_accounts_that_are_lost_are_told(
    start: Callable[..., ServerProcess], database_url: str
) -> None:
    server = start()
    assert server.stop() == 0
    accounts = server.state_dir / "accounts.db"
    accounts.rename(server.state_dir / "elsewhere")
    assert "there are no accounts at" in copied(server, database_url, status=1)
    (server.state_dir / "elsewhere").rename(accounts)
    with closing(sqlite3.connect(server.state_dir / "events.db")) as db:
        db.execute("DELETE FROM log")
        db.commit()
    assert "there is no event log in" in copied(server, database_url, status=1)
