"""The server's own channel, and the table of connections: what administrators read, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fleet import Fleet
from tests.support.people import bearer
from tests.support.server_process import ServerProcess
from tests.support.server_process import running as running_server
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.visitors import stream_paths
from tests.support.waiting import until

FIGURES = "/api/v1/admin/figures"
CONNECTIONS = "/api/v1/admin/connections"


class Asking:
    """A client of the API with an access token."""

    def __init__(self, server: ServerProcess, *, admin: bool) -> None:
        self.server = server
        self.token = server.access_token(subject="boss" if admin else "ann", admin=admin)

    def get(self, path: str, **query: Any) -> httpx.Response:
        return httpx.get(f"{self.server.url}{path}", headers=bearer(self.token), params=query, timeout=30)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{self.server.url}{path}", headers=bearer(self.token), json=body, timeout=30)

    def stream_token(self, *channels: str) -> httpx.Response:
        return self.post("/api/v1/auth/stream-token", {"channels": list(channels)})

    def rows(self, **query: Any) -> list[dict[str, Any]]:
        answer = self.get(CONNECTIONS, **query).raise_for_status().json()
        return list(answer["connections"])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    state_dir = tmp_path_factory.mktemp("admin") / "state"
    with running_server(state_dir=state_dir, LIMITS__STREAMS_PER_USER=5000) as server:
        yield server


@pytest.fixture(scope="module")
def boss(running: ServerProcess) -> Asking:
    return Asking(running, admin=True)


@pytest.fixture(scope="module")
def ann(running: ServerProcess) -> Asking:
    return Asking(running, admin=False)


def figures_of(
    asking: Asking, count: int, channels: str = "sse_app.admin", **query: str
) -> list[ReceivedEvent]:
    """Return the first figures that come on a stream."""
    token = asking.stream_token(*channels.split(",")).raise_for_status().json()["stream_token"]
    found: list[ReceivedEvent] = []
    reader = EventStreamReader()
    with httpx.stream("GET", asking.server.stream_url(channels, token, **query), timeout=30) as stream:
        for piece in stream.iter_bytes():
            found += [event for event in reader.feed(piece) if event.type == "figures"]
            if len(found) >= count:
                return found[:count]
    raise AssertionError("the stream ended")


def test_figures_come_every_second_without_ids_and_are_in_no_log(boss: Asking) -> None:
    first, second = figures_of(boss, 2)
    assert all((each.id, each.retry) == (None, None) for each in (first, second))
    assert second.json()["number"] == first.json()["number"] + 1
    assert first.json()["streams"] >= 1
    assert boss.get("/api/v1/sse/sse_app.admin/history").status_code == 404


def test_figures_are_kept_for_who_comes_later_and_are_the_same_for_all(boss: Asking) -> None:
    came = [each.json() for each in figures_of(boss, 2)]
    kept = boss.get(FIGURES).raise_for_status().json()["figures"]
    assert all(each in kept for each in came)


def test_figures_come_along_with_events_of_other_channels(boss: Asking) -> None:
    (figures,) = figures_of(boss, 1, "alerts,sse_app.admin")
    rows = figures.json()["channels"]
    assert {row["channel"]: row["streams"] for row in rows}["alerts"] >= 1


def test_nobody_else_reads_the_figures_whatever_their_patterns_say(boss: Asking, ann: Asking) -> None:
    refused = ann.stream_token("sse_app.admin")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    for path in (FIGURES, CONNECTIONS, "/api/v1/admin/audit", "/api/v1/sse/sse_app.admin/history"):
        assert ann.get(path).status_code == 403, path
        assert httpx.get(f"{ann.server.url}{path}").status_code == 401, path
    minted = ann.server.stream_token("**", subject="ann")
    assert httpx.get(ann.server.stream_url("sse_app.admin", minted)).status_code == 403
    named = ann.server.stream_token("sse_app.admin", subject="ann")
    assert httpx.get(ann.server.stream_url("sse_app.admin", named)).status_code == 403


def test_a_stream_token_of_an_administrator_that_names_another_channel_does_not_open_it(boss: Asking) -> None:
    token = boss.stream_token("alerts").json()["stream_token"]
    assert httpx.get(boss.server.stream_url("sse_app.admin", token)).status_code == 403


def test_nobody_publishes_there_and_the_public_does_not_hear_of_it(boss: Asking) -> None:
    assert boss.post("/api/v1/sse/sse_app.admin", {"event": "figures", "data": {}}).status_code == 403
    batch = {"events": [{"channel": "sse_app.admin", "event": "figures", "data": {}}]}
    assert boss.post("/api/v1/sse", batch).status_code == 403
    status = httpx.get(f"{boss.server.url}/api/v1/sse/status").json()
    assert not any(name.startswith("sse_app") for name in status["channels"])


def test_refusals_and_reconnects_are_counted(boss: Asking, ann: Asking) -> None:
    before = figures_of(boss, 1)[0].json()
    assert ann.get(CONNECTIONS).status_code == 403
    after = figures_of(boss, 1, last_event_id=before["log_head"])[0].json()
    assert after["refusals"]["forbidden"] == before["refusals"].get("forbidden", 0) + 1
    assert after["reconnects"] == before["reconnects"] + 1


def test_connections_are_searched_sorted_and_cut_into_pages(boss: Asking) -> None:
    fleet = Fleet(boss.server.port)
    try:
        paths = stream_paths(boss.server, 60, users=3)
        fleet.open(60, lambda number: paths[number])
        assert boss.get(CONNECTIONS, search="USER-01").json()["total"] == 20
        assert boss.get(CONNECTIONS, search="desk-00007").json()["total"] == 1
        assert boss.get(CONNECTIONS, search="desk-", field="subject").json()["total"] == 0
        assert boss.get(CONNECTIONS, search="alerts", field="channels").json()["total"] == 60
        page = boss.rows(search="desk-", sort="client_id", order="desc", limit=5, offset=10)
        assert [row["client_id"] for row in page] == [f"desk-{number:05}" for number in range(49, 44, -1)]
        for sort in ("connection", "subject", "opened_at", "expires_at", "last_event_id", "lag_events"):
            numbers = [row["connection"] for row in boss.rows(sort=sort, limit=1000)]
            assert len(set(numbers)) == boss.get(CONNECTIONS).json()["total"], sort
        row = page[0]
        assert row["lag_events"] == row["backlog_bytes"] == 0
        assert row["adopted"] is False
    finally:
        fleet.close()
    for bad in ({"sort": "nothing"}, {"field": ""}, {"order": "up"}, {"search": "x" * 256}):
        assert boss.get(CONNECTIONS, **bad).status_code == 400, bad


def test_a_stream_that_does_not_read_shows_how_far_it_is_behind(boss: Asking) -> None:
    fleet = Fleet(boss.server.port)
    try:
        (path,) = stream_paths(boss.server, 1)
        (client,) = fleet.open(1, path)
        fleet.pause(client)
        event = {"channel": "alerts", "event": "e", "data": {"text": "x" * 50_000}}
        ids: list[str] = []
        rows: list[dict[str, Any]] = []

        def behind() -> bool:
            rows[:] = boss.rows(search="desk-00000", sort="lag_events", order="desc")
            if not rows[0]["lag_events"]:
                ids[:] = boss.post("/api/v1/sse", {"events": [event] * 10}).raise_for_status().json()["ids"]
            return bool(rows[0]["lag_events"])

        until(behind, "the stream is behind", pause=0)
        row = rows[0]
        assert row["backlog_bytes"] > 50_000
        last, head = (int(id.rpartition("-")[2]) for id in (row["last_event_id"], ids[-1]))
        assert head - row["lag_events"] <= last + 1 <= head
    finally:
        fleet.close()
