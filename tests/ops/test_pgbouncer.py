"""Nodes behind PgBouncer: all but LISTEN goes through it in transaction mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, assert_all_received
from tests.support.nodes import nodes
from tests.support.poolers import pgbouncer
from tests.support.postgres import Postgres

PASSWORD = "correct horse battery"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("direct", [True, False], ids=["listening directly", "listening through it"])
def test_behind_pgbouncer_events_logins_and_replays_go_their_way(
    postgres: Postgres, tmp_path: Path, mode: str, direct: bool
) -> None:
    url = postgres.new_database()
    with pgbouncer(postgres, mode) as port:
        pooled = url.replace(str(postgres.port), str(port))
        settings: dict[str, Any] = {"POSTGRES__LISTEN_URL": url} if direct else {}
        with nodes(tmp_path, [pooled] * 2, POSTGRES__TIMEOUT=30, **settings) as (one, other):
            fleet = Fleet(other.port)
            try:
                path = other.stream_url("dashboard", other.stream_token("dashboard"))
                clients = fleet.open(3, path)
                with one.publisher() as http:
                    ids = []
                    for number in range(20):
                        event = {"event": "e", "data": {"number": number}}
                        answer = http.post(
                            "/api/v1/sse/dashboard", json=event, headers={"Idempotency-Key": str(number)}
                        )
                        assert answer.status_code == 201, answer.text
                        ids.append(answer.json()["id"])
                    again = http.post("/api/v1/sse/dashboard", json=event, headers={"Idempotency-Key": "19"})
                    assert again.json()["id"] == ids[-1]
                assert_all_received(clients, ids)
                late = other.stream_url("dashboard", other.stream_token("dashboard"), last_event_id=ids[4])
                (replayed,) = fleet.open(1, late)
                assert_all_received([replayed], ids[5:])
                one.command(
                    "user", "add", "ann", "--subscribe", "dashboard", "--password-stdin", input=PASSWORD
                )
                with other.publisher() as http:
                    login = http.post("/api/v1/auth/login", json={"username": "ann", "password": PASSWORD})
                    assert login.status_code == 200, login.text
            finally:
                fleet.close()
