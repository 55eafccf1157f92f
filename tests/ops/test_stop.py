"""A process that is asked to end while requests are under way."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sse_app.handover.sender import REQUESTS_TIMEOUT
from tests.support.nodes import nodes
from tests.support.postgres import Postgres, cluster
from tests.support.server_process import ServerProcess
from tests.support.waiting import until


def connections(server: ServerProcess) -> int:
    """Return how many connections there are that are no streams, beside the one that asks."""
    metrics = httpx.get(f"{server.url}/metrics").raise_for_status().text
    (count,) = re.findall(r"^sse_app_connections(?:{.*})? (\d+)", metrics, re.MULTILINE)
    return int(count) - 1


@contextmanager
def asked(directory: Path) -> Iterator[tuple[ServerProcess, Postgres, list[Future[int]]]]:
    """Run a server to which requests have come that the database, which is stopped, does not answer.

    Yields:
        The server, the database, and the status of each answer; 0 where there is none.
    """
    with (
        cluster() as postgres,
        nodes(
            directory,
            [postgres.new_database()],
            expected=("event_log_unavailable", "accounts_unavailable"),
            POSTGRES__TIMEOUT=5,
        ) as (server,),
        ThreadPoolExecutor(2) as pool,
    ):
        access = {"Authorization": f"Bearer {server.access_token()}"}

        def ask(url: str, headers: dict[str, str] | None = None) -> int:
            try:
                with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
                    return answer.status_code
            except httpx.HTTPError:
                return 0

        page = f"{server.url}/api/v1/sse/dashboard/history"
        token = server.stream_token("dashboard")
        stream = server.stream_url("dashboard", token, **{"from": "earliest"})
        assert ask(page, access) == 200
        postgres.pause()
        try:
            asking = [pool.submit(ask, page, access), pool.submit(ask, stream)]
            until(lambda: connections(server) == 2, "they have come")
            time.sleep(0.5)  # and are read
            yield server, postgres, asking
        finally:
            postgres.resume()


def begin_to_stop(server: ServerProcess) -> None:
    """Ask a server to end, and wait until it listens no more."""
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)

    def listens_no_more() -> bool:
        try:
            httpx.get(f"{server.url}/healthz")
        except httpx.TransportError:  # refused, or reset where it had not been accepted
            return True
        return False

    until(listens_no_more, "it listens no more")


@pytest.mark.slow
def test_requests_under_way_are_answered_before_the_process_ends(tmp_path: Path) -> None:
    for attempt in range(4):
        with asked(tmp_path / str(attempt)) as (server, postgres, asking):
            begun = time.monotonic()
            begin_to_stop(server)
            postgres.resume()
            statuses = [one.result() for one in asking]
            in_time = time.monotonic() - begun < REQUESTS_TIMEOUT
            assert statuses == [200, 200] or not in_time
            assert server.process is not None
            assert server.process.wait(60) == 0  # a second signal would cut its end short
        if in_time:  # else the machine is too busy to tell
            return
    pytest.fail(f"no answer came within {REQUESTS_TIMEOUT} s")


@pytest.mark.slow
def test_requests_that_nothing_answers_do_not_hold_the_end_up_and_are_no_error_of_the_program(
    tmp_path: Path,
) -> None:
    with asked(tmp_path) as (server, _, asking):
        assert server.stop() == 0
        assert all(one.result() in (0, 200, 503) for one in asking)
