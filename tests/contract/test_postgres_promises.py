"""What each ``synchronous_commit`` promises, with a primary that is killed and a standby that is promoted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from sse_app.auth.postgres_store import PostgresAuthStore
from sse_app.auth.records import NEVER, Revocation, Scope
from sse_app.core.channels import ChannelName
from sse_app.core.events import EventId, NewEvent
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.process.database_check import promise_of
from sse_app.storage.postgres.database import Database
from tests.support.postgres import Postgres, cluster, standby
from tests.support.waiting import until

COUNT = 5


class Promise(NamedTuple):
    """What is promised of an event that is acknowledged, as docs/scaling.md says it."""

    commit: str
    standbys: str
    waits: bool
    """Whether it is not acknowledged before the standby has it."""
    keeps_epoch: bool
    """Whether clients go on at the promoted standby without a reset."""


@pytest.mark.parametrize(
    "promise",
    [
        Promise("on", "", waits=False, keeps_epoch=False),
        Promise("on", "s", waits=True, keeps_epoch=True),
        pytest.param(Promise("local", "s", waits=False, keeps_epoch=False), marks=pytest.mark.long),
        pytest.param(Promise("remote_write", "s", waits=True, keeps_epoch=False), marks=pytest.mark.long),
        pytest.param(Promise("remote_apply", "s", waits=True, keeps_epoch=True), marks=pytest.mark.long),
    ],
    ids=lambda promise: f"{promise.commit}-{promise.standbys or 'none'}",
)
def test_after_a_failover_there_is_what_was_promised(promise: Promise) -> None:
    with cluster(max_wal_senders="4") as primary, standby(primary, "s") as other:
        url = primary.new_database()
        until(
            lambda: primary.execute("SELECT state FROM pg_stat_replication") == [("streaming",)], "it follows"
        )
        primary.execute(f"ALTER ROLE app SET synchronous_commit = {promise.commit}")
        primary.set("synchronous_standby_names", promise.standbys)
        until(
            lambda: primary.execute("SHOW synchronous_standby_names") == [(promise.standbys,)],
            "it is in force",
        )
        before = asyncio.run(append(url))  # also a first one, after which the setting is noted
        if not promise.waits:
            replayed = "SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication"
            until(lambda: primary.execute(replayed) == [(True,)], "the standby has what was before")
            assert head(other, url) == before[-1].seq
            other.stop()  # as one that is cut off
        acknowledged = asyncio.run(append(url))
        if promise.commit == "remote_apply":  # to be read there at once
            assert head(other, url) == acknowledged[-1].seq
        primary.kill()
        if not promise.waits:
            other.start()
        other.promote()
        there, following = asyncio.run(found(url.replace(f":{primary.port}/", f":{other.port}/")))
        assert there == (2 * COUNT if promise.waits else COUNT)
        assert (following.epoch == before[0].epoch) is promise.keeps_epoch
        said = promise_of(promise.commit, promise.standbys)
        assert ("asynchronous standby loses the last events" in said) is not promise.waits
        assert ("loses nothing" in said) is promise.keeps_epoch


async def append(url: str) -> list[EventId]:
    log = PostgresEventLog(Database(url, timeout=60))
    await log.open()
    try:
        return await log.append([NewEvent(ChannelName("a"), "t", b"{}")] * COUNT)
    finally:
        await log.close()


async def found(url: str) -> tuple[int, EventId]:
    """Return how many events there are, and the id of one more."""
    log = PostgresEventLog(Database(url, timeout=60))
    await log.open()
    try:
        head = log.head.seq
        (following,) = await log.append([NewEvent(ChannelName("a"), "t", b"{}")])
        assert following.seq == head + 1
        return head, following
    finally:
        await log.close()


def head(server: Postgres, url: str) -> int:
    (row,) = server.execute("SELECT max(seq) FROM sse_app.events", url.rpartition("/")[2])
    return int(str(row[0]))


@pytest.mark.parametrize("commit", ["off", "local"])
def test_after_a_crash_of_the_database_there_is_all_that_was_acknowledged(commit: str) -> None:
    with cluster(wal_writer_delay="10s") as server:
        url = server.new_database()
        server.execute(f"ALTER ROLE app SET synchronous_commit = {commit}")
        acknowledged = [asyncio.run(append(url)) for _ in range(3)]
        asyncio.run(revoke(url, "session-1"))
        server.kill()
        server.start()
        there, following = asyncio.run(found(url))
        assert (there, following.epoch) == (3 * COUNT, acknowledged[0][0].epoch)
        assert asyncio.run(revoked(url)) == ["session-1"]


async def revoke(url: str, session: str) -> None:
    async with auth_store(url) as store:
        await store.revoke([Revocation(Scope.SESSION, session, NEVER, time.time() + 600, time.time())])


async def revoked(url: str) -> list[str]:
    async with auth_store(url) as store:
        return [revocation.value for _, revocation in await store.revocations_since(0)]


@asynccontextmanager
async def auth_store(url: str) -> AsyncIterator[PostgresAuthStore]:
    store = PostgresAuthStore(Database(url, timeout=60))
    await store.open()
    try:
        yield store
    finally:
        await store.close()
