"""What every store of accounts, sessions, revocations and the audit trail does, tried on each implementation."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

import sse_app
from sse_app.auth import postgres_store, sqlite_store
from sse_app.auth.audit import Audit
from sse_app.auth.postgres_store import PostgresAuthStore
from sse_app.auth.records import Account, AuditEntry, Continued, Credentials, Revocation, Scope, SessionLimits
from sse_app.auth.revocations import Revocations
from sse_app.auth.sqlite_store import SqliteAuthStore
from sse_app.auth.store import AUDIT_KEPT, REPEATABLE, SESSIONS_KEPT, AuthStore, RefreshRefused
from sse_app.auth.tokens.claims import Lease
from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import AuthStoreUnavailable, StateError
from sse_app.storage import sqlite as storage
from sse_app.storage.postgres.database import Database
from tests.support.databases import disk_full, fill_with_garbage, locked
from tests.support.postgres import Postgres
from tests.support.waiting import until_async

GRANTS = Grants.of(subscribe=["dashboard", "desk.*"], publish=["alerts"])
OTHERS = Grants.of(subscribe=["alerts"], admin=True)
ANN = Account("ann", GRANTS, disabled=False)
BEN = Account("ben", OTHERS, disabled=False)
LIMITS = SessionLimits(idle=100.0, absolute=1000.0)
LONGEST = 366 * 86_400.0
"""What any setting can allow a token, in seconds."""
SLACK = 60.0
"""By how many seconds a time that the store writes may differ from one that a test expects."""


OTHERS_ENDED = (
    b"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
    b"WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
"""Ends all other connections to a database."""


class Implementation(ABC):
    """How a store is made, and what can make it unreachable, for one implementation.

    Args:
        request: of the test, whose own all of it is.
    """

    @abstractmethod
    def __init__(self, request: pytest.FixtureRequest) -> None: ...

    @abstractmethod
    def store(self) -> AuthStore:
        """Return one more store over the same data, not yet open, as another process has it."""

    @abstractmethod
    def troubles(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        """Return what keeps an open store from writing for as long as a context lasts, by name."""


class Sqlite(Implementation):
    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.path: Path = request.getfixturevalue("tmp_path") / "accounts.db"

    def store(self) -> AuthStore:
        return SqliteAuthStore(self.path)

    def troubles(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        return {
            "locked by another process": lambda: locked(self.path),
            "disk full": lambda: disk_full(self.path),
        }


class OnPostgres(Implementation):
    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.postgres: Postgres = request.getfixturevalue("postgres")
        self.url: str = request.getfixturevalue("database_url")

    def store(self) -> AuthStore:
        return PostgresAuthStore(Database(self.url, timeout=30.0))

    def troubles(self) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        return {"locked by another process": self._locked, "read-only": self._read_only}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Have another connection hold all tables against writers, who wait for a moment only."""
        tables = "auth, accounts, sessions, refresh_tokens, revocations, audit".replace(", ", ", sse_app.")
        with self._set("lock_timeout", "50ms"), psycopg.connect(self.url) as connection:
            connection.execute(f"LOCK TABLE sse_app.{tables} IN EXCLUSIVE MODE".encode())
            yield
            connection.rollback()

    def _read_only(self) -> AbstractContextManager[None]:
        """Let nothing be written, as on a standby, or once the numbers of transactions are nearly used up."""
        return self._set("default_transaction_read_only", "on")

    @contextmanager
    def _set(self, name: str, value: str) -> Iterator[None]:
        """Have a setting of the server in force for the user of the store, with the next connections."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            role = f"ALTER ROLE app IN DATABASE {connection.info.dbname}"
            connection.execute(f"{role} SET {name} = '{value}'".encode())
            connection.execute(OTHERS_ENDED)
            try:
                yield
            finally:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(f"{role} RESET {name}".encode())
                connection.execute(OTHERS_ENDED)


IMPLEMENTATIONS: list[type[Implementation]] = [Sqlite, OnPostgres]
TROUBLES: list[tuple[type[Implementation], str]] = [
    (Sqlite, "locked by another process"),
    (Sqlite, "disk full"),
    (OnPostgres, "locked by another process"),
    (OnPostgres, "read-only"),
]


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda each: each.__name__)
def made(request: pytest.FixtureRequest) -> Implementation:
    implementation: Implementation = request.param(request)
    return implementation


@asynccontextmanager
async def opened(made: Implementation) -> AsyncIterator[AuthStore]:
    store = made.store()
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def two(made: Implementation) -> AsyncIterator[tuple[AuthStore, AuthStore]]:
    async with opened(made) as one, opened(made) as other:
        yield one, other


async def begin(
    store: AuthStore, session: str = "s", subject: str = "ann", digest: bytes = b"1", now: float = 0.0
) -> bool:
    now = now or time.time()
    since = await store.last_revocation()
    return await store.begin_session(session, subject, digest, since=since, now=now, limits=LIMITS)


async def spend(store: AuthStore, digest: bytes, next_digest: bytes, now: float = 0.0) -> Continued:
    return await store.spend_refresh_token(
        digest, next_digest, b"seed of " + next_digest, now=now or time.time(), limits=LIMITS
    )


async def refusal(work: Awaitable[Continued]) -> RefreshRefused:
    with pytest.raises(RefreshRefused) as refused:
        await work
    return refused.value


async def revoked(store: AuthStore) -> list[Revocation]:
    return [revocation for _, revocation in await store.revocations_since(0)]


def entry(detail: str = "") -> AuditEntry:
    return AuditEntry(1234.5, "tried", "ann", "192.0.2.1", "target", detail)


async def everything(store: AuthStore) -> object:
    """Return all that can be asked of a store with ``ann``, and the session ``s`` of the token ``1``."""
    return (
        await store.accounts(),
        [await store.credentials(name) for name in ("ann", "ben")],
        [await store.session_of(digest) for digest in (b"1", b"2", b"3")],
        await store.revocations_since(0),
        await store.audit_entries(10**6),
    )


# -- opening and closing ------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_is_written_is_there_when_the_store_is_opened_again(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await begin(store)
        await store.revoke([Revocation.of_token("t", time.time() + 60)])
        await store.append_audit([entry()])
        before = await everything(store)
    async with opened(made) as store:
        assert await everything(store) == before


@pytest.mark.gen_test
async def test_a_store_that_is_not_open_or_no_longer_refuses_every_call(made: Implementation) -> None:
    store = made.store()
    for _ in range(2):
        for call in WRITES.values():
            with pytest.raises(AuthStoreUnavailable):
                await call(store)
        for read in (
            store.accounts(),
            store.accounts_page("", 0, 1),
            store.revocations_since(0),
            store.audit_entries(1),
        ):
            with pytest.raises(AuthStoreUnavailable):
                await read
        with pytest.raises(AuthStoreUnavailable):
            await store.credentials("ann")
        with pytest.raises(AuthStoreUnavailable):
            await store.session_of(b"1")
        store = made.store()
        await store.open()
        await store.close()
        await store.close()


@pytest.mark.gen_test
async def test_a_store_that_was_never_open_can_be_closed(made: Implementation) -> None:
    await made.store().close()


@pytest.mark.gen_test
async def test_closing_finishes_what_was_begun(made: Implementation) -> None:
    store = made.store()
    await store.open()
    writes = [asyncio.ensure_future(store.append_audit([entry(str(n))])) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    async with opened(made) as store:
        assert len(await store.audit_entries(100)) == 20


# -- accounts -----------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_accounts_are_kept_with_their_grants_and_listed_by_name(made: Implementation) -> None:
    async with opened(made) as store:
        assert await store.accounts() == []
        assert await store.add_account(BEN, "of ben")
        assert await store.add_account(ANN, "of ann")
        assert await store.accounts() == [ANN, BEN]
        assert await store.credentials("ann") == Credentials(ANN, "of ann")
        assert await store.credentials("ANN") is None


@pytest.mark.gen_test
async def test_accounts_are_searched_whatever_the_case_and_counted_beyond_the_page(
    made: Implementation,
) -> None:
    names = ["Zoe", "ann", "anna", "b_n", "ben", "desk.ANN"]  # in the order of their bytes
    async with opened(made) as store:
        for name in reversed(names):
            assert await store.add_account(ANN._replace(name=name, disabled=name == "ben"), "hash")

        async def found(search: str, offset: int = 0, limit: int = 10) -> tuple[int, list[str]]:
            total, accounts = await store.accounts_page(search, offset, limit)
            return total, [account.name for account in accounts]

        assert await found("") == (6, names)
        assert await found("", 4, 1) == (6, ["ben"])
        assert await found("", 6) == (6, [])
        assert await found("ANN") == (3, ["ann", "anna", "desk.ANN"])
        assert await found("aNn", 1, 1) == (3, ["anna"])
        for pattern in ("%", "a*", "\\", "'", "\0", "n\n", "é", "ann "):  # a text, and no pattern
            assert await found(pattern) == (0, [])
        assert await found("_") == (1, ["b_n"])
        assert (await store.accounts_page("ben", 0, 1))[1] == [ANN._replace(name="ben", disabled=True)]


@pytest.mark.gen_test
async def test_a_name_that_is_taken_changes_nothing(made: Implementation) -> None:
    async with opened(made) as store:
        assert await store.add_account(ANN, "first")
        assert not await store.add_account(Account("ann", OTHERS, disabled=True), "second")
        assert await store.credentials("ann") == Credentials(ANN, "first")


async def change_password(store: AuthStore, name: str) -> bool:
    return await store.set_password(name, "new")


async def disable(store: AuthStore, name: str) -> bool:
    return await store.disable_account(name)


async def remove(store: AuthStore, name: str) -> bool:
    return await store.remove_account(name)


async def change_grants(store: AuthStore, name: str) -> bool:
    return await store.set_grants(name, OTHERS)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("change", "left"),
    [
        (change_password, Credentials(ANN, "new")),
        (disable, Credentials(ANN._replace(disabled=True), "hash")),
        (remove, None),
    ],
)
async def test_what_is_taken_from_an_account_ends_its_sessions_and_tokens_and_no_others(
    made: Implementation, change: Callable[[AuthStore, str], Awaitable[bool]], left: Credentials | None
) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await store.add_account(BEN, "hash")
        await begin(store, "s1", "ann", b"1")
        await begin(store, "s2", "ann", b"2")
        await begin(store, "s3", "ben", b"3")
        before = time.time()
        assert await change(store, "ann")
        assert await store.credentials("ann") == left
        assert await store.credentials("ben") == Credentials(BEN, "hash")
        assert [await store.session_of(digest) for digest in (b"1", b"2", b"3")] == [
            None,
            None,
            ("s3", "ben"),
        ]
        (revocation,) = await revoked(store)
        assert (revocation.scope, revocation.value) == (Scope.SUBJECT, "ann")
        assert before <= revocation.issued_until <= before + SLACK
        assert revocation.forget_at == pytest.approx(revocation.issued_until + LONGEST, abs=1)


@pytest.mark.gen_test
async def test_revocations_of_whole_seconds_and_of_parts_of_them_are_stored_together(
    made: Implementation,
) -> None:
    """As a kick has them: of tokens, which expire at whole seconds, and of a session for a while."""
    async with opened(made) as store:
        now = time.time()
        kicked = [Revocation.of_token("t", int(now) + 60), Revocation.of_kick("s", 0.5)]
        await store.revoke(kicked)
        assert {(each.scope, each.value) for each in await revoked(store)} == {
            (each.scope, each.value) for each in kicked
        }


@pytest.mark.gen_test
async def test_other_grants_revoke_the_tokens_and_leave_the_sessions(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await begin(store)
        assert await change_grants(store, "ann")
        assert await store.credentials("ann") == Credentials(ANN._replace(grants=OTHERS), "hash")
        assert [(each.scope, each.value) for each in await revoked(store)] == [(Scope.SUBJECT, "ann")]
        assert (await spend(store, b"1", b"2")).account.grants == OTHERS


@pytest.mark.gen_test
async def test_an_account_that_is_enabled_again_has_what_it_had(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await disable(store, "ann")
        assert await store.enable_account("ann")
        assert await store.credentials("ann") == Credentials(ANN, "hash")
        assert len(await revoked(store)) == 1


@pytest.mark.gen_test
async def test_no_account_is_changed_that_is_not_there(made: Implementation) -> None:
    async with opened(made) as store:
        for change in (change_password, change_grants, disable, remove):
            assert not await change(store, "ann")
        assert not await store.enable_account("ann")
        await store.replace_password_hash("ann", "old", "new")
        assert await store.accounts() == []
        assert await revoked(store) == []


@pytest.mark.gen_test
async def test_a_hash_is_replaced_unless_the_password_has_changed_meanwhile(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "old")
        await store.add_account(BEN, "old")
        await begin(store)
        await store.replace_password_hash("ann", "old", "renewed")
        await store.replace_password_hash("ann", "old", "lost")
        assert await store.credentials("ann") == Credentials(ANN, "renewed")
        assert await store.credentials("ben") == Credentials(BEN, "old")
        assert await store.session_of(b"1") == ("s", "ann")
        assert await revoked(store) == []


# -- sessions -----------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_refresh_token_continues_its_session_once(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        now = time.time()
        assert await begin(store, now=now)
        assert await spend(store, b"1", b"2", now + 1) == Continued(
            "s", ANN, now + LIMITS.absolute, b"seed of 2"
        )
        assert await spend(store, b"2", b"3", now + 2) == Continued(
            "s", ANN, now + LIMITS.absolute, b"seed of 3"
        )
        assert [await store.session_of(digest) for digest in (b"1", b"2", b"3", b"4")] == [
            ("s", "ann"),
            ("s", "ann"),
            ("s", "ann"),
            None,
        ]
        assert await revoked(store) == []


@pytest.mark.long
@pytest.mark.gen_test
async def test_of_one_subject_the_thousand_sessions_used_last_are_kept(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await store.add_account(BEN, "hash")
        now = time.time()
        assert await begin(store, "of ben", "ben", b"ben", now=now)
        for number in range(SESSIONS_KEPT + 5):
            assert await begin(store, f"s{number}", "ann", b"%d" % number, now=now + number / 100)
        kept = [number for number in range(SESSIONS_KEPT + 5) if await store.session_of(b"%d" % number)]
        assert kept == list(range(5, SESSIONS_KEPT + 5))
        assert await store.session_of(b"ben") == ("of ben", "ben")


@pytest.mark.gen_test
async def test_a_token_that_was_just_spent_brings_the_same_seed_until_the_next_one_is_used(
    made: Implementation,
) -> None:
    async with two(made) as (one, other):
        await one.add_account(ANN, "hash")
        now = time.time()
        await begin(one, now=now)
        first = await spend(one, b"1", b"2", now + 1)
        # The clock may have been set back; and each repetition can be repeated as long.
        for late in (REPEATABLE, 2 * REPEATABLE, REPEATABLE, 0, -REPEATABLE, 0):
            again = await spend(other, b"1", b"never", now + 1 + late)
            assert (again.session, again.account, again.seed) == (first.session, first.account, first.seed)
        assert await one.session_of(b"never") is None
        assert (await spend(one, b"2", b"3", now + 2)).seed == b"seed of 3"
        assert (await refusal(spend(other, b"1", b"4", now + 2))).reason == "reused"
        assert await one.session_of(b"3") is None


@pytest.mark.gen_test
@pytest.mark.parametrize("seconds", [REPEATABLE + 0.1, 3600, -REPEATABLE - 0.1, -3600])
async def test_a_token_that_was_spent_some_time_ago_ends_its_session_also_if_the_clock_went_back(
    made: Implementation, seconds: float
) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        now = time.time()
        limits = LIMITS._replace(idle=1e5, absolute=1e6)
        await store.begin_session("s", "ann", b"1", since=0, now=now, limits=limits)
        await store.spend_refresh_token(b"1", b"2", b"seed", now=now, limits=limits)
        late = store.spend_refresh_token(b"1", b"3", b"other", now=now + seconds, limits=limits)
        assert (await refusal(late)).reason == "reused"
        assert await store.session_of(b"2") is None


@pytest.mark.gen_test
async def test_of_many_refreshes_the_last_spent_tokens_are_kept(
    made: Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_store, postgres_store):
        monkeypatch.setattr(module, "SPENT_KEPT", 5)
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        now = time.time()
        for session in ("s", "other"):
            await begin(store, session, digest=f"{session} 0".encode(), now=now)
            for number in range(20):
                digest, following = (f"{session} {n}".encode() for n in (number, number + 1))
                await spend(store, digest, following, now + number)
        for session in ("s", "other"):
            kept = [n for n in range(21) if await store.session_of(f"{session} {n}".encode())]
            assert kept == [15, 16, 17, 18, 19, 20]
        assert (await refusal(spend(store, b"s 3", b"x", now + 60))).reason == "unknown"
        assert (await refusal(spend(store, b"s 15", b"x", now + 60))).reason == "reused"


@pytest.mark.gen_test
async def test_a_token_that_comes_back_ends_its_session_for_good(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await begin(store)
        await begin(store, "other", "ann", b"other")
        now = time.time()
        await spend(store, b"1", b"2", now - 50)
        refused = await refusal(spend(store, b"1", b"3", now))
        assert (refused.reason, refused.session, refused.subject) == ("reused", "s", "ann")
        assert [await store.session_of(digest) for digest in (b"1", b"2", b"3")] == [None] * 3
        assert await store.session_of(b"other") == ("other", "ann")
        (revocation,) = await revoked(store)
        assert (revocation.scope, revocation.value) == (Scope.SESSION, "s")
        assert revocation.forget_at == pytest.approx(time.time() + LONGEST, abs=SLACK / 2)
        assert (await refusal(spend(store, b"2", b"4"))).reason == "unknown"
        assert len(await revoked(store)) == 1


@pytest.mark.gen_test
async def test_a_token_that_is_not_known_does_nothing(made: Implementation) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        await begin(store)
        before = await everything(store)
        refused = await refusal(spend(store, b"?", b"3"))
        assert (refused.reason, refused.session, refused.subject) == ("unknown", "", "")
        assert await everything(store) == before


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("refreshed_after", "then_after"), [((), 100), ((99, 99, 99), 100), ((90,) * 11, 10)]
)
async def test_a_session_runs_out_when_it_is_idle_or_old(
    made: Implementation, refreshed_after: tuple[int, ...], then_after: int
) -> None:
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        now = time.time()
        await begin(store, digest=b"0", now=now)
        for number, seconds in enumerate(refreshed_after):
            now += seconds
            await spend(store, b"%d" % number, b"%d" % (number + 1), now)
        last = b"%d" % len(refreshed_after)
        refused = await refusal(spend(store, last, b"next", now + then_after))
        assert (refused.reason, refused.session, refused.subject) == ("expired", "s", "ann")
        assert await store.session_of(last) is None
        assert [each.scope for each in await revoked(store)] == [Scope.SESSION]


@pytest.mark.gen_test
@pytest.mark.parametrize("gone", [False, True])
async def test_a_session_without_an_account_that_may_log_in_is_ended(
    made: Implementation, gone: bool
) -> None:
    async with opened(made) as store:
        await store.add_account(ANN._replace(disabled=True), "hash")
        await begin(store, subject="nameless" if gone else "ann")
        assert (await refusal(spend(store, b"1", b"2"))).reason == "no account"
        assert await store.session_of(b"1") is None
        assert [each.scope for each in await revoked(store)] == [Scope.SESSION]


@pytest.mark.gen_test
async def test_a_new_session_drops_those_that_have_run_out(made: Implementation) -> None:
    async with opened(made) as store:
        now = time.time()
        await begin(store, "idle", "ann", b"1", now - LIMITS.idle)
        await begin(store, "open", "ann", b"2", now - LIMITS.idle + 1)
        await begin(store, "new", "ben", b"3", now)
        assert [await store.session_of(digest) for digest in (b"1", b"2", b"3")] == [
            None,
            ("open", "ann"),
            ("new", "ben"),
        ]
        assert await revoked(store) == []


@pytest.mark.gen_test
async def test_a_password_that_was_checked_before_a_revocation_begins_no_session(
    made: Implementation,
) -> None:
    async with opened(made) as store:
        since, now = await store.last_revocation(), time.time()
        await store.revoke([Revocation.of_subject("ann")])
        assert not await store.begin_session("s", "ann", b"1", since=since, now=now, limits=LIMITS)
        assert await store.session_of(b"1") is None
        assert await store.begin_session("o", "ben", b"2", since=since, now=now, limits=LIMITS)
        later = await store.last_revocation()
        assert later > since
        for clock in (now, now - 3600):
            session, digest = f"t{clock}", str(clock).encode()
            assert await store.begin_session(session, "ann", digest, since=later, now=clock, limits=LIMITS)


@pytest.mark.gen_test
async def test_a_session_is_ended_for_as_long_as_any_setting_allows_a_token_to_last(
    made: Implementation,
) -> None:
    async with opened(made) as store:
        await begin(store)
        await store.end_session("s")
        await store.end_session("minted")
        assert await store.session_of(b"1") is None
        ours, minted = await revoked(store)
        assert (ours.scope, ours.value, minted.scope, minted.value) == (
            Scope.SESSION,
            "s",
            Scope.SESSION,
            "minted",
        )
        assert ours.forget_at == pytest.approx(time.time() + LONGEST, abs=SLACK / 2)
        assert minted.forget_at == pytest.approx(time.time() + LONGEST, abs=SLACK / 2)


# -- revocations --------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("revocation", "left"),
    [
        (Revocation.of_token("t", 2.0**40), {"s1", "s2", "s3"}),
        (Revocation.of_session("s1"), {"s2", "s3"}),
        (Revocation.of_subject("ann"), {"s3"}),
        (Revocation.of_everything(), set()),
    ],
    ids=lambda each: each.scope.value if isinstance(each, Revocation) else "",
)
async def test_a_revocation_ends_the_sessions_it_speaks_of(
    made: Implementation, revocation: Revocation, left: set[str]
) -> None:
    async with opened(made) as store:
        for session, subject, digest in (("s1", "ann", b"1"), ("s2", "ann", b"2"), ("s3", "ben", b"3")):
            await begin(store, session, subject, digest)
        await store.revoke([revocation])
        found = [await store.session_of(digest) for digest in (b"1", b"2", b"3")]
        assert {each[0] for each in found if each} == left
        (written,) = await revoked(store)
        assert written[:2] == revocation[:2]
        assert written.issued_until >= revocation.issued_until


@pytest.mark.gen_test
async def test_what_was_issued_while_a_revocation_waited_is_meant_too(made: Implementation) -> None:
    async with opened(made) as store:
        made_before = time.time() - 30
        waited = [
            Revocation(Scope.SUBJECT, "ann", made_before, made_before + LONGEST, made_before),
            Revocation(Scope.ALL, "", made_before, made_before + LONGEST, made_before),
        ]
        called = time.time()
        await store.revoke(waited)
        for written in await revoked(store):
            assert called <= written.issued_until <= called + SLACK
            assert written.forget_at == pytest.approx(written.issued_until + LONGEST, abs=0.001)


@pytest.mark.gen_test
async def test_a_kick_is_told_however_long_ago_it_was_made(made: Implementation) -> None:
    """It may last for longer than any token, and a process that starts meanwhile must know it."""
    async with opened(made) as store:
        await store.revoke([Revocation.of_session("s"), Revocation.of_kick("kicked", 3600)])
        told = await store.revocations_since(0, made_after=time.time() + 600)
        assert [revocation.value for _, revocation in told] == ["kicked"]


@pytest.mark.gen_test
async def test_revocations_are_told_once_to_each_in_the_order_in_which_they_came(
    made: Implementation,
) -> None:
    async with two(made) as (one, other):
        expiry = time.time() + 60
        for number in range(4):
            await (one, other)[number % 2].revoke([Revocation.of_token(f"t{number}", expiry)])
        all = await one.revocations_since(0)
        assert all == await other.revocations_since(0)
        assert [each.value for _, each in all] == ["t0", "t1", "t2", "t3"]
        numbers = [number for number, _ in all]
        assert numbers == sorted(set(numbers))
        assert await one.revocations_since(numbers[1]) == all[2:]
        assert await one.revocations_since(numbers[-1]) == []
        await other.revoke([Revocation.of_token("t4", expiry)])
        assert [each.value for _, each in await one.revocations_since(numbers[-1])] == ["t4"]


@pytest.mark.gen_test
async def test_a_reader_who_asks_while_others_revoke_misses_none(made: Implementation) -> None:
    async with two(made) as (one, other), opened(made) as reader:
        expiry = time.time() + 60

        async def write(store: AuthStore, name: str) -> None:
            for number in range(40):
                await store.revoke([Revocation.of_token(f"{name}{number}", expiry)])

        writing = asyncio.gather(write(one, "a"), write(other, "b"))
        seen = 0
        told = []
        while not writing.done():
            for number, revocation in await reader.revocations_since(seen):
                seen = number
                told.append(revocation.value)
            await asyncio.sleep(0)
        await writing
        told += [revocation.value for _, revocation in await reader.revocations_since(seen)]
        assert len(told) == 80
        assert told == [each.value for each in await revoked(reader)]


@pytest.mark.gen_test
async def test_what_is_spent_is_dropped_and_its_number_not_given_again(made: Implementation) -> None:
    async with opened(made) as store:
        await store.revoke([Revocation.of_token("kept", time.time() + 60)])
        await store.revoke([Revocation.of_token("spent", time.time() + 0.05)])
        last = (await store.revocations_since(0))[-1][0]
        await asyncio.sleep(0.06)
        await store.revoke([Revocation.of_token("new", time.time() + 60)])
        assert [each.value for each in await revoked(store)] == ["kept", "new"]
        assert [each.value for _, each in await store.revocations_since(last)] == ["new"]


@pytest.mark.gen_test
async def test_revocations_in_memory_answer_as_the_store_was_told(made: Implementation) -> None:
    async with two(made) as (one, other):
        revocations = Revocations(one, LONGEST)
        now = time.time()
        lease = Lease("ann", "s", "t", now, now + 600)
        assert not await revocations.learn()
        assert not revocations.covers(lease)
        await other.revoke([Revocation.of_subject("ann"), Revocation.of_token("u", now + 60)])
        assert not revocations.covers(lease)
        assert await revocations.learn()
        assert revocations.covers(lease)
        assert not revocations.covers(lease._replace(subject="ben"))
        assert revocations.covers(lease._replace(subject="ben", token_id="u"))
        assert not revocations.covers(lease._replace(issued_at=time.time() + 1))
        assert not await revocations.learn()
        assert len(revocations) == 2


# -- the audit trail ----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_audit_entries_come_newest_first_and_in_pages(made: Implementation) -> None:
    async with opened(made) as store:
        assert await store.audit_entries(10) == []
        await store.append_audit([entry("0"), entry("1")])
        await store.append_audit([entry("2")])
        found = await store.audit_entries(2)
        assert [each for _, each in found] == [entry("2"), entry("1")]
        assert [each for _, each in await store.audit_entries(10, found[-1][0])] == [entry("0")]


@pytest.mark.gen_test
async def test_the_oldest_entries_are_dropped_of_each_action_for_itself(made: Implementation) -> None:
    async with opened(made) as store:
        other = entry("another action")._replace(action="other")
        await store.append_audit([other])
        await store.append_audit(entry(str(number)) for number in range(AUDIT_KEPT))
        await store.append_audit([entry("one more"), entry("and one")])
        found = await store.audit_entries(10**6)
        assert found.pop()[1] == other
        assert len(found) == AUDIT_KEPT
        assert [found[0][1].detail, found[-1][1].detail] == ["and one", "2"]


# -- all or nothing -----------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_of_several_revocations_or_entries_all_are_written_or_none(made: Implementation) -> None:
    async with opened(made) as store:
        await begin(store)
        before = await everything(store)

        def revocations() -> Iterator[Revocation]:
            yield Revocation.of_subject("ann")
            raise LookupError

        def entries() -> Iterator[AuditEntry]:
            yield entry()
            raise LookupError

        with pytest.raises(LookupError):
            await store.revoke(revocations())
        with pytest.raises(LookupError):
            await store.append_audit(entries())
        assert await everything(store) == before
        await store.append_audit([entry()])  # nothing is left open


WRITES: dict[str, Callable[[AuthStore], Awaitable[object]]] = {
    "add_account": lambda store: store.add_account(BEN, "hash"),
    "set_password": lambda store: store.set_password("ann", "new"),
    "replace_password_hash": lambda store: store.replace_password_hash("ann", "hash", "new"),
    "set_grants": lambda store: store.set_grants("ann", OTHERS),
    "disable_account": lambda store: store.disable_account("ann"),
    "enable_account": lambda store: store.enable_account("ann"),
    "remove_account": lambda store: store.remove_account("ann"),
    "begin_session": lambda store: begin(store, "t", "ann", b"2"),
    "spend_refresh_token": lambda store: spend(store, b"1", b"2"),
    "end_session": lambda store: store.end_session("s"),
    "revoke": lambda store: store.revoke([Revocation.of_everything()]),
    "append_audit": lambda store: store.append_audit([entry("2"), entry("3")]),
}


# A lock is tried with each of them; what else keeps a store from writing is told by the same errors.
LEFT_OUT = {
    (Sqlite, "disk full"): pytest.mark.long,
    (OnPostgres, "locked by another process"): pytest.mark.slow,
    (OnPostgres, "read-only"): pytest.mark.long,
}
"""When all but two of the methods are tried with a trouble, where that is not always."""

TRIED = [
    pytest.param(
        *trouble,
        name,
        marks=[] if name in ("begin_session", "append_audit") else LEFT_OUT.get(trouble, []),
    )
    for trouble in TROUBLES
    for name in WRITES
]


async def is_used_again(store: AuthStore) -> bool:
    """Ask as a process does again and again, and return whether the store is in use."""
    with suppress(AuthStoreUnavailable):
        await store.revocations_since(0)
    return store.available


def test_every_method_that_writes_is_tried() -> None:
    read = {"open", "close", "accounts", "accounts_page", "credentials", "session_of", "audit_entries"}
    read |= {"on_change", "id", "last_revocation", "revocations_since", "available"}
    assert AuthStore.__abstractmethods__ - read == WRITES.keys()


@pytest.mark.gen_test
@pytest.mark.parametrize(("implementation", "trouble", "name"), TRIED)
async def test_where_the_store_cannot_be_reached_nothing_is_half_done(
    implementation: type[Implementation],
    trouble: str,
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT", 0.02)
    made = implementation(request)
    async with opened(made) as store:
        await store.add_account(ANN._replace(disabled=name == "enable_account"), "hash")
        await begin(store)
        await store.append_audit([entry("1")])
        before = await everything(store)
        with made.troubles()[trouble]():
            for _ in range(2):
                with pytest.raises(AuthStoreUnavailable) as unavailable:
                    await WRITES[name](store)
                assert unavailable.value.detail
                assert await everything(store) == before
        await until_async(lambda: is_used_again(store), "it is used again")
        assert await everything(store) == before
        await WRITES[name](store)  # it is as if nothing had been
        assert await everything(store) != before


@pytest.mark.gen_test
async def test_audit_entries_that_cannot_be_written_wait_for_the_next_time(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT", 0.02)
    made = Sqlite(request)
    async with opened(made) as store:
        audit = Audit(store)
        with made.troubles()["locked by another process"]():
            audit.record("tried", detail="0")
            with pytest.raises(AuthStoreUnavailable):
                await audit.flush()
            audit.record("tried", detail="1")
        assert [each.detail for _, each in await audit.entries(10)] == ["1", "0"]
        assert len(await audit.entries(10)) == 2


# -- at the same time ---------------------------------------------------------------------------------------

ROUNDS = 20


@pytest.mark.gen_test
async def test_of_two_refreshes_with_one_token_both_continue_the_session_with_the_same_next_one(
    made: Implementation,
) -> None:
    async with two(made) as (one, other):
        await one.add_account(ANN, "hash")
        for number in range(ROUNDS):
            session, first = f"s{number}", b"first %d" % number
            following = [b"a %d" % number, b"b %d" % number]
            await begin(one, session, "ann", first)
            outcomes = await asyncio.gather(
                spend(one, first, following[0]), spend(other, first, following[1])
            )
            assert outcomes[0] == outcomes[1]
            kept = [digest for digest in following if await one.session_of(digest)]
            assert [b"seed of " + digest for digest in kept] == [outcomes[0].seed]
        assert await revoked(one) == []


@pytest.mark.gen_test
async def test_of_two_who_take_a_name_one_gets_it(made: Implementation) -> None:
    async with two(made) as (one, other):
        for number in range(ROUNDS):
            account = Account(f"user{number}", GRANTS, disabled=False)
            added = await asyncio.gather(one.add_account(account, "one"), other.add_account(account, "other"))
            assert sorted(added) == [False, True]
            assert await one.credentials(account.name) == Credentials(account, ("one", "other")[added[1]])


@pytest.mark.gen_test
@pytest.mark.parametrize("change", [change_password, disable, remove])
async def test_no_login_and_no_refresh_escapes_a_change_that_comes_at_the_same_time(
    made: Implementation, change: Callable[[AuthStore, str], Awaitable[bool]]
) -> None:
    async with two(made) as (one, other):
        for number in range(ROUNDS):
            name = f"user{number}"
            digests = [b"%s %d" % (which, number) for which in (b"new", b"open", b"next")]
            await one.add_account(Account(name, GRANTS, disabled=False), "hash")
            await begin(one, f"open {number}", name, digests[1])
            since, now = await one.last_revocation(), time.time()
            outcomes = await asyncio.gather(
                one.begin_session(
                    f"new {number}", name, digests[0], since=since, now=now, limits=LIMITS
                ),  # of a password that was checked before the change
                spend(one, digests[1], digests[2]),
                change(other, name),
                return_exceptions=True,
            )
            assert outcomes[2] is True
            assert [await one.session_of(digest) for digest in digests] == [None] * 3, outcomes


def test_only_what_keeps_something_knows_sqlite() -> None:
    package = Path(sse_app.__file__).parent
    knowing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) sqlite3", path.read_text(), re.MULTILINE)
    }
    assert "auth/sqlite_store.py" in knowing
    others = {path for path in knowing if not path.startswith(("eventlog/", "storage/"))}
    assert others <= {"auth/sqlite_store.py", "auth/copy.py", "cli/eventlog.py"}


# -- the one in PostgreSQL ----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_in_postgresql_numbers_go_on_from_the_time_after_a_backup_was_restored(
    request: pytest.FixtureRequest,
) -> None:
    made = OnPostgres(request)
    async with opened(made) as store:
        await store.revoke([Revocation.of_subject("ann")])
        before = await store.last_revocation()
        with psycopg.connect(made.url) as connection:  # as in a backup of before the first revocation
            connection.execute("DELETE FROM sse_app.revocations")
            connection.execute("UPDATE sse_app.auth SET revoked = 0")
        await store.revoke([Revocation.of_subject("ben")])
        ((number, revocation),) = await store.revocations_since(before)
        assert (number > before, revocation.value) == (True, "ben")


@pytest.mark.gen_test
async def test_in_postgresql_many_logins_refreshes_and_revocations_at_once_wait_for_each_other_without_a_deadlock(
    request: pytest.FixtureRequest,
) -> None:
    made = OnPostgres(request)
    async with two(made) as stores, opened(made) as watching:
        await watching.add_account(ANN, "hash")
        await watching.add_account(BEN, "hash")
        expired = time.time() - 2 * LIMITS.idle

        async def live(store: AuthStore, name: str) -> None:
            for number in range(15):
                session = f"{name} {number}"
                digests = [f"{session} {which}".encode() for which in range(3)]
                await begin(store, f"{session} old", "ben", b"old " + digests[0], now=expired)
                await begin(store, session, ("ann", "ben")[number % 2], digests[0])
                with suppress(RefreshRefused):  # it may have been revoked meanwhile
                    await spend(store, digests[0], digests[1])
                    await spend(store, digests[1], digests[2])
                    await spend(store, digests[0], b"never")

        async def take_back(store: AuthStore) -> None:
            for number in range(10):
                await store.revoke([Revocation.of_session(f"0 {number}"), Revocation.of_subject("ann")])
                await store.set_password("ben", "hash")
                await store.end_session(f"1 {number}")
                await store.append_audit([entry(str(number)), entry()._replace(action="other")])

        await asyncio.gather(
            *(live(store, str(number)) for number, store in enumerate(stores * 3)), *map(take_back, stores)
        )
        numbers = [number for number, _ in await watching.revocations_since(0)]
        assert numbers == sorted(set(numbers))


@pytest.mark.gen_test
@pytest.mark.parametrize("text", ["a\0b", "\x1b0", "\x1b", "x" * 8000])
async def test_in_postgresql_whatever_a_text_holds_it_is_kept_as_it_is(
    request: pytest.FixtureRequest, text: str
) -> None:
    async with opened(OnPostgres(request)) as store:
        assert await store.credentials(text) is None
        await store.end_session(text)
        await store.revoke([Revocation.of_subject(text), Revocation.of_kick(text, 60)])
        assert [each.value for each in await revoked(store)] == [text] * 3
        written = AuditEntry(1.0, "tried", text, text, text, text)
        await store.append_audit([written])
        assert [each for _, each in await store.audit_entries(10)] == [written]


@pytest.mark.gen_test
async def test_in_postgresql_a_change_is_told_at_once_and_after_a_lost_connection(
    request: pytest.FixtureRequest,
) -> None:
    made = OnPostgres(request)
    told: list[int] = []
    store = made.store()
    store.on_change(lambda: told.append(1))
    await store.open()
    try:
        await until_async(lambda: told, "it listens")
        async with opened(made) as other:
            told.clear()
            await other.revoke([Revocation.of_session("s")])
            await until_async(lambda: told, "it is told")
        with psycopg.connect(made.url, autocommit=True) as connection:
            told.clear()
            connection.execute(OTHERS_ENDED)
            await until_async(lambda: len(told) == 2, "the connection is lost, and made again")
    finally:
        await store.close()


@pytest.mark.gen_test
async def test_in_postgresql_a_store_without_its_row_does_not_open(request: pytest.FixtureRequest) -> None:
    made = OnPostgres(request)
    async with opened(made):
        pass
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute("TRUNCATE sse_app.auth")
    with pytest.raises(StateError, match=r"sse_app\.auth .* is empty: restore a backup"):
        await made.store().open()


# -- the one in a SQLite file -------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_sqlite_file_that_another_process_writes_to_is_read_without_waiting(
    request: pytest.FixtureRequest,
) -> None:
    made = Sqlite(request)
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
        with made.troubles()["locked by another process"]():
            begun = time.monotonic()
            await everything(store)
            assert time.monotonic() - begun < storage.BUSY_TIMEOUT / 2


@pytest.mark.gen_test
async def test_a_sqlite_file_replaced_by_garbage_is_unavailable_and_does_not_open(
    request: pytest.FixtureRequest,
) -> None:
    made = Sqlite(request)
    async with opened(made) as store:
        await store.add_account(ANN, "hash")
    async with opened(made) as store:
        fill_with_garbage(made.path)
        for call in (
            store.accounts(),
            store.revocations_since(0),
            store.last_revocation(),
            *(write(store) for write in WRITES.values()),
        ):
            with pytest.raises(AuthStoreUnavailable):
                await call
    with pytest.raises(StateError, match="cannot open"):
        await made.store().open()


@pytest.mark.gen_test
async def test_a_sqlite_file_of_another_kind_or_a_newer_schema_does_not_open(
    request: pytest.FixtureRequest,
) -> None:
    made = Sqlite(request)
    async with opened(made):
        pass
    for pragma, reason in (
        ("user_version = 99", "schema version 99"),
        ("application_id = 7", "of this kind"),
    ):
        with sqlite3.connect(made.path) as database:
            (before,) = database.execute(f"PRAGMA {pragma.split()[0]}").fetchone()
            database.execute(f"PRAGMA {pragma}")
        database.close()
        with pytest.raises(StateError, match=reason):
            await made.store().open()
        with sqlite3.connect(made.path) as database:
            database.execute(f"PRAGMA {pragma.split()[0]} = {before}")
        database.close()
    async with opened(made) as store:
        assert await store.accounts() == []


@pytest.mark.gen_test
async def test_a_sqlite_file_in_a_directory_that_is_not_there_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        await SqliteAuthStore(tmp_path / "absent" / "accounts.db").open()
