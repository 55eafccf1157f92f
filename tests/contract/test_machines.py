"""Nodes in PostgreSQL: who may have a name, which number it keeps, what strangers can do there, and its absence."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
import pytest

from sse_app.cluster import registry
from sse_app.cluster.machines import LONGEST_NOTIFIED, Machines
from sse_app.core.errors import StateError
from sse_app.storage.postgres.database import Database
from sse_app.storage.postgres.sealing import OVERHEAD, Seal
from tests.support.cluster_nodes import LONG
from tests.support.postgres import Postgres, cluster
from tests.support.waiting import until_async

pytestmark = pytest.mark.gen_test


class Node(Machines):
    """A node that answers and remembers what it was told."""

    def __init__(self, url: str, name: str, place: str = "") -> None:
        super().__init__(Database(url, timeout=10.0), name, place or f"place of {name}")
        self.told: list[Any] = []
        self.answer("echo", lambda node, payload: [node, payload])
        self.answer("note", lambda node, payload: self.told.append((node, payload)))


@asynccontextmanager
async def _nodes(url: str, *names: str) -> AsyncIterator[list[Node]]:
    started = [Node(url, name) for name in names]
    try:
        for one in started:
            await one.open()
            await one.start()
        await until_async(
            lambda: all(len(one.peers()) >= len(names) - 1 for one in started), "all know each other"
        )
        yield started
    finally:
        for one in started:
            await _end(one)


async def _end(node: Node) -> None:
    node.stop()
    await node.close()


async def _crash(node: Node) -> None:
    """End a node as ``kill -9`` does: it does not leave."""
    node.stop()
    node._instance = 0
    await node.close()


def _execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _age(url: str, name: str, seconds: float) -> None:
    _execute(
        url, f"UPDATE sse_app.nodes SET heard_at = heard_at - interval '{seconds} s' WHERE name = '{name}'"
    )


# -- names and numbers -------------------------------------------------------------------------------------------


async def test_a_name_is_refused_while_another_place_has_it_and_free_when_that_is_silent(
    database_url: str,
) -> None:
    async with _nodes(database_url, "web1") as (one,):
        other = Node(database_url, "web1", "elsewhere")
        with pytest.raises(StateError, match="another machine is the node web1 of this database"):
            await other.open()
        await _end(other)
        assert one.number == 1
        await _crash(one)
        began = time.monotonic()
        second = Node(database_url, "web1", "elsewhere")
        await second.open()
        assert time.monotonic() - began < registry.SILENCE + 10
        assert second.number == 1
        await _end(second)


async def test_of_machines_that_start_at_once_each_has_a_number_and_a_name_has_one(database_url: str) -> None:
    nodes = [Node(database_url, f"web{n % 6}", f"place {n}") for n in range(12)]

    async def begin(node: Node) -> Node:
        await node.open()
        await node.start()
        return node

    try:
        begun = await asyncio.gather(*map(begin, nodes), return_exceptions=True)
        there = [each for each in begun if isinstance(each, Node)]
        refused = [each for each in begun if isinstance(each, StateError)]
        assert (len(there), len(refused)) == (6, 6), begun
        assert sorted(node.name for node in there) == [f"web{n}" for n in range(6)]
        assert sorted(node.number for node in there) == [1, 2, 3, 4, 5, 6]
        await until_async(lambda: all(len(node.peers()) == 5 for node in there), "all know each other")
        answers = await asyncio.gather(*(node.ask("echo", 1, LONG) for node in there))
        assert [answer.missing for answer in answers] == [()] * 6
    finally:
        for node in nodes:
            await _end(node)


async def test_a_message_of_a_newer_version_that_has_more_members_is_understood(database_url: str) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, two):
        content = msgspec.msgpack.encode(["note", "x", "more"])
        assert two._seal is not None
        for number, members in enumerate(
            [
                (1, "web2", two._instance, 10**6, None, content, "more"),
                (77, "web2", two._instance, 10**6 + 1, None, content),
                (1, "web2"),
                "text",
            ]
        ):
            sealed = base64.b64encode(two._seal.close(msgspec.msgpack.encode(members))).decode()
            _execute(database_url, f"SELECT pg_notify('sse_app_cluster', '{sealed}')")
            await asyncio.sleep(0.05 * (number == 3))
        await until_async(lambda: one.told == [("web2", "x")], "it is told once")


async def test_a_place_has_its_name_at_once_also_while_its_process_before_serves(database_url: str) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, two):
        began = time.monotonic()
        successor = Node(database_url, "web1")
        await successor.open()
        assert successor.number == one.number
        # Until the successor is one of them, the process before is the node, and may stay it.
        assert (await two.ask("echo", 1, LONG, ["web1"])).by_node == {"web1": ["web2", 1]}
        await asyncio.sleep(1.2)
        assert (await one.ask("echo", 1, LONG)).missing == ()
        await successor.start()
        assert time.monotonic() - began < 4
        await until_async(lambda: one._retired, "the one before answers no more")
        assert (await two.ask("echo", 2, LONG, ["web1"])).by_node == {"web1": ["web2", 2]}
        two.tell("note", "x")
        await until_async(lambda: successor.told == [("web2", "x")], "it is told")
        assert one.told == []
        await _end(one)  # the one before does not take its successor along
        assert (await two.ask("echo", 3, LONG, ["web1"])).by_node == {"web1": ["web2", 3]}
        assert two.peers() == ("web1",)
        await _end(successor)
        await until_async(lambda: two.peers() == (), "it has left")


async def test_a_clock_of_the_database_that_was_set_back_refuses_no_start(database_url: str) -> None:
    async with _nodes(database_url, "web1") as (one,):
        await _crash(one)
    _age(database_url, "web1", -3600)
    second = Node(database_url, "web1", "elsewhere")
    await second.open()
    assert second.number == 1
    await _end(second)


async def test_a_number_stays_a_nodes_own_and_is_free_again_only_after_long(database_url: str) -> None:
    async with _nodes(database_url, "a", "b", "c") as nodes:
        assert [one.number for one in nodes] == [1, 2, 3]
    async with _nodes(database_url, "c", "d", "b") as nodes:
        assert [one.number for one in nodes] == [3, 4, 2]
    _age(database_url, "a", registry.KEEP_TIME - 60)
    async with _nodes(database_url, "e") as nodes:
        assert [one.number for one in nodes] == [5]
    _age(database_url, "a", 120)
    async with _nodes(database_url, "f") as nodes:
        assert [one.number for one in nodes] == [1]


async def test_where_no_number_is_free_that_of_the_node_goes_that_has_been_away_for_longest(
    database_url: str,
) -> None:
    async with _nodes(database_url, "here"):
        _execute(
            database_url,
            "INSERT INTO sse_app.nodes (name, number, place, version, heard_at) SELECT 'old' || n, n, n, '1', "
            "clock_timestamp() - make_interval(secs => 400 + 100 * (n = 300)::int) FROM generate_series(2, 511) AS n",
        )
        async with _nodes(database_url, "next") as (one,):
            assert one.number == 300
            _execute(database_url, "UPDATE sse_app.nodes SET heard_at = clock_timestamp() + interval '1 h'")
            late = Node(database_url, "late")
            with pytest.raises(StateError, match="511 nodes"):
                await late.open()
            await _end(late)


async def test_a_place_that_comes_with_another_name_is_not_missed_under_the_one_before(
    database_url: str,
) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, two):
        renamed = Node(database_url, "front", "place of web2")
        await renamed.open()
        await renamed.start()
        await until_async(lambda: one.peers() == ("front",), "the name before is gone")
        await asyncio.sleep(2.2)  # in which the process before, which has not ended yet, has a heartbeat
        assert one.peers() == ("front",)
        two.stop()
        assert one.name_of(renamed.number) == "front"
        await _end(renamed)


@pytest.mark.expects_logs("node_name_taken")
async def test_a_node_whose_name_was_taken_while_it_was_cut_off_is_silent_and_comes_back_after_it(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, two):
        _execute(database_url, "UPDATE sse_app.nodes SET place = 'elsewhere' WHERE name = 'web1'")
        await until_async(lambda: one._refused, "it is noticed")
        two.tell("note", 1)
        assert (await one.ask("echo", 1)).missing == ("web2",)
        # The other one is silent by now: the name is this one's again.
        await until_async(lambda: not one._refused, "it is back")
        assert (await one.ask("echo", 1, LONG)).missing == ()
    assert [record.getMessage() for record in caplog.records].count("node_name_taken") == 1


async def test_a_node_that_the_database_has_forgotten_is_there_again_with_its_number(
    database_url: str,
) -> None:
    """As after a backup was restored that is older than the node."""
    async with _nodes(database_url, "web1", "web2") as (one, two):
        _execute(database_url, "DELETE FROM sse_app.nodes WHERE name = 'web2'")

        def rows() -> list[tuple[Any, ...]]:
            return _execute(database_url, "SELECT number FROM sse_app.nodes WHERE name = 'web2'")

        await until_async(lambda: rows() == [(two.number,)], "it is there again")
        assert (await one.ask("echo", 1, LONG)).missing == ()


async def test_an_older_state_of_the_table_retires_no_node(database_url: str) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, two):
        _execute(database_url, "UPDATE sse_app.nodes SET instance = 7, has_left = true, heard_at = 'epoch'")
        await asyncio.sleep(2.2)
        assert (await one.ask("echo", 1, LONG)).missing == ()
        assert (await two.ask("echo", 1, LONG)).missing == ()


# -- strangers in the database -----------------------------------------------------------------------------------


async def test_what_others_in_the_database_notify_is_ignored(postgres: Postgres, database_url: str) -> None:
    database = database_url.rpartition("/")[2]
    if not postgres.execute("SELECT 1 FROM pg_roles WHERE rolname = 'stranger'"):
        postgres.execute("CREATE ROLE stranger LOGIN")
    stranger_url = postgres.url(database, "stranger")
    async with _nodes(database_url, "web1", "web2") as (one, two):
        stranger = await psycopg.AsyncConnection.connect(stranger_url, autocommit=True)
        async with stranger:
            await stranger.execute("LISTEN sse_app_cluster")
            two.tell("note", "a secret")
            await until_async(lambda: one.told == [("web2", "a secret")], "it is told")
            heard = [each.payload async for each in stranger.notifies(timeout=60, stop_after=1)]
            heard += [each.payload async for each in stranger.notifies(timeout=0.5)]
            assert heard
            assert not any(b"secret" in base64.b64decode(each) for each in heard)
            forged = msgspec.msgpack.encode(
                (1, "web2", two._instance, 10**6, None, msgspec.msgpack.encode(["note", "forged"]))
            )
            own = base64.b64encode(Seal(b"guess").close(forged)).decode()
            plain = base64.b64encode(forged).decode()
            for payload in [*heard, own, plain, "", "é", "not base64", "AAAA" * 20]:
                await stranger.execute("SELECT pg_notify('sse_app_cluster', %s)", (payload,))
            for statement in (
                "SELECT secret FROM sse_app.cluster",
                "SELECT sse_app.beat('web2', 2::smallint, 'x', '1', 0, '{}', '1 s', '1 s')",
                "DELETE FROM sse_app.messages",
                "UPDATE sse_app.nodes SET place = 'x'",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await stranger.execute(statement)
        assert (await one.ask("echo", 1, LONG)).missing == ()
        await asyncio.sleep(0.1)
        assert one.told == [("web2", "a secret")], "what was recorded was taken again, or what was forged"
        assert one.peers() == ("web2",)


def test_a_seal_takes_only_what_was_sealed_with_its_secret() -> None:
    one, two, other = Seal(b"s"), Seal(b"s"), Seal(b"t")
    sealed = one.close(b"message")
    assert two.open(sealed) == one.open(sealed) == b"message"
    assert other.open(sealed) is None
    assert one.close(b"message") != sealed
    assert len(sealed) == len(b"message") + OVERHEAD
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        assert two.open(bytes(changed)) is None, position
    for length in range(len(sealed)):
        assert two.open(sealed[:length]) is None, length


# -- long messages -----------------------------------------------------------------------------------------------


async def test_messages_of_any_length_come_whole_and_in_order_and_long_ones_are_deleted(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _nodes(database_url, "web1", "web2", "web3") as (one, two, three):
        sizes = [0, 10, LONGEST_NOTIFIED - 20, LONGEST_NOTIFIED, LONGEST_NOTIFIED + 1, 100_000, 5, 20_000, 1]
        for number, size in enumerate(sizes):
            one.tell("note", [number, bytes(size)])
        for node in (two, three):
            await until_async(lambda node=node: len(node.told) == len(sizes), "all is told")
            assert [(number, len(each)) for _, (number, each) in node.told] == list(enumerate(sizes))
        answer = await one.ask("echo", bytes(50_000), LONG, ["web2"])
        assert len(answer.by_node["web2"][1]) == 50_000
        # They expire only now, when all have been read; a node looks for those some time after it has stored one.
        monkeypatch.setattr("sse_app.cluster.machines.MESSAGE_TIME", 1.0)
        monkeypatch.setattr(registry, "MESSAGE_TIME", 0.5)
        one._sweep_at = None
        one.tell("note", [len(sizes), bytes(20_000)])
        await until_async(
            lambda: _execute(database_url, "SELECT count(*) FROM sse_app.messages") == [(0,)],
            "they are deleted",
        )


# -- the database is away ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.expects_logs("node_silent")
async def test_while_the_database_is_away_the_others_are_missing_and_nothing_raises_or_waits() -> None:
    with cluster() as postgres:
        async with _nodes(postgres.new_database(), "web1", "web2") as (one, two):
            assert (await one.ask("echo", 1, LONG)).missing == ()
            for how in ("fast", "immediate"):
                await asyncio.to_thread(postgres.stop, how)
                began = time.monotonic()
                for _ in range(20):
                    one.tell("note", "lost")
                    answers = await one.ask("echo", 1)
                    assert answers.by_node == {"web1": ["web1", 1]}
                    assert answers.missing == ("web2",)
                assert time.monotonic() - began < 10
                assert one.peers() == ("web2",)
                await asyncio.to_thread(postgres.start)

                async def answered() -> bool:
                    return not (await one.ask("echo", 1)).missing and not (await two.ask("echo", 1)).missing

                await until_async(answered, "both answer each other again")


@pytest.mark.expects_logs("node_silent")
async def test_a_node_whose_listening_connection_is_lost_hears_again(database_url: str) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, two):
        for _ in range(3):
            _execute(
                database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()",
            )

            async def answered() -> bool:
                return not (await one.ask("echo", 1)).missing and not (await two.ask("echo", 1)).missing

            await until_async(answered, "both answer each other again")


@pytest.mark.expects_logs("node_silent")
async def test_a_database_that_hangs_holds_up_no_event_loop_and_no_question_for_long(
    postgres: Postgres, database_url: str
) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, _):
        with psycopg.connect(database_url) as blocking:
            blocking.execute("LOCK TABLE sse_app.nodes")
            longest = 0.0
            asking = asyncio.create_task(one.ask("echo", 1))
            began = before = time.monotonic()
            while not asking.done():
                await asyncio.sleep(0.01)
                now = time.monotonic()
                longest, before = max(longest, now - before), now
            assert (await asking).missing == ("web2",)
            assert time.monotonic() - began < 8
            assert (
                longest < 5
            )  # one that is held up stands until the table is free, which it never is meanwhile
            blocking.rollback()

        async def answered() -> bool:
            return not (await one.ask("echo", 1)).missing

        await until_async(answered, "it answers again")


@pytest.mark.expects_logs("node_silent")
async def test_so_many_nodes_can_be_asked_that_their_names_are_longer_than_a_notification(
    database_url: str,
) -> None:
    async with _nodes(database_url, "web1", "web2") as (one, _):
        _execute(
            database_url,
            "INSERT INTO sse_app.nodes (name, number, place, version) "
            "SELECT repeat('x', 60) || n, n, n, '1' FROM generate_series(100, 300) AS n",
        )
        await until_async(lambda: len(one.peers()) == 202, "all are known")
        answers = await one.ask("echo", 1)
        assert answers.by_node == {"web1": ["web1", 1], "web2": ["web1", 1]}
        assert len(answers.missing) == 201
        _execute(database_url, "DELETE FROM sse_app.nodes WHERE number >= 100")
        await until_async(lambda: one.peers() == ("web2",), "they are gone")
