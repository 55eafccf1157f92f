"""What each ``synchronous_commit`` promises, with a primary that is killed and a standby that is promoted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from sse_app.auth.postgres_store import PostgresAuthStore
from sse_app.auth.records import NEVER, Account, Continued, Revocation, Scope, SessionLimits
from sse_app.auth.tokens.grants import Grants
from sse_app.core.channels import ChannelName
from sse_app.core.errors import AuthStoreUnavailable, EventLogUnavailable
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import IdempotencyKey
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.process.database_check import promise_of
from sse_app.storage.postgres.database import Database
from tests.support.postgres import Postgres, cluster, standby
from tests.support.waiting import until, until_async

COUNT = 5


class Promise(NamedTuple):
    """What is promised of an event that is acknowledged, as docs/scaling.md says it."""

    commit: str
    standbys: str
    waits: bool
    """Whether it is not acknowledged before the standby has it."""
    keeps_epoch: bool
    """Whether clients go on at the promoted standby without a reset."""


@pytest.mark.slow
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
        wait_for(primary, promise.standbys)
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
        there, following = asyncio.run(found(moved(url, primary, other)))
        assert there == (2 * COUNT if promise.waits else COUNT)
        assert (following.epoch == before[0].epoch) is promise.keeps_epoch
        said = promise_of(promise.commit, promise.standbys)
        assert ("asynchronous standby loses the last events" in said) is not promise.waits
        assert ("loses nothing" in said) is promise.keeps_epoch


@pytest.mark.slow
@pytest.mark.parametrize(
    "restarted",
    [pytest.param(True, id="restarted"), pytest.param(False, id="never stopped", marks=pytest.mark.long)],
)
def test_an_old_primary_gives_no_id_that_the_promoted_standby_has_given_also_to_a_node_that_knows_of_none(
    restarted: bool,
) -> None:
    with cluster() as primary, standby(primary, "s") as other:
        url = primary.new_database()
        wait_for(primary, "s")
        before = asyncio.run(append(url))
        if restarted:
            primary.kill()
        else:  # as one that was out of reach meanwhile
            primary.pause()
        other.promote()
        there = asyncio.run(append(moved(url, primary, other)))
        assert {id.epoch for id in there} == {before[0].epoch}
        other.stop("immediate")
        if restarted:
            primary.settings["synchronous_standby_names"] = ""
            primary.start()
        else:
            primary.resume()
            wait_for(primary, "")
        again = asyncio.run(append(url))
        assert again[0].epoch != before[0].epoch
        assert asyncio.run(append(url))[0] == (again[0].epoch, again[-1].seq + 1)


@pytest.mark.ci
@pytest.mark.expects_logs("event_log_unavailable")
def test_no_event_gets_the_number_of_one_that_was_seen_before_the_standby_had_it(tmp_path: Path) -> None:
    with cluster() as primary, standby(primary, "s") as other:
        url = primary.new_database()
        wait_for(primary, "s")
        (*_, before) = asyncio.run(append(url))
        primary.stop_replication()
        unknown = asyncio.run(seen_without_a_standby(primary, url))
        assert [seq - before.seq for seq in unknown] == [1, 2, 3]
        primary.kill()
        other.promote()
        asyncio.run(after_the_promotion(moved(url, primary, other), before, unknown, tmp_path / "position"))


async def seen_without_a_standby(primary: Postgres, url: str) -> list[int]:
    """Have three appends wait for a standby in vain, and return what another node sends of them."""
    seqs: list[int] = []
    async with (
        no_wait_for_a_standby(primary),
        opened(url) as node,
        opened(url) as publisher,
        aclosing(node.tail(node.head.seq)) as tail,
    ):
        for _ in range(3):
            with pytest.raises(EventLogUnavailable):
                await publisher.append([event("ghost")])
            seqs += [each.seq for each in await asyncio.wait_for(anext(tail), 60)]
    return seqs


@asynccontextmanager
async def no_wait_for_a_standby(primary: Postgres) -> AsyncIterator[None]:
    """End meanwhile each connection whose commit waits for a standby.

    Also those of appends of nothing, with which a publisher that was refused looks whether it can write again.
    """

    async def end() -> None:
        while True:
            await asyncio.to_thread(primary.execute, waiting)
            await asyncio.sleep(0.02)

    waiting = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    ending = asyncio.create_task(end())
    try:
        yield
    finally:
        ending.cancel()
        with suppress(asyncio.CancelledError):
            await ending


async def after_the_promotion(url: str, before: EventId, unknown: list[int], memory: Path) -> None:
    """Publish at a promoted standby, where nodes and clients come that have and have not seen what it lacks.

    Args:
        url: of the standby.
        before: the last event that it has.
        unknown: the ``seq`` of those that were seen at the primary only.
        memory: a file in which a node keeps what it has seen.
    """
    ghost = EventId(before.epoch, unknown[1])
    async with opened(url) as node:
        assert node.head == before
        assert await node.lost(["a"], ghost) == {"a": "position_ahead"}
        async with aclosing(node.tail(before.seq)) as tail:
            assert node.head == before  # also after appends of nothing new
            assert await node.append([]) == []
            assert node.head == before
            ids = await node.append([event("1"), event("2")], key := IdempotencyKey("ann", "k", b"1"))
            assert {id.epoch for id in ids} == {before.epoch}
            assert ids[0].seq > unknown[-1]
            assert ids[1].seq == ids[0].seq + 1
            assert await node.append([event("1"), event("2")], key) == ids
            ids += await node.append([event("3")])
            assert ids[2].seq == ids[1].seq + 1
            seen: list[Event] = []
            while len(seen) < 3:
                seen += await asyncio.wait_for(anext(tail), 60)
            assert [each.seq for each in seen] == [id.seq for id in ids]
        async with opened(url) as other, aclosing(other.tail(before.seq)) as tail:
            assert [each.data for each in await asyncio.wait_for(anext(tail), 60)] == [b"1", b"2", b"3"]
        assert await node.lost(["a"], before) == {}
        assert await node.lost(["a"], ids[0]) == {}
        assert await node.lost(["a"], ghost) == {"a": "position_ahead"}
        assert [each.data for each in (await node.replay(["a"], before.seq, 2**63 - 1, 9)).events] == [
            b"1",
            b"2",
            b"3",
        ]
        await asyncio.to_thread(memory.write_text, f"{ghost}\n")
        async with opened(url, memory) as seen_it:  # whose clients have what is in the log no more
            assert seen_it.head.epoch != before.epoch
            await until_async(lambda: node.head == seen_it.head, "the other one has learned of it")
        assert await node.lost(["a"], ids[0]) == {"a": "log_replaced"}
        assert (await node.append([event("4")]))[0] == (node.head.epoch, ids[2].seq + 1)


def event(data: str) -> NewEvent:
    return NewEvent(ChannelName("a"), "t", data.encode())


def moved(url: str, primary: Postgres, other: Postgres) -> str:
    """Return the URL of a primary's database at another server."""
    return url.replace(f":{primary.port}/", f":{other.port}/")


@asynccontextmanager
async def opened(
    url: str, memory: Path | None = None, patience: float = 60
) -> AsyncIterator[PostgresEventLog]:
    log = PostgresEventLog(Database(url, timeout=patience), memory=memory)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


@pytest.mark.slow
def test_the_epoch_is_kept_as_long_as_each_standby_is_waited_for_that_may_be_promoted_with_it() -> None:
    with cluster(max_wal_senders="4") as primary, standby(primary, "s"), standby(primary, "t"):
        url = primary.new_database()
        for standbys, kept in (
            ("2 (s, t)", True),
            ("s", True),
            ("t", False),
            ("ANY 1 (s, t)", False),
            ("s, t", False),
            ("", False),
        ):
            wait_for(primary, "s")
            before = asyncio.run(append(url))
            wait_for(primary, standbys)
            after = asyncio.run(append(url))
            assert (after[0].epoch == before[0].epoch) is kept, standbys
            assert asyncio.run(append(url))[0] == (after[0].epoch, after[-1].seq + 1)
        wait_for(primary, "s")
        before = asyncio.run(append(url))
        primary.stop()
        primary.start()
        assert asyncio.run(append(url))[0] == (before[0].epoch, before[-1].seq + 1)


@pytest.mark.slow
@pytest.mark.expects_logs("event_log_unavailable")
def test_a_standby_that_is_not_waited_for_any_more_knows_it_before_it_lacks_events() -> None:
    with cluster() as primary, standby(primary, "s") as other:
        url = primary.new_database()
        wait_for(primary, "s")
        before = asyncio.run(append(url))
        primary.execute("ALTER ROLE app SET synchronous_commit = local")
        other.stop()  # as one that is cut off
        with pytest.raises(EventLogUnavailable):
            asyncio.run(append(url, patience=2))
        other.start()
        asyncio.run(append(url))
        assert head(other, url) == 3 * COUNT
        other.stop()
        lacking = asyncio.run(append(url))
        assert {id.epoch for id in lacking} == {before[0].epoch}
        primary.kill()
        other.start()
        other.promote()
        there, following = asyncio.run(found(moved(url, primary, other)))
        assert there == 3 * COUNT
        assert following.epoch != before[0].epoch


def wait_for(primary: Postgres, standbys: str) -> None:
    """Have commits wait for standbys."""
    primary.set("synchronous_standby_names", standbys)
    until(
        lambda: primary.execute("SHOW synchronous_standby_names") == [(standbys,)],
        "it is in force",
    )


async def append(url: str, patience: float = 60) -> list[EventId]:
    async with opened(url, patience=patience) as log:
        return await log.append([event("{}")] * COUNT)


async def found(url: str) -> tuple[int, EventId]:
    """Return how many events there are, and the id of one more."""
    async with opened(url) as log:
        head = log.head.seq
        (following,) = await log.append([event("{}")])
        assert following.seq == head + 1 or following.seq > head + 10**9
        return head, following


def head(server: Postgres, url: str) -> int:
    (row,) = server.execute("SELECT max(seq) FROM sse_app.events", url.rpartition("/")[2])
    return int(str(row[0]))


@pytest.mark.parametrize("commit", ["off", pytest.param("local", marks=pytest.mark.slow)])
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


@pytest.mark.gen_test
async def test_a_refresh_whose_commit_waits_for_a_standby_can_be_repeated_until_it_is_answered() -> None:
    limits = SessionLimits(idle=1e5, absolute=1e6)
    with cluster(max_wal_senders="2") as server:
        database = Database(server.new_database(), timeout=60.0)
        async with auth_store(database) as store:

            async def refresh(seconds: float) -> Continued:
                return await store.spend_refresh_token(
                    b"1", b"2", b"seed %d" % seconds, now=now + seconds, limits=limits
                )

            now = time.time()
            await store.add_account(Account("ann", Grants.of(), disabled=False), "hash")
            await store.begin_session("s", "ann", b"1", since=0, now=now, limits=limits)

            async def waits() -> bool:
                try:
                    await store.revoke([Revocation(Scope.SESSION, "other", NEVER, now + 600, now)])
                except AuthStoreUnavailable:
                    return True
                return False

            await asyncio.to_thread(wait_for, server, "absent")
            database.timeout = 1.0
            await until_async(waits, "a commit waits")  # the setting is in force a little later
            for again in (0, 23, 46, 69):  # as a client comes that waits for as long as a refresh may take
                with pytest.raises(AuthStoreUnavailable):
                    await refresh(again)
            database.timeout = 60.0
            await asyncio.to_thread(wait_for, server, "")
            await until_async(lambda: database.available, "it answers again")
            continued = await refresh(92)
            assert (continued.session, continued.seed) == ("s", b"seed 0")
            following = await store.spend_refresh_token(b"2", b"3", b"", now=now + 3600, limits=limits)
            assert following.session == "s"


async def revoke(url: str, session: str) -> None:
    async with auth_store(url) as store:
        await store.revoke([Revocation(Scope.SESSION, session, NEVER, time.time() + 600, time.time())])


async def revoked(url: str) -> list[str]:
    async with auth_store(url) as store:
        return [revocation.value for _, revocation in await store.revocations_since(0)]


@asynccontextmanager
async def auth_store(place: str | Database) -> AsyncIterator[PostgresAuthStore]:
    store = PostgresAuthStore(Database(place, timeout=60.0) if isinstance(place, str) else place)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
