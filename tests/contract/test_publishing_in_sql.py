"""What applications publish in transactions of their own: checked as over HTTP, stored at COMMIT, or not at all."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from psycopg.errors import (
    FeatureNotSupported,
    InsufficientPrivilege,
    InvalidParameterValue,
    LockNotAvailable,
    ProgramLimitExceeded,
    UndefinedObject,
)

from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.errors import InvalidChannel, InvalidInput
from sse_app.core.events import FINAL, RESERVED_TYPES, TEXT, new_event
from sse_app.handlers.parsing import parse_json
from sse_app.settings.channels import rules_of
from sse_app.settings.model import Limits
from sse_app.storage.postgres.database import Database
from sse_app.streams.rules_in_database import RulesInDatabase
from tests.support.postgres import Postgres, cluster
from tests.support.sql_publishers import Shop, publish
from tests.support.waiting import until, until_async

NOW = "2026-01-02T03:04:05.678Z"
TIMESTAMP = re.compile(rb'"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"\}$')


@pytest.fixture
def shop(postgres: Postgres, database_url: str) -> Shop:
    """A database whose application may publish everywhere."""
    return Shop(postgres, database_url)


# -- transactions --------------------------------------------------------------------------------------------------


def test_what_is_committed_is_in_the_log_in_its_order_and_what_is_rolled_back_is_not(shop: Shop) -> None:
    with shop.connect() as application:
        publish(application, "first")
        application.execute("INSERT INTO orders DEFAULT VALUES")
        publish(application, "second", channel="user.ann")
        assert shop.stored() == []
        application.commit()
        assert shop.types() == ["first", "second"]
        publish(application, "never")
        application.rollback()
        application.execute(
            "SELECT sse_app.publish('alerts', 'n' || n, '{}') FROM generate_series(1, 300) AS n"
        )
        application.commit()
    events = shop.stored()
    assert [event.type for event in events] == ["first", "second", *(f"n{n}" for n in range(1, 301))]
    assert [event.seq for event in events] == list(range(1, 303))
    assert shop.superuser("SELECT count(*) FROM sse_app.outbox") == [(0,)]


def test_what_is_rolled_back_to_a_savepoint_leaves_nothing_wherever_it_stands(shop: Shop) -> None:
    with shop.connect() as application:
        for number, kept in enumerate("nyynny"):
            application.execute("SAVEPOINT a")
            publish(application, f"{number}a")
            application.execute("SAVEPOINT b")
            publish(application, f"{number}b")
            application.execute("ROLLBACK TO b")
            publish(application, f"{number}c")
            application.execute("RELEASE a" if kept == "y" else "ROLLBACK TO a")
        application.commit()
    assert shop.types() == ["1a", "1c", "2a", "2c", "5a", "5c"]


def test_a_transaction_notifies_once_and_a_rolled_back_one_never(shop: Shop) -> None:
    with shop.owner() as listener, shop.connect() as application:
        listener.execute("LISTEN sse_app_events")
        for number in range(20):
            publish(application, f"n{number}")
        application.rollback()
        for number in range(20):
            publish(application, f"n{number}")
        application.commit()
        assert len(list(listener.notifies(timeout=60, stop_after=1))) == 1
        assert list(listener.notifies(timeout=0.2)) == []


def test_constraints_that_are_made_immediate_append_at_once_and_are_undone_with_a_savepoint(
    shop: Shop,
) -> None:
    with shop.connect() as application:
        publish(application, "first")
        application.execute("SAVEPOINT a")
        application.execute("SET CONSTRAINTS ALL IMMEDIATE")
        publish(application, "undone")
        application.execute("ROLLBACK TO a")
        publish(application, "second")
        application.execute("SET CONSTRAINTS ALL IMMEDIATE")
        publish(application, "third")
        assert application.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        assert shop.stored() == []
        application.commit()
    assert shop.types() == ["first", "second", "third"]


def test_a_long_transaction_that_has_published_holds_up_nobody(shop: Shop) -> None:
    with shop.connect() as long, shop.connect(autocommit=True) as other:
        publish(long, "long")
        other.execute("SET lock_timeout = '30s'")
        for number in range(10):
            publish(other, f"n{number}")
        assert len(shop.stored()) == 10
        long.commit()
    assert shop.types()[-1] == "long"


def test_the_log_is_waited_for_no_longer_than_the_application_s_own_lock_timeout(shop: Shop) -> None:
    with shop.owner() as owner, shop.connect() as application:
        with owner.transaction():
            owner.execute("SELECT FROM sse_app.log FOR UPDATE")
            application.execute("SET lock_timeout = '200ms'")
            application.commit()
            publish(application, "late")
            with pytest.raises(LockNotAvailable):
                application.commit()
        publish(application, "in.time")
        application.commit()
    assert shop.types() == ["in.time"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_transactions_with_a_snapshot_are_refused_with_the_reason(shop: Shop, level: str) -> None:
    with shop.connect() as application:
        application.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        with pytest.raises(FeatureNotSupported, match=f"in a {level} one the log could not be locked"):
            publish(application, "x")


def test_a_transaction_that_is_prepared_for_two_phases_is_refused_and_nothing_is_stored() -> None:
    with cluster(max_prepared_transactions="4") as postgres:
        shop = Shop(postgres, postgres.new_database())
        with shop.connect() as application:
            publish(application, "x")
            with pytest.raises(FeatureNotSupported, match="NOTIFY"):
                application.execute("PREPARE TRANSACTION 'one'")
            application.rollback()
        assert shop.stored() == []
        assert shop.superuser("SELECT count(*) FROM sse_app.outbox") == [(0,)]


def test_a_kill_of_the_session_or_the_server_before_commit_leaves_nothing_and_after_it_all() -> None:
    with cluster() as postgres:
        shop = Shop(postgres, postgres.new_database())
        with shop.connect() as application, shop.connect() as killed:
            publish(application, "committed")
            application.commit()
            publish(killed, "killed")
            pid = killed.info.backend_pid
            shop.superuser(f"SELECT pg_terminate_backend({pid})")
            with pytest.raises(psycopg.OperationalError):
                killed.commit()
            publish(application, "unended")
            postgres.kill()
        postgres.start()
        assert shop.types() == ["committed"]
        with shop.connect() as application:
            publish(application, "after")
            application.commit()
        assert [(event.seq, event.type) for event in shop.stored()] == [(1, "committed"), (2, "after")]


def test_a_commit_that_waits_for_no_disk_waits_for_it_all_the_same_where_it_publishes(shop: Shop) -> None:
    """Else a crash could take back an event that clients have, and another one would get its number."""
    with shop.connect() as application:
        application.execute("SET synchronous_commit = off")
        application.commit()
        for type in ("one", "two"):
            publish(application, type)
            application.execute("SET CONSTRAINTS ALL IMMEDIATE")
            assert application.execute("SHOW synchronous_commit").fetchone() == ("local",)
            application.commit()
            assert application.execute("SHOW synchronous_commit").fetchone() == ("off",)


def test_two_applications_that_defer_checks_to_their_commit_do_not_deadlock_over_the_log(shop: Shop) -> None:
    """One has published, and then checks at COMMIT a row that the other holds, which comes to its COMMIT meanwhile."""
    shop.superuser(
        "CREATE TABLE lines (item int REFERENCES orders DEFERRABLE INITIALLY DEFERRED);"
        f"GRANT ALL ON lines TO {shop.role}; INSERT INTO orders VALUES (1), (2)"
    )
    with shop.connect() as one, shop.connect() as other:
        publish(one, "one")
        one.execute("INSERT INTO lines VALUES (1)")
        publish(other, "other")
        other.execute("DELETE FROM orders WHERE id = 1")
        failed: list[BaseException] = []

        def commit() -> None:
            try:
                one.commit()
            except psycopg.Error as error:
                failed.append(error)

        waiting = threading.Thread(target=commit)
        waiting.start()
        blocked = f"SELECT cardinality(pg_blocking_pids({one.info.backend_pid}))"
        until(lambda: shop.superuser(blocked) == [(1,)], "the check waits for the row")
        other.commit()
        waiting.join(60)
    assert [type(error).__name__ for error in failed] == ["ForeignKeyViolation"]
    assert shop.types() == ["other"]


@pytest.mark.slow
def test_of_eight_applications_that_roll_back_at_random_exactly_what_they_committed_is_there(
    shop: Shop,
) -> None:
    committed: dict[int, list[list[str]]] = defaultdict(list)

    def run(number: int) -> None:
        chance = random.Random(number)
        with shop.connect() as application:
            for turn in range(30):
                types = []
                for step in range(chance.randrange(1, 6)):
                    application.execute("SAVEPOINT a")
                    publish(
                        application, f"{number}.{turn}.{step}", channel=chance.choice(["alerts", "user.ann"])
                    )
                    if chance.random() < 0.3:
                        application.execute("ROLLBACK TO a")
                    else:
                        types.append(f"{number}.{turn}.{step}")
                if chance.random() < 0.4:
                    application.rollback()
                else:
                    application.commit()
                    committed[number].append(types)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    events = shop.stored()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    place = {event.type: event.seq for event in events}
    wanted = [types for batches in committed.values() for types in batches if types]
    assert sorted(place) == sorted(type for types in wanted for type in types)
    for types in wanted:
        assert [place[type] for type in types] == list(range(place[types[0]], place[types[0]] + len(types)))
    for batches in committed.values():
        firsts = [place[types[0]] for types in batches if types]
        assert firsts == sorted(firsts)
    assert shop.superuser("SELECT count(*) FROM sse_app.outbox") == [(0,)]


@pytest.mark.slow
def test_the_outbox_does_not_grow(shop: Shop) -> None:
    def round() -> int:
        with shop.connect() as application:
            for _ in range(10):
                application.execute(
                    "SELECT sse_app.publish('alerts', 'x', '{\"a\": \"' || repeat('b', 200) || '\"}') "
                    "FROM generate_series(1, 100)"
                )
                application.commit()
        shop.superuser("VACUUM sse_app.outbox")
        ((size,),) = shop.superuser("SELECT pg_total_relation_size('sse_app.outbox')")
        assert isinstance(size, int)
        return size

    round()
    before = round()
    for _ in range(3):
        after = round()
    assert after <= 1.5 * before
    assert shop.superuser("SELECT count(*) FROM sse_app.outbox") == [(0,)]


# -- what is refused -----------------------------------------------------------------------------------------------

REFUSED: list[tuple[Sequence[object], type[psycopg.Error], str, str | None]] = [
    ((None, "x", "{}"), InvalidParameterValue, "channel is not a channel name: NULL", "channel"),
    (("", "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (("Alerts", "x", "{}"), InvalidParameterValue, "channel is not a channel name: 'Alerts'", "channel"),
    (("alerts\n", "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (("a..b", "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (("é", "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (("a" * 65, "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (
        (".".join(["a" * 60] * 5), "x", "{}"),
        InvalidParameterValue,
        "channel is not a channel name",
        "channel",
    ),
    (("a.**", "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (("status", "x", "{}"), InvalidParameterValue, "channel is not a channel name", "channel"),
    (
        ("sse_app.admin", "x", "{}"),
        InsufficientPrivilege,
        "is not allowed to publish to sse_app.admin",
        "channel",
    ),
    (("sse_app", "x", "{}"), InsufficientPrivilege, "is not allowed to publish to sse_app", "channel"),
    (("elsewhere", "x", "{}"), UndefinedObject, "there is no channel elsewhere", "channel"),
    (("alerts", None, "{}"), InvalidParameterValue, "type must match", "type"),
    (("alerts", "", "{}"), InvalidParameterValue, "type must match", "type"),
    (("alerts", "a b", "{}"), InvalidParameterValue, "type must match", "type"),
    (("alerts", "a\n", "{}"), InvalidParameterValue, "type must match", "type"),
    (("alerts", "ä", "{}"), InvalidParameterValue, "type must match", "type"),
    (("alerts", "a" * 129, "{}"), InvalidParameterValue, "type must match", "type"),
    *(
        (("alerts", name, "{}"), InvalidParameterValue, f"type '{name}' is reserved", "type")
        for name in sorted(RESERVED_TYPES)
    ),
    (("alerts", "x", None), InvalidParameterValue, "data is missing", "data"),
    (("alerts", "x", '"\\ud800"'), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", "a text"), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", "1 2"), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", "-1e400"), InvalidParameterValue, "data has a number that is infinite", "data"),
    (("alerts", "x", "[" * 255 + "]" * 255), InvalidParameterValue, "more than 254 deep", "data"),
    (("alerts", "x", ""), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", "{'a': 1}"), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", '{"a": NaN}'), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", '{"a": 1e400}'), InvalidParameterValue, "data has a number that is infinite", "data"),
    (("alerts", "x", '{"a": "\\ud800"}'), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", '{"a": "\\udc00\\ud800"}'), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", '{"\\ud800": 1}'), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", '{"a": "\n"}'), InvalidParameterValue, "data is not JSON", "data"),
    (("alerts", "x", '{"a":' * 255 + "1" + "}" * 255), InvalidParameterValue, "more than 254 deep", "data"),
    (("alerts", "x", '{"a":' * 9999 + "1" + "}" * 9999), InvalidParameterValue, "data ", "data"),
    (
        ("alerts", "x", '{"a": "' + "b" * 99_999 + '"}'),
        ProgramLimitExceeded,
        "data has at most 100000 bytes",
        "data",
    ),
    (
        ("alerts", "x", "{}", -1),
        InvalidParameterValue,
        "retry must be milliseconds from 0 to 86400000",
        "retry",
    ),
    (("alerts", "x", "{}", 86_400_001), InvalidParameterValue, "retry must be milliseconds", "retry"),
    (("alerts", "x", "{}", 2**40), InvalidParameterValue, "retry must be milliseconds", "retry"),
    (("alerts", "x", "{}", None, ""), InvalidParameterValue, "key must be 1 to 255 visible ASCII", "key"),
    (("alerts", "x", "{}", None, "a b"), InvalidParameterValue, "key must be 1 to 255 visible ASCII", "key"),
    (("alerts", "x", "{}", None, "é"), InvalidParameterValue, "key must be 1 to 255 visible ASCII", "key"),
    (
        ("alerts", "x", "{}", None, "a" * 256),
        InvalidParameterValue,
        "key must be 1 to 255 visible ASCII",
        "key",
    ),
]
"""Arguments of publish, the error that refuses them, its text, and the field that it names."""


def test_what_http_refuses_is_refused_with_an_error_that_names_the_field(shop: Shop) -> None:
    asyncio.run(shop.configure(["alerts", "user.**", "sse_app.**"], body_bytes=100_000))
    with shop.connect(autocommit=True) as application:
        for arguments, error, text, field in REFUSED:
            places = ", ".join(["%s"] * len(arguments))
            with pytest.raises(error, match=re.escape(text)) as raised:
                application.execute(f"SELECT sse_app.publish({places})".encode(), arguments)
            assert raised.value.diag.column_name == field, arguments
        for retry in (0, 86_400_000):
            application.execute("SELECT sse_app.publish('user', 'a', '{}', retry => %s)", [retry])
    assert [event.retry for event in shop.stored()] == [0, 86_400_000]


def test_where_no_node_has_said_what_the_channels_are_there_is_none(shop: Shop) -> None:
    shop.superuser("DELETE FROM sse_app.publishing")
    with shop.connect() as application, pytest.raises(UndefinedObject, match="there is no channel alerts"):
        publish(application, "x")
    asyncio.run(shop.configure([]))
    with shop.connect() as application, pytest.raises(UndefinedObject, match="there is no channel alerts"):
        publish(application, "x")


@pytest.mark.slow
def test_rules_that_change_while_the_database_is_away_are_in_force_once_it_is_back() -> None:
    async def run(postgres: Postgres) -> None:
        database = Database(postgres.new_database())
        rules = RulesInDatabase(database, rules_of(["before"]), Limits())
        await rules.start()
        written = "SELECT channels FROM sse_app.publishing"
        name = postgres.execute("SELECT datname::text FROM pg_database WHERE datname LIKE 'test%'")[0][0]
        assert postgres.execute(written, str(name)) == [(["before"],)]
        await asyncio.to_thread(postgres.stop, "immediate")
        rules.use(rules_of(["after"]), Limits())
        await asyncio.sleep(0.5)
        await asyncio.to_thread(postgres.start)
        await until_async(lambda: postgres.execute(written, str(name)) == [(["after"],)], "it is told")
        await rules.stop()

    with cluster() as postgres:
        asyncio.run(run(postgres))


# -- data ----------------------------------------------------------------------------------------------------------

CORPUS = [
    "{}",
    ' {\n"a" :\t[ 1 , 2 ]\r, "b": { } } ',
    '{"b": 1, "a": 2, "aa": 3, "b": {"x": 4, "x": 5}}',
    '{"channel": "other", "a": 1}',
    '{"a": 1, "timestamp": null, "channel": {"b": 1}}',
    '{"a": {"timestamp": 1, "channel": 2}}',
    '{"\\u0063hannel": "other", "time\\u0073tamp": 5}',
    '{"a": "é\\u00e9\\ud83d\\ude00😀\\u2028\u2028\x7f\\/\\\\\\"\\b\\f\\n\\r\\t\\u001f\\u0041"}',
    '{"a\\u0000b": "\\u0000\\u0000\\\\u0000\\\\\\u0000", "\ufdd0": "\\ufdd1\\uFDD2"}',
    '{"a": "\\uffff\\ufffe", "\\u0000": 1, "\\u0000": 2}',
    '{"n": [0, -0, -0.0, 0.0, 1.0, 1.10, 1E2, 1e15, 1e16, 1e-5, 1e-6, 123456.789e-3]}',
    '{"n": [9223372036854775807, -9223372036854775808, 18446744073709551615]}',
    '{"n": [18446744073709551616, 1e16, 1e-5, 1e22, 0.0001, 1.5e-7, -0]}',
    '{"n": [-9223372036854775809, 123456789012345678901234567890123456789012345678901234567890]}',
    '{"n": "18446744073709551616", "m": 1e-5}',
    '{"n": 18446744073709551616, "n": 1e-5}',
    '{"n": [5e-324, 1e-400, -1e-400, 0e99999, 2.2250738585072014e-308, 1.7976931348623157e308]}',
    '{"n": [9007199254740993.0, 699e19, 37882587786260659.0, 74170341657483E3, 1e23, 8.41e21]}',
    '{"n": 0.1000000000000000055511151231257827021181583404541015625, "m": ' + "1" * 300 + "}",
    '{"a":' * 254 + "[]".replace("[]", "1") + "}" * 254,
    '{"a": [true, false, null, [[], {}], ""], "": {"": []}}',
    '{"a": 1, "a": ' * 200 + "1" + "}" * 200,
    '{"n": [1e-'
    + "9" * 200_000
    + ", 1e-"
    + "0" * 200_000
    + "400, 0."
    + "0" * 200_000
    + "1e9, "
    + "1" * 300
    + "e-5]}",
    " [] ",
    '\n[1, {"channel": "other"}, [2.50], "a"] ',
    "null",
    "true",
    " 1.10",
    "18446744073709551616",
    "[18446744073709551616, 1e-5]",
    "[" * 254 + "]" * 254,
    '""',
    ' "" ',
    '"null"',
    '"{\\"a\\": 1}"',
    '"one\\r\\ntwo\\rthree\\n\\nfour\\n"',
    '"<p class=\\"x\\">\\u00e9\\ud83d\\ude00</p>\\t\\u2028\\\\u0000"',
    '"\\u0000a\\u0000\\u0000b\\\\u0000\ufdd0\\ufdd1\\u0000"',
    '"\\u0000"',
    '"18446744073709551616"',
]

SPACE = st.sampled_from(["", "", " ", "\n\t\r"])
STRINGS = st.lists(
    st.one_of(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'),
        st.sampled_from(
            [r"\"", r"\\", r"\/", r"\b\f\n\r\t", r"\u0000", r"\u00E9", r"\u001f", r"\ud83d\ude00", r"\ufdd0"]
        ),
    ),
    max_size=4,
).map(lambda parts: f'"{"".join(parts)}"')
NUMBERS = st.one_of(
    st.from_regex(r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,8})?([eE][-+]?[0-9]{1,2})?", fullmatch=True).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(2**53, 2**80).map(lambda number: f"{number}.0"),
)


def _lists(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(SPACE, items, SPACE).map("".join), max_size=4).map(
        lambda all: f"[{','.join(all)}]"
    )


def _objects(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    names = st.one_of(STRINGS, st.sampled_from(['"a"', '"\\u0061"', '"channel"', '"timestamp"']))
    members = st.tuples(SPACE, names, SPACE, st.just(":"), SPACE, items, SPACE).map("".join)
    return st.tuples(SPACE, st.lists(members, max_size=4)).map(lambda all: f"{{{all[0]}{','.join(all[1])}}}")


VALUES = st.recursive(
    st.one_of(STRINGS, NUMBERS, st.sampled_from(["true", "false", "null"])),
    lambda items: st.one_of(_lists(items), _objects(items)),
    max_leaves=12,
)


def over_http(data: str) -> tuple[bytes, int] | None:
    """Return what a node stores of an event's data, and the event's flags, or None where it refuses it."""
    try:
        request = parse_json(b'{"event":"x","data":%b}' % data.encode())
        event = new_event(ChannelName("alerts"), "x", request["data"], now=NOW)
        return event.data, event.flags
    except (ValueError, InvalidInput):
        return None


def in_sql(connection: psycopg.Connection[Any], data: str) -> tuple[bytes, int] | None:
    """Return what an event's data becomes in SQL, and its flags, or None where it is refused."""
    try:
        row = connection.execute("SELECT * FROM sse_app.event_data('alerts', %s, '')", [data]).fetchone()
    except InvalidParameterValue:
        return None
    assert row is not None
    return TIMESTAMP.sub(f'"timestamp":"{NOW}"}}'.encode(), row[0]), row[1]


@pytest.mark.slow
def test_data_is_stored_byte_for_byte_as_over_http(shop: Shop) -> None:
    with shop.owner() as owner:

        @hypothesis(max_examples=60, deadline=None)
        @given(st.one_of(_objects(VALUES), st.tuples(SPACE, VALUES, SPACE).map("".join)))
        def same(data: str) -> None:
            assert in_sql(owner, data) == over_http(data)

        for data in CORPUS:
            assert over_http(data) is not None
            assert in_sql(owner, data) == over_http(data)
        same()


def test_what_is_stored_is_what_a_node_would_have_stored(shop: Shop) -> None:
    with shop.connect() as application:
        for data in CORPUS:
            publish(application, "x", data)
        application.commit()
    stored = [
        (TIMESTAMP.sub(f'"timestamp":"{NOW}"}}'.encode(), event.data), event.flags) for event in shop.stored()
    ]
    assert stored == [over_http(data) for data in CORPUS]


@pytest.mark.parametrize(
    ("cast", "stored"),
    [
        ("text", '{"long":1.10,"a":2}'),
        ("json", '{"long":1.10,"a":2}'),
        ("jsonb", '{"a":2,"long":1.10}'),
    ],
)
def test_text_and_json_keep_the_order_of_members_and_jsonb_has_its_own(
    shop: Shop, cast: str, stored: str
) -> None:
    with shop.connect(autocommit=True) as application:
        statement = (
            f"SELECT sse_app.publish('alerts', 'x', '{{\"long\": 1.10, \"a\": 2}}'::{cast}, retry => 5)"
        )
        application.execute(statement.encode())
    (event,) = shop.stored()
    assert event.retry == 5
    assert event.data.startswith(
        stored.replace("1.10", "1.1")[:-1].encode() + b',"channel":"alerts","timestamp":'
    )


def test_a_json_string_is_stored_as_a_text_and_other_values_as_they_are(shop: Shop) -> None:
    with shop.connect(autocommit=True) as application:
        for value in (
            "to_json('<b>one</b>\ntwo'::text)", "to_jsonb('three'::text)", "'\"four\"'", "'[5, 6.0]'::jsonb", "'7'",
        ):  # fmt: skip
            application.execute(f"SELECT sse_app.publish('alerts', 'x', {value})".encode())
    assert [(event.data, event.flags) for event in shop.stored()] == [
        (b"<b>one</b>\ntwo", TEXT),
        (b"three", TEXT),
        (b"four", TEXT),
        (b"[5,6.0]", 0),
        (b"7", 0),
    ]


def test_a_final_event_is_said_to_be_it_and_another_event_under_a_key(shop: Shop) -> None:
    final = "SELECT sse_app.publish('alerts', 'x', %s, key => %s, final => %s)"
    with shop.connect(autocommit=True) as application:
        application.execute(final, ["{}", "k", True])
        application.execute(final, ["{}", "k", True])
        application.execute(final, ['"end"', None, True])
        application.execute(final, ["{}", None, False])
        application.execute(final, ["{}", None, None])
        with pytest.raises(InvalidParameterValue, match="key was used within 24 hours"):
            application.execute(final, ["{}", "k", False])
        application.execute(
            "INSERT INTO sse_app.outbox (channel, type, data, final) VALUES ('b', 'x', '1', true)"
        )
    assert [event.flags for event in shop.stored()] == [FINAL, TEXT | FINAL, 0, 0, FINAL]
    with shop.owner() as owner:
        assert owner.execute("SELECT * FROM sse_app.ended()").fetchall() == [("b", 5)]


def test_what_is_configured_for_a_channel_holds_as_over_http(shop: Shop) -> None:
    rules = ChannelRules(
        [
            ChannelRule(ChannelPattern("cursors.*"), stored=False),
            ChannelRule(ChannelPattern("cursors.**"), types=frozenset({"moved", "x.y:z"})),
            ChannelRule(ChannelPattern("quotes"), conflate="symbol"),
            ChannelRule(ChannelPattern("quotes"), types=frozenset({"never"})),
            ChannelRule(ChannelPattern("**")),
        ]
    )
    asyncio.run(shop.configure(rules))
    with shop.connect(autocommit=True) as application:
        refused: list[tuple[str, str, str, type[psycopg.Error], str, str]] = [
            (
                "cursors.a",
                "moved",
                "{}",
                FeatureNotSupported,
                "events of cursors.a are not stored",
                "channel",
            ),
            (
                "cursors.a.b",
                "x",
                "{}",
                InvalidParameterValue,
                "type 'x' is not a type that cursors.a.b",
                "type",
            ),
            ("cursors", "y:z", "{}", InvalidParameterValue, "type 'y:z' is not a type that cursors", "type"),
            (
                "quotes",
                "x",
                "{}",
                InvalidParameterValue,
                "data.symbol is missing: quotes is conflated",
                "data",
            ),
            ("quotes", "x", '{"a": {"symbol": 1}}', InvalidParameterValue, "data.symbol is missing", "data"),
            ("quotes", "x", '"symbol"', InvalidParameterValue, "data.symbol is missing", "data"),
            ("quotes", "x", '["symbol"]', InvalidParameterValue, "data.symbol is missing", "data"),
        ]
        for channel, kind, data, error, text, field in refused:
            with pytest.raises(error, match=re.escape(text)) as raised:
                publish(application, kind, data, channel)
            assert raised.value.diag.column_name == field
        publish(application, "x.y:z", "{}", "cursors.a.b")
        publish(application, "moved", "{}", "cursors")
        publish(application, "x", '{"symbol": null}', "quotes")
        publish(application, "x", '{"s\\u0079mbol": "A"}', "quotes")
        publish(application, "x", "1", "cursors-a")
    assert [event.channel for event in shop.stored()] == [
        "cursors.a.b",
        "cursors",
        "quotes",
        "quotes",
        "cursors-a",
    ]


PATTERNS = st.lists(st.sampled_from(["a", "ab", "a_b-1", "*", "**", "", "A", "a" * 65]), max_size=4).map(
    ".".join
)
NAMES = st.lists(st.sampled_from(["a", "ab", "a_b-1", "x" * 64]), min_size=1, max_size=4).map(".".join)


@pytest.mark.slow
def test_patterns_cover_the_same_channels_as_in_a_node(shop: Shop) -> None:
    with shop.owner() as owner:

        @hypothesis(max_examples=80, deadline=None)
        @given(PATTERNS, st.lists(NAMES, min_size=1))
        def same(text: str, names: list[str]) -> None:
            try:
                pattern = ChannelPattern(text)
            except InvalidChannel:
                with pytest.raises(InvalidParameterValue, match="not a channel pattern"):
                    owner.execute("SELECT sse_app.channel_expression(%s)", [[text]])
                return
            row = owner.execute(
                "SELECT array_agg(name ~ sse_app.channel_expression(%s) ORDER BY n) "
                "FROM unnest(%s::text[]) WITH ORDINALITY AS names (name, n)",
                [[text, "other"], names],
            ).fetchone()
            assert row == ([pattern.matches(name) for name in names],)

        same()


# -- rights --------------------------------------------------------------------------------------------------------


def test_a_role_that_is_not_allowed_to_can_do_nothing_at_all(shop: Shop) -> None:
    stranger = shop.new_role("stranger")
    with shop.connect(stranger, autocommit=True) as connection:
        for statement in (
            "SELECT sse_app.publish('alerts', 'x', '{}')",
            "INSERT INTO sse_app.outbox (channel, type, data) VALUES ('alerts', 'x', '{}')",
            "SELECT * FROM sse_app.events",
            f"SELECT sse_app.allow_publishing('{stranger}', '**')",
        ):
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement.encode())
    assert shop.stored() == []


def test_a_role_that_may_publish_can_do_nothing_but_that(shop: Shop) -> None:
    """It may use the schema now: no table and no function in it is everyone's, also not one that comes later."""
    allowed = {f"publish(text,text,{kind},bigint,text,boolean)" for kind in ("text", "json", "jsonb")}
    functions = shop.superuser(
        "SELECT replace(oid::regprocedure::text, 'sse_app.', '') FROM pg_proc "
        f"WHERE pronamespace = 'sse_app'::regnamespace AND has_function_privilege('{shop.role}', oid, 'EXECUTE')"
    )
    assert {str(name) for (name,) in functions} == allowed
    privileges = "SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"
    tables = shop.superuser(
        "SELECT oid::regclass FROM pg_class "
        "WHERE relnamespace = 'sse_app'::regnamespace AND relkind IN ('r', 'v', 'p') "
        f"AND has_table_privilege('{shop.role}', oid, '{privileges}')"
    )
    assert tables == []
    sequences = shop.superuser(
        "WITH ours AS MATERIALIZED (SELECT oid FROM pg_class "
        "WHERE relnamespace = 'sse_app'::regnamespace AND relkind = 'S') "
        f"SELECT oid::regclass FROM ours WHERE has_sequence_privilege('{shop.role}', oid, 'USAGE, SELECT, UPDATE')"
    )
    assert sequences == []
    with shop.connect(autocommit=True) as application:
        for statement in (
            "SELECT * FROM sse_app.outbox",
            "SELECT * FROM sse_app.events",
            "SELECT * FROM sse_app.publishers",
            "UPDATE sse_app.outbox SET turn = 0",
            "DELETE FROM sse_app.outbox",
            "INSERT INTO sse_app.outbox (channel, type, data, publisher) VALUES ('alerts', 'x', '{}', 'app')",
            "INSERT INTO sse_app.outbox (channel, type, data, turn) VALUES ('alerts', 'x', '{}', 0)",
            "INSERT INTO sse_app.outbox (channel, type, data, xid) VALUES ('alerts', 'x', '{}', '1')",
            "ALTER TABLE sse_app.outbox DISABLE TRIGGER ALL",
            "SET session_replication_role = replica",
            "CREATE TABLE sse_app.mine ()",
            "SELECT sse_app.allow_publishing(current_user, '**')",
        ):
            with pytest.raises(InsufficientPrivilege):
                application.execute(statement.encode())


def test_patterns_are_added_and_taken_away_and_the_last_one_with_the_rest(shop: Shop) -> None:
    role = shop.new_role("two")
    with shop.owner() as owner, shop.connect(role, autocommit=True) as application:

        def may(channel: str) -> bool:
            try:
                publish(application, "x", channel=channel)
            except InsufficientPrivilege:
                return False
            return True

        owner.execute("SELECT sse_app.allow_publishing(%s, 'alerts', 'user.*.orders')", [role])
        names = ["alerts", "user.ann.orders", "user.ann", "dashboard"]
        assert [may(name) for name in names] == [True, True, False, False]
        owner.execute("SELECT sse_app.allow_publishing(%s, 'dashboard')", [role])
        owner.execute("SELECT sse_app.forbid_publishing(%s, 'alerts')", [role])
        assert [may(name) for name in names] == [False, True, False, True]
        owner.execute("SELECT sse_app.forbid_publishing(%s)", [role])
        assert not any(may(name) for name in names)
        shop.superuser(f'DROP ROLE "{role}"')
        for wrong in ("nobody", "public", 'x"; DROP TABLE sse_app.events; --'):
            with pytest.raises(UndefinedObject, match="there is no role"):
                owner.execute("SELECT sse_app.allow_publishing(%s, '**')", [wrong])
        with pytest.raises(InvalidParameterValue, match="not a channel pattern"):
            owner.execute("SELECT sse_app.allow_publishing(%s, 'a.**.b')", [shop.role])


def test_rights_are_those_of_the_role_in_force_also_with_set_role_groups_and_odd_names(shop: Shop) -> None:
    group, member, login = (
        shop.new_role(name) for name in ('The "group"; --'.replace('"', ""), "member", "pool")
    )
    shop.superuser(
        f'GRANT "{group}" TO "{member}"; CREATE ROLE "plain_{login}"; GRANT "plain_{login}" TO "{login}"'
    )
    shop.superuser(f'GRANT "{member}" TO "{login}"; ALTER ROLE "{login}" NOINHERIT')
    with shop.owner() as owner:
        owner.execute("SELECT sse_app.allow_publishing(%s, 'alerts')", [group])
    with shop.connect(member) as application:
        publish(application, "member")
        application.commit()
    with shop.connect(login, autocommit=True) as pool:
        with pytest.raises(InsufficientPrivilege):
            publish(pool, "never")
        pool.execute(f'SET ROLE "{member}"'.encode())
        publish(pool, "as.member")
        with pytest.raises(InsufficientPrivilege):
            publish(pool, "never", channel="dashboard")
        pool.execute(f'SET ROLE "plain_{login}"'.encode())
        with pytest.raises(InsufficientPrivilege):
            publish(pool, "never")
    # A session that may publish has none of that once it has become a role that may not.
    shop.superuser(f'GRANT "plain_{login}" TO "{shop.role}"')
    with shop.connect(autocommit=True) as application:
        application.execute(f'SET ROLE "plain_{login}"'.encode())
        with pytest.raises(InsufficientPrivilege):
            publish(application, "never")
    # A function with its owner's rights publishes with these.
    shop.superuser(
        f"CREATE FUNCTION public.order_now() RETURNS void LANGUAGE sql SECURITY DEFINER "
        f"AS $$ SELECT sse_app.publish('alerts', 'wrapped', '{{}}') $$; ALTER FUNCTION order_now() OWNER TO {shop.role}"
    )
    with shop.connect(login, autocommit=True) as pool:
        pool.execute("SELECT order_now()")
    assert shop.types() == ["member", "as.member", "wrapped"]


def test_what_a_caller_puts_before_ours_on_its_search_path_is_not_called(shop: Shop) -> None:
    shop.superuser(f"CREATE SCHEMA trap AUTHORIZATION {shop.role}")
    with shop.connect(autocommit=True) as application:
        application.execute("SET search_path = trap, pg_temp, pg_catalog, sse_app")
        application.execute(
            "CREATE FUNCTION trap.pg_has_role(name, name, text) RETURNS bool LANGUAGE sql AS 'SELECT true'"
        )
        application.execute(
            "CREATE FUNCTION trap.never(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false'"
        )
        application.execute(
            "CREATE OPERATOR trap.!~ (FUNCTION = trap.never, LEFTARG = text, RIGHTARG = text)"
        )
        application.execute("CREATE TEMPORARY TABLE outbox (channel text, type text, data text)")
        application.execute(
            "CREATE TEMPORARY TABLE publishing (channels text[], expressions text[], body_bytes bigint)"
        )
        asyncio.run(shop.configure(["dashboard"]))
        with pytest.raises(UndefinedObject, match="there is no channel alerts"):
            publish(application, "x")
        publish(application, "stored", channel="dashboard")
    assert shop.types() == ["stored"]


def test_what_a_caller_sets_in_its_session_changes_no_check_and_no_data(shop: Shop) -> None:
    settings = {
        "standard_conforming_strings": "off",
        "escape_string_warning": "off",
        "extra_float_digits": "-10",
    }
    settings |= {
        "bytea_output": "escape",
        "TimeZone": "Asia/Tokyo",
        "DateStyle": "SQL",
        "quote_all_identifiers": "on",
    }
    settings |= {"array_nulls": "off", "transform_null_equals": "on", "client_encoding": "LATIN1"}
    with shop.connect(autocommit=True) as application:
        for name, value in settings.items():
            application.execute("SELECT set_config(%s, %s, false)", [name, value])
        for channel in ("a\nb", "a,b", "alerts\n"):
            with pytest.raises(InvalidParameterValue, match="channel is not a channel name"):
                publish(application, "x", channel=channel)
        corpus = [data for data in CORPUS if data.isascii()]
        for data in corpus:
            publish(application, "x", data)
    stored = [
        (TIMESTAMP.sub(f'"timestamp":"{NOW}"}}'.encode(), event.data), event.flags) for event in shop.stored()
    ]
    assert stored == [over_http(data) for data in corpus]
    written = re.search(rb'"timestamp":"([^"]+)"', shop.stored()[0].data)
    assert written is not None
    assert abs(datetime.fromisoformat(written[1].decode()) - datetime.now(UTC)) < timedelta(minutes=5)


def test_the_checks_hold_and_events_are_moved_also_where_triggers_are_off_for_replication(shop: Shop) -> None:
    with psycopg.connect(shop.postgres.url(shop.database), autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        with pytest.raises(InvalidParameterValue, match="type must match"):
            publish(superuser, "a b")
        publish(superuser, "stored")
    assert shop.types() == ["stored"]
    assert shop.superuser("SELECT count(*) FROM sse_app.outbox") == [(0,)]


def test_rows_put_into_the_outbox_by_hand_are_checked_and_published_as_all_are(shop: Shop) -> None:
    insert = "INSERT INTO sse_app.outbox (channel, type, data) VALUES "
    with shop.connect(autocommit=True) as application:
        with pytest.raises(InvalidParameterValue, match="type 'reset' is reserved"):
            application.execute(f"{insert} ('alerts', 'one', '{{}}'), ('alerts', 'reset', '{{}}')".encode())
        application.execute(f"{insert} ('alerts', 'one', '{{}}'), ('alerts', 'two', '{{}}')".encode())
        with application.cursor().copy("COPY sse_app.outbox (channel, type, data) FROM STDIN") as copy:
            copy.write_row(("alerts", "three", "{ }"))
    assert shop.types() == ["one", "two", "three"]


# -- keys ----------------------------------------------------------------------------------------------------------


def test_of_calls_with_one_key_the_first_publishes_and_another_event_under_it_is_refused(shop: Shop) -> None:
    other = shop.new_role("other")
    keyed = "SELECT sse_app.publish('alerts', %s, %s, key => %s)"
    with shop.owner() as owner:
        owner.execute("SELECT sse_app.allow_publishing(%s, '**')", [other])
    with shop.connect() as application, shop.connect(other, autocommit=True) as another:
        application.execute(keyed, ["one", '{"a": 1}', "k1"])
        publish(application, "between")
        application.execute(keyed, ["one", '{"a": 1}', "k1"])
        application.execute(keyed, ["two", "{}", "k2"])
        application.commit()
        application.execute(keyed, ["never", "{}", "k3"])
        application.rollback()
        application.execute(keyed, ["three", "{}", "k3"])
        application.execute(keyed, ["one", '{"a": 1}', "k1"])
        application.commit()
        publish(application, "undone")
        application.execute(keyed, ["one", '{"a": 2}', "k1"])
        with pytest.raises(InvalidParameterValue, match="key was used within 24 hours for another event"):
            application.commit()
        another.execute(keyed, ["others", "{}", "k1"])
    assert shop.types() == ["one", "between", "two", "three", "others"]
