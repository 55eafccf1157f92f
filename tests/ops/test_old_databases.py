"""What an earlier version of this program has stored is found by this one: events, ids, keys, accounts, sessions.

The databases in ``tests/support/old_databases`` are those of one server of commit b21dcc8, which used the first
schema of the event log and the second of the accounts: two publishes with an Idempotency-Key, a login, a revocation.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.old_state import lay_down
from tests.support.server_process import ServerProcess, running

EPOCH = "327a72f8"
PASSWORD = "correct horse battery"
REFRESH_TOKEN = "Ujc_oW0o35SGB0ih53-49LvG7_svvxVf7UpCSRkdHlA"
HEX_KEY = "0123456789abcdef" * 4
ORDERS = {
    "order-1": ("/api/v1/sse/alerts", b'{"event":"order","data":{"number":1}}'),
    HEX_KEY: (
        "/api/v1/sse",
        b'{"events":[{"channel":"alerts","event":"order","data":{"number":2}},'
        b'{"channel":"dashboard","event":"order","data":{"number":3}}]}',
    ),
}
ANSWERS = {
    "order-1": {"id": f"{EPOCH}-1", "channel": "alerts"},
    HEX_KEY: {"ids": [f"{EPOCH}-2", f"{EPOCH}-3"]},
}


def publish(
    server: ServerProcess, key: str, body: bytes | None = None, subject: str = "ann"
) -> httpx.Response:
    path, first_body = ORDERS[key]
    token = server.access_token(subscribe="", subject=subject)
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key, "Content-Type": "application/json"}
    return httpx.post(f"{server.url}{path}", content=first_body if body is None else body, headers=headers)


def test_an_idempotency_key_of_an_earlier_version_is_recognised(tmp_path: Path) -> None:
    lay_down(tmp_path / "state", "events-1", "accounts-2")
    with running(state_dir=tmp_path / "state") as server:
        for _ in range(2):
            for key, answer in ANSWERS.items():
                again = publish(server, key)
                assert (again.status_code, again.json()) == (201, answer)
        other = publish(server, "order-1", b'{"event":"order","data":{"number":9}}')
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert publish(server, "order-1", subject="bob").json()["id"] == f"{EPOCH}-4"
    with closing(sqlite3.connect(tmp_path / "state/events.db")) as database:
        keys = {key for (key,) in database.execute("SELECT key FROM answers")}
    assert "order-1" not in keys  # it may be a secret
    assert {len(key) for key in keys} == {64}


def test_a_key_that_a_version_between_kept_as_a_hash_is_recognised(tmp_path: Path) -> None:
    lay_down(tmp_path / "state", "events-1", "accounts-2")
    with closing(sqlite3.connect(tmp_path / "state/events.db")) as database, database:
        hashed = hashlib.sha256(b"order-1").hexdigest()
        database.execute("UPDATE answers SET key = ? WHERE key = 'order-1'", (hashed,))
    with running(state_dir=tmp_path / "state") as server:
        assert publish(server, "order-1").json() == ANSWERS["order-1"]


@pytest.mark.parametrize("accounts", ["accounts-1", pytest.param("accounts-2", marks=pytest.mark.slow)])
def test_what_each_earlier_schema_kept_is_there(tmp_path: Path, accounts: str) -> None:
    lay_down(tmp_path / "state", "events-1", accounts)
    with running(state_dir=tmp_path / "state") as server:
        token = server.access_token(subject="ann")
        url = f"{server.url}/api/v1/sse/alerts/history"
        headers = {"Authorization": f"Bearer {token}"}
        history = httpx.get(url, params={"after": f"{EPOCH}-0"}, headers=headers).json()
        assert history["complete"]
        assert [(event["id"], event["data"]["number"]) for event in history["events"]] == [
            (f"{EPOCH}-1", 1),
            (f"{EPOCH}-2", 2),
        ]
        login = {"username": "ann", "password": PASSWORD, "cookie": False}
        session = httpx.post(f"{server.url}/api/v1/auth/login", json=login)
        assert session.status_code == 200
        me = {"Authorization": f"Bearer {session.json()['access_token']}"}
        new = httpx.post(f"{server.url}/api/v1/sse/alerts", json={"event": "e", "data": {}}, headers=me)
        assert new.json() == {"id": f"{EPOCH}-4", "channel": "alerts"}
        if accounts == "accounts-2":
            refresh = {"refresh_token": REFRESH_TOKEN}
            assert httpx.post(f"{server.url}/api/v1/auth/refresh", json=refresh).status_code == 200
            gone = {"Authorization": f"Bearer {server.access_token(session='gone-session')}"}
            assert httpx.get(f"{server.url}/api/v1/auth/me", headers=gone).status_code == 401
