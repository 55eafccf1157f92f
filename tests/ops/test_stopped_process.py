"""A server whose event log another process has locked, and does not go on: it answers in time, and never falsely."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.appender import Appender
from tests.support.fleet import Client
from tests.support.server_process import ServerProcess
from tests.support.waiting import until


@pytest.mark.slow
@pytest.mark.parametrize("end", [Appender.resume, pytest.param(Appender.kill, marks=pytest.mark.long)])
def test_publishes_are_503_while_a_stopped_process_has_the_lock_and_none_of_them_is_stored_later(
    start_server: Callable[..., ServerProcess], end: Callable[[Appender], None]
) -> None:
    server = start_server(expected=("event_log_unavailable",))
    headers = {"Authorization": f"Bearer {server.access_token()}"}

    def publish(number: int) -> httpx.Response:
        body = {"event": "e", "data": {"number": number}}
        url = f"{server.url}/api/v1/sse/alerts"
        return httpx.post(url, json=body, headers=headers, timeout=30)

    stream = Client(server.port, f"/api/v1/sse/alerts?token={server.stream_token('alerts')}")
    appender = Appender(server.state_dir / "events.db", "dashboard", 0)
    try:
        stream.read_until("event: connected")
        until(lambda: len(appender.ids) > 5, "another process appends")
        first = publish(0)
        assert first.status_code == 201
        appender.stop_with_the_lock()
        begun = time.monotonic()
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(publish, range(1, 41)))
        assert time.monotonic() - begun < 25
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        end(appender)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "the server is ready")
        assert publish(41).status_code == 201
        stream.read_until('"number":41')
    finally:
        appender.kill()
        stream.socket.close()
    history = httpx.get(
        f"{server.url}/api/v1/sse/alerts/history",
        params={"after": f"{first.json()['id'].partition('-')[0]}-0"},
        headers=headers,
    ).json()
    assert [event["data"]["number"] for event in history["events"]] == [0, 41]
