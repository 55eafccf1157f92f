"""What reads the log may stand still, go away or be full: the server serves on, and says what is missing."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sse_app.storage.state_dir import StateDirectory
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

PIPE_BYTES = 65_536
"""What a pipe takes by default until somebody reads (pipe(7))."""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that is not started yet; its log is not checked."""
    server = ServerProcess(state_dir=tmp_path / "state")
    yield server
    if server.process is not None:
        server.kill()
        if (successor := StateDirectory(server.state_dir).holder()) is not None:
            os.kill(successor, signal.SIGKILL)


def dropped(server: ServerProcess) -> int:
    found = re.search(
        r"^sse_app_log_lines_dropped_total (\S+)", httpx.get(f"{server.url}/metrics").text, re.M
    )
    assert found is not None
    return int(float(found[1]))


def log_more_than_a_pipe_takes(server: ServerProcess) -> None:
    """Have the server log more lines than fit into a pipe that nothing is read from."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(2 * PIPE_BYTES // 200):  # a line has some 200 bytes
            assert http.get("/healthz").status_code == 200


def fill(writing: int) -> None:
    """Write to a pipe until it takes no more."""
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x\n" * 512)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)


@pytest.mark.slow
def test_a_server_whose_log_is_not_read_serves_on_and_ends_on_sigterm(silent: ServerProcess) -> None:
    reading, writing = os.pipe()
    silent.start(stderr=writing)
    os.close(writing)
    assert silent.process is not None
    log_more_than_a_pipe_takes(silent)
    assert httpx.get(f"{silent.url}/readyz", timeout=60).status_code == 200
    silent.process.send_signal(signal.SIGTERM)
    assert silent.process.wait(timeout=60) == 0
    # What the pipe took is whole lines but for the last, as the reader finds when it looks at last.
    lines = b"".join(iter(lambda: os.read(reading, PIPE_BYTES), b"")).split(b"\n")
    os.close(reading)
    assert [json.loads(line)["event"] for line in lines[:-1]].count("request") > 100


def test_a_server_starts_and_upgrades_where_the_log_takes_nothing_from_the_beginning(
    silent: ServerProcess,
) -> None:
    reading, writing = os.pipe()
    fill(writing)
    silent.start(stderr=writing)
    os.close(writing)
    assert silent.process is not None
    silent.process.send_signal(signal.SIGUSR2)
    assert silent.process.wait(timeout=60) == 0
    until(lambda: httpx.get(f"{silent.url}/readyz").status_code == 200, "the successor serves")
    successor = StateDirectory(silent.state_dir).holder()
    assert successor is not None
    assert successor != silent.process.pid
    os.kill(successor, signal.SIGTERM)
    until(lambda: StateDirectory(silent.state_dir).holder() is None, "it ends")
    os.close(reading)


def test_lines_for_a_reader_that_is_gone_are_counted_and_end_nothing(silent: ServerProcess) -> None:
    reading, writing = os.pipe()
    silent.start(stderr=writing)
    os.close(writing)
    assert silent.process is not None
    os.close(reading)
    for _ in range(3):
        httpx.get(f"{silent.url}/healthz")
    until(lambda: dropped(silent) >= 3, "the lines are counted as dropped")
    assert silent.stop() == 0


def test_a_log_on_a_full_disk_ends_nothing(silent: ServerProcess) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    silent.start(stderr=full)
    os.close(full)
    for _ in range(3):
        httpx.get(f"{silent.url}/healthz")
    until(lambda: dropped(silent) >= 3, "the lines are counted as dropped")
    assert silent.stop() == 0


def test_without_a_stalled_reader_the_last_lines_are_there_when_the_process_has_ended(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server()
    with httpx.Client(base_url=server.url) as http:
        for _ in range(50):
            http.get("/healthz")
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 10
    events = [line["event"] for line in server.log_lines()]
    assert events[-1] == "stopped"
    assert events.count("request") >= 50
