"""The server as a unit: what systemd sees of it when it crashes, hangs, stops and reloads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sse_app.core.private_apis import queued_job
from tests.support.server_process import ROOT
from tests.support.service import Service
from tests.support.systemd_manager import Manager
from tests.support.waiting import until

STREAMS = 1000


@pytest.mark.slow
def test_after_kill_9_systemd_starts_it_again_and_clients_resume_by_id(service: Service) -> None:
    clients = service.fleet.open(20, service.stream_path())
    publisher = service.publisher()
    until(lambda: len(publisher.ids) > 20, "more events are acknowledged")
    os.kill(service.manager.main_pid, signal.SIGKILL)
    until(lambda: len(service.fleet.ended) == len(clients), "the streams have ended")
    seen = len(publisher.ids)
    until(lambda: len(publisher.ids) > seen + 5, "more events are acknowledged")
    ids = publisher.stop()
    path = service.stream_path()
    for client in clients[:5]:
        had = client.ids()
        again = service.fleet.open(1, f"{path}&last_event_id={had[-1]}")[0]
        until(lambda again=again: ids[-1].encode() in again.received, "the event has come")  # type: ignore[misc]
        assert had + again.ids() == ids


@pytest.mark.slow
def test_a_hung_event_loop_is_killed_by_the_watchdog_and_comes_back(service: Service) -> None:
    service.configure("watchdog", "WatchdogSec=3")
    service.inject("import signal\ndef hang(*_):\n    while True: pass\nsignal.signal(signal.SIGRTMIN, hang)")
    service.restart()
    service.fleet.open(5, service.stream_path())
    before = service.manager.main_pid
    os.kill(before, signal.SIGRTMIN)  # from now on the loop does not turn; the other threads do
    until(lambda: service.manager.main_pid not in (0, before), "another process serves")
    until(lambda: service.manager.show("ActiveState") == "active", "the service is active")
    assert service.manager.show("NRestarts") == "1"
    service.fleet.open(5, service.stream_path())


@pytest.mark.slow
def test_stop_drains_and_ends_within_its_deadline(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    service.manager.systemctl("stop", "sse-app.service")
    until(lambda: len(service.fleet.ended) == len(clients), "the streams have ended")
    assert service.fleet.ended == ["end of file"] * len(clients)
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
    assert not service.logged("handed_over")


@pytest.mark.slow
def test_while_it_drains_it_is_not_ready_and_listens_no_more(service: Service) -> None:
    (staying,) = service.fleet.open(1, service.stream_path())
    service.configure("drain", "Environment=SSE_APP_STREAM__DRAIN_TIME=5")
    service.restart()
    clients = service.fleet.open(500, service.stream_path())
    with httpx.Client(base_url=service.url, timeout=30) as http:
        assert http.get("/readyz").status_code == 200
        stopping = subprocess.Popen(
            ["systemctl", "--user", "stop", "sse-app.socket", "sse-app.service"],
            env=service.manager.environment,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: http.get("/readyz").status_code == 503, "the server says that it is not ready")
        assert http.get("/readyz").json()["error"]["code"] == "draining"
        assert len(service.fleet.ended) < len(clients)
        until(lambda: _refused(service.port), "connections are refused")
    assert stopping.wait(60) == 0
    until(lambda: len(service.fleet.ended) == len(clients) + 1, "the streams have ended")
    assert b'"reason":"shutdown"' in staying.body()


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_systemctl_lists_the_jobs_of_units_in_the_columns_that_are_read(manager: Manager) -> None:
    units = manager.directory / "config/systemd/user"
    units.mkdir(parents=True, exist_ok=True)
    service = "[Service]\nType=oneshot\nExecStart=true\nExecStop=sleep 60\nRemainAfterExit=yes\n"
    (units / "slow.service").write_text(service)
    manager.systemctl("daemon-reload")
    listing = ("list-jobs", "--no-legend", "--plain", "--full")
    manager.systemctl("start", "slow.service")
    assert queued_job(manager.systemctl(*listing).stdout, "slow.service") is None
    for verb in ("restart", "stop"):
        manager.systemctl(verb, "--no-block", "slow.service")
        told = manager.systemctl(*listing).stdout
        assert queued_job(told, "slow.service") == verb, (
            f"systemctl list-jobs has other columns now: {told!r}"
        )
    manager.systemctl("kill", "--signal=KILL", "slow.service", check=False)


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.long)])
def test_a_second_signal_ends_it_at_once(service: Service, name: str) -> None:
    service.configure(
        "drain", "Environment=SSE_APP_STREAM__DRAIN_TIME=60\nRestart=no\nUnsetEnvironment=NOTIFY_SOCKET"
    )
    service.configure("type", "Type=simple\nWatchdogSec=0")
    service.manager.systemctl("stop", "sse-app.service")  # that empties the store: it cannot be handed over
    service.manager.systemctl("start", "sse-app.service")
    before = {event: len(service.logged(event)) for event in ("stopping", "stopped")}
    service.fleet.open(STREAMS * 3, service.stream_path())
    pid = service.manager.main_pid
    number = getattr(signal, name)
    os.kill(pid, number)
    service.wait_for_log("stopping", before["stopping"] + 1)
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, number)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the process has gone", seconds=3)
    assert len(service.logged("stopped")) == before["stopped"]


def test_reload_brings_a_new_channel_and_a_bad_file_changes_nothing(service: Service) -> None:
    clients = service.fleet.open(20, service.stream_path())
    config = service.manager.config
    good = config.read_text()
    token = service.command("token", "--publish", "**")

    def publish() -> int:
        return httpx.post(
            f"{service.url}/api/v1/sse/fresh",
            json={"event": "e", "data": {}},
            headers={"Authorization": f"Bearer {token}"},
        ).status_code

    assert publish() == 404
    for bad in ("port = 0\nchannels = 5\n", "no = 1\n", "not toml"):
        config.write_text(bad)
        refused = len(service.logged("reload_refused"))
        service.manager.systemctl("reload", "sse-app.service")
        service.wait_for_log("reload_refused", refused + 1)
        assert publish() == 404
    service.expected = {"reload_refused"}
    config.write_text(good + 'channels = ["dashboard", "fresh"]\n')
    service.manager.systemctl("reload", "sse-app.service")
    until(lambda: bool(service.logged("reloaded")), "the reload is logged")
    assert publish() == 201
    assert not service.fleet.ended
    assert all(b"closing" not in client.body() for client in clients)


@pytest.mark.slow
def test_reload_puts_every_live_setting_in_force(service: Service) -> None:
    clients = service.fleet.open(20, service.stream_path())
    bearer = {"Authorization": f"Bearer {service.access_token()}"}
    origin = {"Origin": "http://localhost:3020"}
    keys = service.manager.directory / "keys"
    keys.mkdir(mode=0o700)
    (keys / "other.hs256").write_bytes(b"k" * 32)
    (keys / "other.hs256").chmod(0o600)

    def reload(text: str) -> None:
        count = len(service.logged("reloaded"))
        service.manager.config.write_text(f"port = {service.port}\n{text}")
        service.manager.systemctl("reload", "sse-app.service")
        service.wait_for_log("reloaded", count + 1)

    def get(path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{service.url}{path}", headers=headers, timeout=30)

    def publish(size: int = 0) -> int:
        event = {"event": "e", "data": {"pad": "x" * size}}
        return httpx.post(f"{service.url}/api/v1/sse/dashboard", json=event, headers=bearer).status_code

    assert "access-control-allow-origin" not in get("/api/v1/sse/status", **origin).headers
    reload('cors_origins = ["http://localhost:3020"]')
    assert get("/api/v1/sse/status", **origin).headers["access-control-allow-origin"] == origin["Origin"]
    reload("[limits]\nbody_bytes = 500")
    assert publish(1000) == 413
    reload("[limits]\nchannels_per_stream = 1")
    assert get("/api/v1/sse/dashboard,alerts?token=x").status_code == 400
    reload("[limits]\npublish_rate = 1")
    assert 429 in [publish() for _ in range(20)]
    reload('[metrics]\nallow = ["10.0.0.0/8"]')
    assert get("/metrics").status_code == 403
    reload('[log]\nlevel = "debug"')
    get("/healthz")
    until(lambda: '"level":"debug"' in service.manager.server_log.read_text(), "the log level is in force")
    reload("[stream]\nretry = 77777")
    (told,) = service.fleet.open(1, service.stream_path())
    retry = int(told.body().partition(b"retry: ")[2].partition(b"\n")[0])
    assert 77777 // 2 <= retry <= 77777 * 1.5
    reload("[keepalive]\nping_interval = 5")
    assert service.logged("reloaded")[-1]["needs_restart"] == "keepalive"
    for _ in range(2):  # the second one finds what the first one has left as it was
        reload('demo = true\n[auth]\nissuer = "other"\naudience = "other"\n[log]\nformat = "console"')
        assert service.logged("reloaded")[-1]["needs_restart"] == "demo,auth.issuer,auth.audience,log.format"
    assert publish() == 201
    reload(f'[auth]\nkeys_dir = "{keys}"')
    assert publish() == 401
    assert not service.fleet.ended
    assert all(b"closing" not in client.body() for client in clients)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_the_units_verify_and_are_well_hardened(tmp_path: Path, workers: str) -> None:
    command = [sys.executable, "main.py", "systemd", "install", "--unit-dir", str(tmp_path)]
    subprocess.run(
        [*command, "--run-as", "daemon", "--workers", workers], cwd=ROOT, check=True, capture_output=True
    )
    units = sorted(map(str, tmp_path.iterdir()))
    verified = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", *(unit for unit in units if ".service" in unit)],
        capture_output=True,
        text=True,
        check=True,
    )
    exposure = float(judged.stdout.splitlines()[-1].partition("service: ")[2].split()[0])
    assert exposure <= 1.0
