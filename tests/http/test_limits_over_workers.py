"""Limits hold over all workers of a state directory together: on streams, on guessed passwords, on publishing."""

from __future__ import annotations

import http.client
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.streams.elsewhere import HEARTBEAT
from tests.support.waiting import until
from tests.support.worker_processes import WorkerProcess, worker_processes

WORKERS = 4
LIMIT = 5

_numbers = itertools.count()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., list[WorkerProcess]]]:
    """A function that starts four workers; its arguments are settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            worker_processes(WORKERS, tmp_path / "state", **settings)
        )


class Streams:
    """Opens streams with workers, and closes them."""

    def __init__(self, workers: list[WorkerProcess]) -> None:
        self.workers = workers
        self.subject = f"user{next(_numbers)}"
        self.open: list[tuple[WorkerProcess, http.client.HTTPResponse]] = []
        self._closed_at = -math.inf

    def try_to_open(self, worker: WorkerProcess, subject: str = "", address: str = "10.0.0.1") -> int:
        """Open a stream if that is allowed, and return the status; 0 where it ends at once with ``closing``."""
        token = worker.stream_token("dashboard", subject=subject or self.subject)
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=60)
        path = f"/api/v1/sse/dashboard?token={token}"
        connection.request("GET", path, headers={"X-Forwarded-For": address})
        response = connection.getresponse()
        connection.close()  # the response keeps the socket
        if response.status == 200 and b"connected" in b"".join(response.readline() for _ in range(4)):
            self.open.append((worker, response))
            return 200
        status = response.status
        response.close()
        return 0 if status == 200 else status

    def close(self, worker: WorkerProcess | None = None) -> None:
        """Close the streams with a worker, or all."""
        for one in [one for one in self.open if worker in (one[0], None)]:
            self.open.remove(one)
            one[1].close()

    def close_one(self) -> None:
        """Close any."""
        self.open.pop()[1].close()
        self._closed_at = time.monotonic()

    def refused_everywhere(self) -> bool:
        """Return whether no worker opens any further stream; what one does open is closed again.

        A stream that has just been closed may still count with some.
        """
        for worker in self.workers:
            if self.try_to_open(worker) == 200:
                self.close_one()
                return False
        return time.monotonic() > self._closed_at + 2 * HEARTBEAT


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerProcess]]:
    """Four workers that allow five streams a user."""
    state_dir = tmp_path_factory.mktemp("limits") / "state"
    settings: dict[str, Any] = {"LIMITS__STREAMS_PER_USER": LIMIT, "TRUSTED_PROXIES": ["127.0.0.0/8"]}
    with worker_processes(WORKERS, state_dir, **settings, expected=("worker_silent",)) as workers:
        yield workers


@pytest.fixture
def streams(workers: list[WorkerProcess]) -> Iterator[Streams]:
    """What opens streams with them, of a user of its own."""
    found = Streams(workers)
    yield found
    found.close()


def test_a_user_has_no_more_streams_over_all_workers_than_on_one(streams: Streams) -> None:
    for number in range(LIMIT):
        assert streams.try_to_open(streams.workers[number % WORKERS]) == 200
    until(streams.refused_everywhere, "the workers know of each other's streams")
    for worker in streams.workers * 10:
        assert streams.try_to_open(worker) == 429
    for worker in streams.workers:
        assert streams.try_to_open(worker, subject="bob") == 200
    streams.close()


@pytest.mark.slow
def test_attempts_at_once_with_all_workers_exceed_a_limit_for_one_heartbeat_at_most(streams: Streams) -> None:
    with ThreadPoolExecutor(40) as threads:
        statuses = list(threads.map(streams.try_to_open, streams.workers * 10))
    assert LIMIT <= statuses.count(200) <= LIMIT * WORKERS
    assert statuses.count(200) + statuses.count(429) == 40
    while len(streams.open) >= LIMIT:
        until(streams.refused_everywhere, "the workers know of each other's streams")
        streams.close_one()
    until(
        lambda: any(streams.try_to_open(worker) == 200 for worker in streams.workers),
        "one more may be opened",
    )
    assert len(streams.open) == LIMIT
    until(streams.refused_everywhere, "the workers know of each other's streams")


@pytest.mark.slow
def test_the_streams_of_a_worker_that_was_killed_count_no_more(streams: Streams) -> None:
    first, second, *_ = streams.workers
    for _ in range(LIMIT):
        assert streams.try_to_open(first) == 200
    until(streams.refused_everywhere, "the workers know of each other's streams")
    first.kill()
    streams.close(first)
    until(lambda: streams.try_to_open(second) == 200, "the share is free again")
    first.start()
    for _ in range(LIMIT - 1):
        assert streams.try_to_open(first) == 200
    until(streams.refused_everywhere, "a worker that has just begun knows of the streams of the others")


@pytest.mark.slow
def test_the_streams_of_a_worker_that_hands_over_are_counted_once_all_the_while(streams: Streams) -> None:
    first, second, *_ = streams.workers
    for worker in (first, first, first, second, second):
        assert streams.try_to_open(worker) == 200
    until(streams.refused_everywhere, "the workers know of each other's streams")
    for worker in (first, second, first):
        worker.upgrade()
        assert streams.try_to_open(streams.workers[3]) == 429  # while its successor has not even told
    until(streams.refused_everywhere, "the successors know of the others' streams")
    streams.close_one()
    until(
        lambda: any(streams.try_to_open(worker) == 200 for worker in streams.workers),
        "one more may be opened",
    )
    until(streams.refused_everywhere, "the workers know of each other's streams")
    assert len(streams.open) == LIMIT


@pytest.mark.ci
def test_a_worker_that_stands_still_counts_no_more_and_again_when_it_goes_on(streams: Streams) -> None:
    first, second, *_ = streams.workers
    for _ in range(LIMIT):
        assert streams.try_to_open(first) == 200
    os.kill(first.pid, signal.SIGSTOP)
    until(lambda: streams.try_to_open(second) == 200, "it counts no more")
    os.kill(first.pid, signal.SIGCONT)
    until(streams.refused_everywhere, "its streams count again")


@pytest.mark.slow
def test_an_address_and_all_together_have_no_more_streams_over_all_workers(
    start: Callable[..., list[WorkerProcess]],
) -> None:
    workers = start(LIMITS__STREAMS_PER_ADDRESS=6, LIMITS__STREAMS=8, TRUSTED_PROXIES=["127.0.0.0/8"])
    streams = Streams(workers)

    def open_from(address: str, worker: WorkerProcess) -> int:
        return streams.try_to_open(worker, f"user{next(_numbers)}", address)

    def all_answer(status: int, address: str) -> bool:
        for worker in workers:
            if (found := open_from(address, worker)) == 200:
                streams.close_one()
            if found != status:
                return False
        return True

    for number in range(6):
        assert open_from("10.0.0.1", workers[number % WORKERS]) == 200
    until(lambda: all_answer(429, "10.0.0.1"), "the workers know of the address")
    for _ in range(2):
        until(lambda: open_from("10.0.0.2", workers[0]) == 200, "there may be more in all")
    until(lambda: all_answer(0, "10.0.0.2"), "there may be no more in all")
    streams.close()


@pytest.mark.slow
def test_wrong_passwords_with_any_worker_count_with_all(start: Callable[..., list[WorkerProcess]]) -> None:
    workers = start(expected=("login_refused",))
    workers[0].add_user("ann", "right password")

    def log_in(worker: WorkerProcess, password: str) -> int:
        return httpx.post(
            f"{worker.url}/api/v1/auth/login",
            json={"username": "ann", "password": password, "cookie": False},
            timeout=60,
        ).status_code

    statuses = [log_in(workers[number % WORKERS], "wrong password") for number in range(5)]
    assert statuses == [401] * 5
    until(
        lambda: [log_in(worker, "wrong password") for worker in workers] == [429] * WORKERS,
        "all of them know",
    )
    workers[2].kill()
    workers[2].start()
    # The wait may be over: then one more is checked, and the next has to wait, as after six wrong ones, not one.
    assert [log_in(workers[2], "wrong password") for _ in range(2)][1] == 429


@pytest.mark.long
def test_the_rate_at_which_a_token_may_publish_is_shared_out_to_the_workers(
    start: Callable[..., list[WorkerProcess]],
) -> None:
    workers = start(LIMITS__PUBLISH_RATE=20)
    token = workers[0].access_token()

    def publish(worker: WorkerProcess, count: int) -> int:
        return httpx.post(
            f"{worker.url}/api/v1/sse",
            json={"events": [{"channel": "dashboard", "event": "e", "data": {}}] * count},
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        ).status_code

    for worker in workers:
        assert publish(worker, 15) == 201  # a full bucket of 5 lets more pass, and delays what follows
        assert publish(worker, 1) == 429
