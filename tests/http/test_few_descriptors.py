"""Few file descriptors and many connections of no use: who uses the server is served."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client
from tests.support.server_process import ROOT, ServerProcess
from tests.support.silence import half_a_head, own_address, silent_clients
from tests.support.waiting import until

FILES = 300
Start = Callable[..., ServerProcess]


@pytest.fixture
def few(start_server: Start) -> ServerProcess:
    """A server that may have few files open."""
    return start_server(open_files=FILES, expected=("connections_shed", "accept_failed"))


def stream_path(server: ServerProcess) -> str:
    return f"/api/v1/sse/dashboard?token={server.stream_token('dashboard')}"


def publish(server: ServerProcess, mark: str) -> None:
    with server.publisher() as publisher:
        answer = publisher.post("/api/v1/sse/dashboard", json={"event": "e", "data": {"mark": mark}})
    assert answer.status_code == 201, answer.text


def assert_serves(server: ServerProcess, streams: list[Client]) -> None:
    """Check that open streams, probes, publishers, pages and new streams are served."""
    for path in ("/healthz", "/readyz", "/", "/static/main.js", "/openapi.json", "/metrics"):
        assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 200, path
    new = Client(server.port, stream_path(server))
    try:
        new.read_until("event: connected")
        mark = f"mark-{time.monotonic_ns()}"
        publish(server, mark)
        for stream in (*streams, new):
            stream.read_until(mark)
    finally:
        new.socket.close()


def descriptors(server: ServerProcess) -> int:
    assert server.process is not None
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def warnings(server: ServerProcess) -> list[dict[str, object]]:
    return [line for line in server.log_lines() if line["level"] not in ("debug", "info")]


def half_a_body(number: int) -> bytes:
    """Return the beginning of a request that needs no token, or does and has none."""
    path = b"/api/v1/auth/login" if number % 2 else b"/api/v1/sse/dashboard"
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{" % path


@pytest.mark.slow
@pytest.mark.parametrize("address", [lambda number: "127.0.0.1", own_address], ids=["one address", "many"])
@pytest.mark.parametrize("sent", [half_a_head, half_a_body])
def test_connections_that_send_nothing_or_half_a_request_keep_nobody_out(
    few: ServerProcess, address: Callable[[int], str], sent: Callable[[int], bytes]
) -> None:
    stream = Client(few.port, stream_path(few))
    try:
        stream.read_until("event: connected")
        with silent_clients(few.port, 400, address=address, sent=sent):
            assert_serves(few, [stream])
            assert descriptors(few) < FILES
            assert few.stop() == 0
    finally:
        stream.socket.close()
    lines = warnings(few)
    assert [line["event"] for line in lines] == ["connections_shed"], lines
    assert lines[0]["detail"] == ("silent" if sent is half_a_head else "slow_body")


@pytest.mark.ci
def test_before_the_first_stream_nothing_is_opened_that_could_be_missing(few: ServerProcess) -> None:
    """The limit is lowered to what is open: what a stream, a page and a publish need has to be there."""
    with few.publisher() as publisher, ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", few.port), 30))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        assert publisher.get("/healthz").status_code == 200
        wait_until_idle(few)
        assert few.process is not None
        path = stream_path(few)
        resource.prlimit(few.process.pid, resource.RLIMIT_NOFILE, (3, FILES))
        for page in ("/", "/admin", "/static/main.js", "/openapi.json", "/api/v1/sse/status", "/metrics"):
            answer = publisher.get(page)
            assert answer.status_code == 200, (page, answer.text)
        answer = publisher.post("/api/v1/sse/dashboard", json={"event": "e", "data": {}})
        assert answer.status_code == 201, answer.text
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        received = b""
        while b"event: connected" not in received:
            piece = client.recv(65_536)
            assert piece, received
            received += piece
        assert received.startswith(b"HTTP/1.1 200")
        resource.prlimit(few.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        assert few.stop() == 0
    assert warnings(few) == []


def processor_time(pid: int) -> float:
    """Return how many seconds of a processor a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(server: ServerProcess) -> None:
    """Wait until the server has done what it does after its start: it loads modules, and looks at the keys once."""
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task")

    def is_idle() -> bool:
        for _ in range(40):  # longer than between two looks
            if any(_state(task) != "S" for task in tasks.iterdir()):
                return False
            time.sleep(0.02)
        return True

    until(is_idle, "the server is idle")


def _state(task: Path) -> str:
    """Return what a thread does: R where it runs or waits for a processor, D for a disk, S for something to do."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_descriptors_that_run_out_all_the_same_are_taken_from_silent_clients(start_server: Start) -> None:
    """The limit is lowered below what the server has reckoned with, as no operator does: accept(2) fails."""
    server = start_server(open_files=FILES, expected=("connections_shed", "accept_failed"))
    stream = Client(server.port, stream_path(server))
    assert server.process is not None
    try:
        stream.read_until("event: connected")
        wait_until_idle(server)  # it imports what it did not need for its start
        with silent_clients(server.port, 100):
            until(lambda: descriptors(server) > 100, "the clients are connected")
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (descriptors(server), FILES))
            before = server.log_path.stat().st_size
            for _ in range(50):
                assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
            publish(server, "still there")
            stream.read_until("still there")
            assert server.log_path.stat().st_size - before < 20_000
            assert server.stop() == 0
    finally:
        stream.socket.close()
    assert sorted(str(line["event"]) for line in warnings(server)) == ["accept_failed", "connections_shed"]


@pytest.mark.slow
def test_without_any_descriptor_accepting_rests_and_is_taken_up_again(start_server: Start) -> None:
    server = start_server(open_files=FILES, expected=("accept_failed",))
    assert server.process is not None
    pid = server.process.pid
    wait_until_idle(server)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, FILES))
    with socket.create_connection(("127.0.0.1", server.port), 30) as waiting:
        waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        before = processor_time(pid)
        time.sleep(2)
        assert processor_time(pid) - before < 0.5
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")
    assert [line["event"] for line in warnings(server)] == ["accept_failed"]


@pytest.mark.slow
def test_keys_that_come_while_no_descriptor_is_left_are_read_later(start_server: Start) -> None:
    server = start_server(open_files=FILES, expected=("keys_unread",))
    assert server.process is not None
    wait_until_idle(server)
    with server.publisher() as publisher:
        assert publisher.get("/api/v1/auth/me").status_code == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, FILES))
        server.command("keys", "rotate")
        until(lambda: [line["event"] for line in warnings(server)] == ["keys_unread"], "it is told")
        assert publisher.get("/api/v1/auth/me").status_code == 200
        with server.publisher() as later:
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
            until(lambda: later.get("/api/v1/auth/me").status_code == 200, "the new key is known")
    assert len(warnings(server)) == 1


@pytest.mark.slow
def test_an_upgrade_and_an_end_go_well_among_silent_clients(few: ServerProcess) -> None:
    stream = Client(few.port, stream_path(few))
    assert few.process is not None
    try:
        stream.read_until("event: connected")
        with silent_clients(few.port, 400, address=own_address):
            few.process.send_signal(signal.SIGUSR2)
            until(lambda: few.process is not None and few.process.poll() is not None, "the successor serves")
            successor = next(line["pid"] for line in few.log_lines()[::-1] if line["event"] == "listening")
            try:
                assert_serves(few, [stream])
                assert stream.ended is None
            finally:
                os.kill(int(str(successor)), signal.SIGTERM)
            until(lambda: not Path(f"/proc/{successor}").exists(), "the successor has ended")
            assert few.log_lines()[-1]["event"] == "stopped"
    finally:
        stream.socket.close()
    assert {line["event"] for line in warnings(few)} == {"connections_shed"}


@pytest.mark.parametrize(
    ("workers", "files"),
    [
        pytest.param(1, 16, marks=pytest.mark.slow),
        pytest.param(1, 20, marks=pytest.mark.slow),
        (2, 16),
        pytest.param(2, 20, marks=pytest.mark.slow),
    ],
)
def test_a_start_without_enough_descriptors_is_refused_with_one_line(
    tmp_path: Path, workers: int, files: int
) -> None:
    serve = f"serve --workers {workers} --port 0 --state-dir {tmp_path}/state"
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n {files}; exec {sys.executable} main.py {serve}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    refusals = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(refusals) == 1, done.stderr
    assert refusals[0].startswith("sse-app: cannot "), done.stderr
    assert "Traceback" not in done.stderr
