"""A restart that no client notices, under a real systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import require
from tests.fleet import Client, Fleet, SteadyPublisher, assert_all_received, wait_until
from tests.server_process import ROOT
from tests.systemd_manager import Manager

STREAMS = 1000


class House:
    """A manager with the server as its unit, clients, and tokens for them."""

    def __init__(self, manager: Manager, port: int) -> None:
        self.manager = manager
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.fleet = Fleet(port)
        self.expected: set[str] = set()
        """Events in the server's log that a test brings about."""

    def command(self, *arguments: str) -> str:
        """Run an sse-app command on the service's state directory, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "main.py", *arguments, "--state-dir", str(self.manager.state_dir)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")},
            capture_output=True,
            text=True,
            check=True,
            timeout=70,
        )
        return done.stdout.strip()

    def stream_path(self, *flags: str, client_id: str = "c") -> str:
        """Return the path of a stream with a token of its own."""
        token = self.command("token", "--kind", "stream", "--subscribe", "dashboard", "--ttl", "600", *flags)
        return f"/api/v1/sse/dashboard?token={token}&client_id={client_id}"

    def publisher(self, pause: float = 0.01) -> SteadyPublisher:
        """Publish all the while."""
        return SteadyPublisher(self.url, self.command("token", "--publish", "**"), pause=pause)

    def restart(self) -> None:
        """Restart the service as an operator would."""
        before = self.manager.main_pid
        self.manager.systemctl("restart", "sse-app.service")
        assert self.manager.main_pid != before
        assert not Path(f"/proc/{before}").exists()

    def log_events(self) -> list[str]:
        """Return the events in the server's log."""
        return [json.loads(line)["event"] for line in self.manager.server_log.read_text().splitlines()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def manager() -> Iterator[Manager]:
    require("systemctl")
    manager = Manager()
    try:
        manager.start()
        yield manager
    finally:
        manager.stop()


def _house(manager: Manager, **settings: object) -> Iterator[House]:
    port = _free_port()
    limits = {"LIMITS__STREAMS_PER_USER": 20_000, "LIMITS__STREAMS_PER_ADDRESS": 20_000}
    manager.install(port, **(limits | settings))
    house = House(manager, port)
    try:
        yield house
        levels = [json.loads(line) for line in manager.server_log.read_text().splitlines()]
        surprising = [line for line in levels if line["level"] not in ("debug", "info")]
        assert {line["event"] for line in surprising} == house.expected, surprising
    finally:
        house.fleet.close()


@pytest.fixture
def house(manager: Manager) -> Iterator[House]:
    yield from _house(manager)


@pytest.fixture
def house_that_pings(manager: Manager) -> Iterator[House]:
    yield from _house(manager, KEEPALIVE__PING_INTERVAL=1)


def test_a_thousand_streams_go_on_over_three_restarts_under_publishing(house: House) -> None:
    clients = house.fleet.open(STREAMS, house.stream_path())
    publisher = house.publisher()
    for _ in range(3):
        house.restart()
        seen = len(publisher.ids)
        wait_until(lambda seen=seen: len(publisher.ids) > seen + 10)  # type: ignore[misc]
    ids = publisher.stop()
    assert not house.fleet.ended
    assert_all_received(clients, ids)
    assert house.log_events().count("adopted") == 3


def test_a_warm_successor_takes_over_without_a_closed_stream(house: House) -> None:
    clients = house.fleet.open(STREAMS, house.stream_path())
    publisher = house.publisher()
    for _ in range(2):
        before = house.manager.main_pid
        house.command("upgrade")
        wait_until(lambda before=before: house.manager.main_pid not in (0, before))  # type: ignore[misc]
        seen = len(publisher.ids)
        wait_until(lambda seen=seen: len(publisher.ids) > seen + 10)  # type: ignore[misc]
    house.restart()  # the store has come along
    ids = publisher.stop()
    assert not house.fleet.ended
    assert not publisher.retried
    assert_all_received(clients, ids)
    assert house.manager.show("ActiveState") == "active"


def test_clients_with_unsent_bytes_lose_nothing(house_that_pings: House) -> None:
    house = house_that_pings
    slow = Client(house.port, house.stream_path(client_id="slow"), receive_buffer=4096)
    token = house.command("token", "--publish", "**")
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as http:

        def publish(count: int) -> list[str]:
            answers = [
                http.post(
                    f"{house.url}/api/v1/sse/dashboard", json={"event": "e", "data": {"pad": "x" * 10_000}}
                )
                for _ in range(count)
            ]
            return [answer.json()["id"] for answer in answers]

        ids = publish(60)  # 600 KB: more than the kernel takes for a client that does not read
        house.restart()
        ids += publish(5)
    while not slow.ended and ids[-1].encode() not in slow.received[-20_000:]:
        slow.read()
    assert slow.ended is None
    assert slow.ids() == ids
    slow.socket.close()


def test_streams_whose_token_expires_or_is_revoked_in_the_pause_end(house: House) -> None:
    (expiring,) = house.fleet.open(1, house.stream_path("--ttl", "3", client_id="expiring"))
    (revoked,) = house.fleet.open(1, house.stream_path("--subject", "eve", client_id="revoked"))
    (staying,) = house.fleet.open(1, house.stream_path("--subject", "ann", client_id="staying"))
    house.manager.systemctl("kill", "--signal=STOP", "--kill-who=main", "sse-app.service")
    house.command("revoke", "--subject", "eve")
    time.sleep(3)  # until the first token has expired, which nobody can end while the process stands still
    house.manager.systemctl("kill", "--signal=CONT", "--kill-who=main", "sse-app.service")
    house.restart()
    wait_until(lambda: len(house.fleet.ended) == 2)
    assert b'"reason":"token_expired"' in expiring.body()
    assert b'"reason":"revoked"' in revoked.body()
    assert staying.ended is None


def test_a_crash_while_adopting_twice_loses_no_stream(house: House, tmp_path: Path) -> None:
    clients = house.fleet.open(50, house.stream_path())
    crashes = tmp_path / "crashes"
    crashes.write_text("2")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, sys\n"
        f"counter = pathlib.Path({str(crashes)!r})\n"
        "left = int(counter.read_text())\n"
        "if left and 'serve' in sys.orig_argv:\n"
        "    counter.write_text(str(left - 1))\n"
        "    def crash(name, *arguments):\n"
        "        if name == 'sse_app.adopted':\n"
        "            os.kill(os.getpid(), 9)\n"
        "    sys.addaudithook(crash)\n"
    )
    drop_in = house.manager.directory / "config/systemd/user/sse-app.service.d"
    (drop_in / "crash.conf").write_text(f"[Service]\nEnvironment=PYTHONPATH={tmp_path}\n")
    house.manager.systemctl("daemon-reload")
    house.manager.systemctl("restart", "sse-app.service", check=False)
    wait_until(lambda: house.manager.show("ActiveState") == "active")
    assert crashes.read_text() == "0"
    publisher = house.publisher()
    wait_until(lambda: len(publisher.ids) > 5)
    assert_all_received(clients, publisher.stop())
    assert not house.fleet.ended


def test_after_kill_9_systemd_starts_it_again_and_clients_resume_by_id(house: House) -> None:
    clients = house.fleet.open(20, house.stream_path())
    publisher = house.publisher()
    wait_until(lambda: len(publisher.ids) > 20)
    os.kill(house.manager.main_pid, signal.SIGKILL)
    wait_until(lambda: len(house.fleet.ended) == len(clients))
    seen = len(publisher.ids)
    wait_until(lambda: len(publisher.ids) > seen + 5)
    ids = publisher.stop()
    path = house.stream_path()
    for client in clients[:5]:
        had = client.ids()
        again = house.fleet.open(1, f"{path}&last_event_id={had[-1]}")[0]
        wait_until(lambda again=again: ids[-1].encode() in again.received)  # type: ignore[misc]
        assert had + again.ids() == ids


def test_a_hung_event_loop_is_killed_by_the_watchdog_and_comes_back(house: House) -> None:
    drop_in = house.manager.directory / "config/systemd/user/sse-app.service.d"
    (drop_in / "watchdog.conf").write_text("[Service]\nWatchdogSec=1\n")
    house.manager.systemctl("daemon-reload")
    house.restart()
    before = house.manager.main_pid
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: house.manager.main_pid not in (0, before))
    wait_until(lambda: house.manager.show("ActiveState") == "active")
    assert house.manager.show("NRestarts") == "1"


def test_stop_drains_and_ends_within_its_deadline(house: House) -> None:
    clients = house.fleet.open(STREAMS, house.stream_path())
    house.manager.systemctl("stop", "sse-app.service")
    wait_until(lambda: len(house.fleet.ended) == len(clients))
    assert house.fleet.ended == ["end of file"] * len(clients)
    retries = []
    for client in clients:
        closing = client.body().partition(b"event: closing\n")[2]
        answer = json.loads(closing.partition(b"data: ")[2].partition(b"\n")[0])
        assert answer["reason"] == "shutdown"
        retries.append(answer["retry"])
        assert client.received.endswith(b"0\r\n\r\n")
    assert min(retries) >= 1500
    assert max(retries) <= 4500
    assert len(set(retries)) > len(clients) / 3
    assert "handed_over" not in house.log_events()


def test_a_connection_made_in_the_pause_is_answered_not_refused(house: House) -> None:
    statuses = []
    restarting = subprocess.Popen(
        ["systemctl", "--user", "restart", "sse-app.service"], env=house.manager.environment
    )
    while restarting.poll() is None:
        statuses.append(httpx.get(f"{house.url}/healthz", timeout=30).status_code)
    assert set(statuses) == {200}


def test_idle_connections_and_half_sent_requests_go_on(house: House) -> None:
    with (
        socket.create_connection(("127.0.0.1", house.port)) as idle,
        socket.create_connection(("127.0.0.1", house.port)) as half,
    ):
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"ok"' in idle.recv(4096)
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Half: ")
        wait_until(lambda: httpx.get(f"{house.url}/healthz").status_code == 200)
        house.restart()
        half.sendall(b"sent\r\n\r\n")
        assert b'"ok"' in half.recv(4096)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"ok"' in idle.recv(4096)


def test_reload_brings_a_new_channel_and_a_bad_file_changes_nothing(house: House) -> None:
    clients = house.fleet.open(20, house.stream_path())
    config = house.manager.directory / "sse_app.toml"
    good = config.read_text()
    token = house.command("token", "--publish", "**")

    def publish() -> int:
        return httpx.post(
            f"{house.url}/api/v1/sse/fresh",
            json={"event": "e", "data": {}},
            headers={"Authorization": f"Bearer {token}"},
        ).status_code

    assert publish() == 404
    for bad in ("port = 0\nchannels = 5\n", "no = 1\n", "not toml"):
        config.write_text(bad)
        refused = house.log_events().count("reload_refused")
        house.manager.systemctl("reload", "sse-app.service")
        wait_until(lambda refused=refused: house.log_events().count("reload_refused") > refused)  # type: ignore[misc]
        assert publish() == 404
    house.expected = {"reload_refused"}
    config.write_text(good + 'channels = ["dashboard", "fresh"]\n')
    house.manager.systemctl("reload", "sse-app.service")
    wait_until(lambda: "reloaded" in house.log_events())
    assert publish() == 201
    assert not house.fleet.ended
    assert all(b"closing" not in client.body() for client in clients)


def test_the_units_verify_and_are_well_hardened(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", "systemd", "install", "--unit-dir", str(tmp_path)]
    subprocess.run([*command, "--run-as", "nobody"], cwd=ROOT, check=True, capture_output=True)
    units = [str(tmp_path / name) for name in ("sse-app.socket", "sse-app.service")]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", units[1]],
        capture_output=True,
        text=True,
        check=True,
    )
    exposure = float(judged.stdout.splitlines()[-1].partition("service: ")[2].split()[0])
    assert exposure <= 1.0
