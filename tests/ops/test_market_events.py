"""What the demo publishes, and how its publisher bears with a server that fails it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any

import pytest

from examples.market.events import Event, abandoned
from examples.market.feeds import FIRST_DAY, backtest_feed, portfolio_feed, training_feed
from examples.market.risk import SEVERITIES
from sse_app.client import Backoff, ClientError, Forbidden, Publisher, Refused, Session, Unauthorized
from tests.support.market_data import BARS, EVENTS, MARKET
from tests.support.server_process import ROOT
from tests.support.waiting import until

# The events


@pytest.mark.slow
def test_every_event_has_the_fields_that_subscribers_rely_on() -> None:
    feeds = (portfolio_feed(MARKET, 1), training_feed(MARKET, 1), backtest_feed(MARKET, 1))
    events = [event for feed in feeds for tick in feed for event in tick]
    json.dumps(events, allow_nan=False)
    runs = {"started", "running", "completed"}
    for event in events:
        data = event["data"]
        if event["channel"] == "dashboard":
            assert (event["event"], data["update_type"]) == ("dashboard_update", "metrics")
            assert {"total_value", "daily_return", "positions_count", "date"} <= data["data"].keys()
        elif event["channel"] == "alerts":
            assert event["event"] == "risk_alert"
            assert set(data) == {
                *("alert_type", "severity", "message", "metric_name", "metric_value", "threshold"),
                *("entity_type", "entity_id"),
            }
            assert data["severity"] in SEVERITIES
        elif event["channel"] == "training":
            assert event["event"] == "training_progress"
            assert set(data) == {"task_id", "progress", "status", "message", "metrics"}
            assert set(data["metrics"]) == {"loss", "accuracy"}
            assert data["status"] in runs
            assert 0 <= data["progress"] <= 100
        else:
            assert (event["channel"], event["event"]) == ("backtest", "backtest_progress")
            assert set(data) == {
                *("backtest_id", "progress", "status", "message", "current_date", "results"),
            }
            assert set(data["results"]) == {"total_return", "sharpe_ratio", "max_drawdown"}
            assert data["status"] in runs
            assert 0 <= data["progress"] <= 100


@pytest.mark.long
def test_the_first_alert_comes_with_the_third_day_and_the_data_goes_round() -> None:
    ticks = list(portfolio_feed(MARKET, 1))
    assert ticks[0][0]["data"]["data"]["date"] == str(FIRST_DAY)
    assert [event["channel"] for event in ticks[2]] == ["dashboard", "alerts"]
    second = next(islice(portfolio_feed(MARKET), len(ticks), None))
    assert second[0]["data"]["data"]["date"] == str(BARS[0].date)


def test_each_run_has_an_id_of_its_own_and_an_end() -> None:
    for feed, name in ((training_feed(MARKET, 2), "task_id"), (backtest_feed(MARKET, 2), "backtest_id")):
        events = [event for tick in feed for event in tick]
        ids = list(dict.fromkeys(event["data"][name] for event in events))
        assert len(ids) == 2
        for run in ids:
            mine = [event for event in events if event["data"][name] == run]
            assert [mine[0]["data"]["status"], mine[-1]["data"]["status"]] == ["started", "completed"]
            assert [event["data"]["progress"] for event in mine] == sorted(
                event["data"]["progress"] for event in mine
            )
            cut = abandoned(mine[5])
            assert cut
            assert cut["data"]["status"] == "failed"
            assert {**cut["data"], "status": 0, "message": 0} == {
                **mine[5]["data"],
                "status": 0,
                "message": 0,
            }
            assert abandoned(mine[-1]) is None


# The client, against a server on a real socket


class Backend:
    """As much of the server as a publisher meets, with faults to order.

    Attributes:
        faults: what to do instead with the next requests: a status, or `lose` to take the events and drop the
            connection without an answer; 0 for nothing.
        valid: the access tokens that have not expired.
        log: every event taken, once for each idempotency key.
    """

    def __init__(self) -> None:
        self.faults: list[int | str] = []
        self.log: list[Event] = []
        self.bodies: dict[str, bytes] = {}
        self.valid: set[str] = set()
        self.logins = 0
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, path: str, body: bytes, token: str, key: str) -> tuple[int, dict[str, Any]] | None:
        """The status and the JSON for a request, or None to drop it."""
        value = json.loads(body)
        if path == "/api/v1/auth/login":
            if value != {"username": "market", "password": "right", "cookie": False}:
                return 401, {"error": {"code": "bad_credentials", "message": "No."}}
            self.logins += 1
            self.valid.add(f"Bearer token-{self.logins}")
            return 200, {"access_token": f"token-{self.logins}", "expires_in": 3600}
        if token not in self.valid:
            return 401, {"error": {"code": "invalid_token", "message": "Expired."}}
        fault = self.faults.pop(0) if self.faults else 0
        if isinstance(fault, int) and fault:
            return fault, {"error": {"code": f"code_{fault}", "message": "Not now."}}
        if key not in self.bodies:
            self.bodies[key] = body
            channel = path.removeprefix("/api/v1/sse").strip("/")
            events: list[Event] = [value | {"channel": channel}] if channel else value["events"]
            self.log += events
        assert self.bodies[key] == body
        if fault == "lose":
            return None
        ids = [f"e-{number}" for number, _ in enumerate(value.get("events", [value]))]
        return 201, {"id": ids[-1], "ids": ids}


@contextmanager
def backend() -> Iterator[Backend]:
    """Serve a `Backend` on a socket of this machine."""
    state = Backend()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            token, key = self.headers.get("Authorization", ""), self.headers.get("Idempotency-Key", "")
            with state.lock:
                answer = state.answer(self.path, body, token, key)
            if answer is None:
                self.close_connection = True
                return
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def test_events_arrive_once_whatever_happens_to_the_answers() -> None:
    reports: list[str] = []

    async def publish(url: str) -> None:
        async with (
            Session(url, "market", "right") as session,
            Publisher(url, session, report=reports.append, backoff=Backoff(0.002)) as client,
        ):
            await client.publish(**EVENTS[0])
            server.faults = ["lose", 503, 429, 500, "lose"]
            await client.publish(**EVENTS[1])
            server.valid.clear()
            server.faults = ["lose"]
            await client.publish_batch(EVENTS[2:])

    with backend() as server:
        asyncio.run(publish(server.url))
    assert server.log == EVENTS
    assert server.logins == 2
    assert len(reports) == 4
    assert reports[1::2] == ["the server is back"] * 2


def test_tasks_that_meet_an_expired_token_together_log_in_once() -> None:
    async def publish(url: str) -> None:
        async with Session(url, "market", "right") as session, Publisher(url, session) as client:
            await client.publish(**EVENTS[0])
            server.valid.clear()
            await asyncio.gather(*(client.publish(**event) for event in EVENTS[1:]))

    with backend() as server:
        asyncio.run(publish(server.url))
    assert server.logins == 2
    assert sorted(event["data"]["number"] for event in server.log) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("password", "fault", "error", "message"),
    [
        ("wrong", 0, Unauthorized, "login as market: 401 bad_credentials: No."),
        ("right", 403, Forbidden, "403 code_403: Not now."),
        ("right", 422, Refused, "422 code_422: Not now."),
    ],
)
def test_a_refusal_is_final(password: str, fault: int, error: type[ClientError], message: str) -> None:
    async def publish(url: str) -> None:
        async with Session(url, "market", password) as session, Publisher(url, session) as client:
            await client.publish(**EVENTS[0])

    with backend() as server:
        server.faults = [fault]
        with pytest.raises(error, match=message):
            asyncio.run(publish(server.url))
    assert server.log == []


@pytest.mark.slow
def test_the_publisher_fills_all_channels_and_ends_cleanly_on_a_signal() -> None:
    with backend() as server:
        publisher = subprocess.Popen(
            [sys.executable, "-m", "examples.market.publisher", "--url", server.url, "--speed", "20"],
            cwd=ROOT,
            env=os.environ | {"MARKET_PASSWORD": "right"},
            stderr=subprocess.PIPE,
        )
        with publisher:
            until(
                lambda: len({event["channel"] for event in server.log}) == 4 or publisher.poll() is not None,
                "all channels have events",
            )
            publisher.send_signal(signal.SIGTERM)
            _, printed = publisher.communicate(timeout=60)
    assert (publisher.returncode, printed) == (0, b"")
    last = {event["channel"]: event["data"].get("status") for event in server.log}
    assert (last["training"], last["backtest"]) == ("failed", "failed")
