"""What operators rely on: start and stop, the state directory, health, status, metrics, logs."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.server_process import ROOT, ServerProcess, clean_environment, run_program

Start = Callable[..., ServerProcess]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program(*arguments, environment=clean_environment(**environment))


def test_a_server_ends_with_status_0_on_sigterm_and_says_so(server: ServerProcess) -> None:
    assert server.stop() == 0
    assert [line["event"] for line in server.log_lines()][-2:] == ["stopping", "stopped"]


def test_a_second_server_on_a_state_directory_is_refused_by_name(server: ServerProcess) -> None:
    done = run("serve", SSE_APP_STATE_DIR=str(server.state_dir), SSE_APP_PORT="0")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"sse-app: the state directory {server.state_dir} is in use by another server "
        f"(process {server.process.pid if server.process else 0})"
    ]


def test_the_state_directory_is_private_and_so_is_all_in_it(server: ServerProcess) -> None:
    server.command("user", "add", "ann", "--password-stdin", input="correct horse\n")
    with server.publisher() as client:
        client.post("/api/v1/sse/dashboard", json={"event": "e", "data": {}})
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in [server.state_dir, *server.state_dir.rglob("*")]
    }
    assert {path.name for path in modes} >= {
        "state",
        "accounts.db",
        "events.db",
        "events.db-wal",
        "lock",
        "keys",
    }
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_bad_setting_stops_the_start_with_one_line_that_names_it(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[keepalive]\nping_intervall = 3\n")
    for arguments, environment, name in (
        ((), {"SSE_APP_PORT": "eighty"}, "port"),
        ((), {"SSE_APP_LIMITS__STREAMS_PER_USER": "-1"}, "limits.streams_per_user"),
        ((), {"SSE_APP_CORS_ORIGINS": "http://a"}, "SSE_APP_CORS_ORIGINS"),
        ((), {"SSE_APP_COLOUR": "red"}, "SSE_APP_COLOUR"),
        (("--config", str(bad)), {}, "keepalive.ping_intervall"),
        (("--config", "/nowhere.toml"), {}, "/nowhere.toml"),
        (("--set", "history.size=0"), {}, "history.size"),
        (("--set", "nonsense"), {}, "nonsense"),
        (("--event-log", "redis://localhost"), {}, "event_log"),
    ):
        done = run("serve", "--state-dir", str(tmp_path / "s"), *arguments, **environment)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert name in done.stderr, done.stderr
        assert not (tmp_path / "s").exists()


def test_a_mistyped_flag_is_refused_with_the_one_that_was_meant() -> None:
    for words, meant in (
        (("serve", "--prot", "1"), "--port"),
        (("check-config", "--state-dri=x"), "--state-dir"),
        (("user", "add", "ann", "--subscribes", "a"), "--subscribe"),
    ):
        done = run(*words)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(f"(did you mean {meant}?)"), done.stderr
    done = run("check-config", "--set", "keepaliv.ping_interval=3")
    assert done.stderr == "sse-app: unknown setting: keepaliv (did you mean keepalive?)\n"


def test_it_serves_among_the_variables_of_kubernetes_and_says_once_what_it_passes_over(
    start_server: Start,
) -> None:
    server = start_server(
        SERVICE_HOST="10.96.0.12", PORT_8000_TCP="tcp://10.96.0.12:8000", SITE="sse.example.com"
    )
    (line,) = [line for line in server.log_lines() if line["event"] == "environment_passed_over"]
    assert line["variables"] == "SSE_APP_PORT_8000_TCP, SSE_APP_SERVICE_HOST, SSE_APP_SITE"
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_flags_override_the_environment_which_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("port = 1001\nhost = '127.0.0.2'\n[history]\nsize = 5\nage = 7\n")
    done = run(
        "check-config",
        "--port",
        "1003",
        "--set",
        "log.level=error",
        SSE_APP_CONFIG=str(file),
        SSE_APP_PORT="1002",
        SSE_APP_HISTORY__AGE="8",
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"settings file: {file}"
    for line in (
        "port = 1003",
        "host = '127.0.0.2'",
        "history.size = 5",
        "history.age = 8.0",
        "log.level = 'error'",
    ):
        assert line in lines


def test_the_settings_file_documents_every_setting_with_its_default() -> None:
    import tomllib

    from sse_app import Settings
    from sse_app.settings.model import plain

    text = (ROOT / "config/sse_app.toml").read_text()
    assert Settings(**tomllib.loads(text)) == Settings()
    written = tomllib.loads(text)
    for name, value in plain(Settings()).items():
        assert name in written
        if isinstance(value, dict):
            assert set(value) == set(written[name])


def test_a_port_in_use_stops_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), "--state-dir", str(tmp_path / "s"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"sse-app: cannot listen on 127.0.0.1:{port}: Address already in use (process {os.getpid()}, "
    )
    assert line.endswith("; another port: --port or SSE_APP_PORT")


def test_a_newer_database_is_not_opened(server: ServerProcess) -> None:
    import sqlite3

    server.stop()
    for name in ("events.db", "accounts.db"):
        with sqlite3.connect(server.state_dir / name) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            database.execute("PRAGMA user_version = 99")
        database.close()
        done = run("serve", "--port", "0", "--state-dir", str(server.state_dir))
        assert done.returncode == 1
        assert "schema version 99" in done.stderr
        with sqlite3.connect(server.state_dir / name) as database:
            database.execute(f"PRAGMA user_version = {version}")
        database.close()


@pytest.mark.slow
def test_an_inherited_listening_socket_is_used_and_nothing_else_is_bound(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as subscriber, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = subscriber.getsockname()[1]
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='whatever');"
            "os.execv(sys.executable, [sys.executable, 'main.py', 'serve'])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(subscriber.fileno())],
            cwd=ROOT,
            env={**os.environ, "SSE_APP_STATE_DIR": str(tmp_path / "s"), "SSE_APP_PORT": "1"},
            pass_fds=[subscriber.fileno()],
            stderr=subprocess.PIPE,
        )
        try:
            # The socket is listening already: the request waits in the backlog until the server is there.
            assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=20).json() == {"status": "ready"}
        finally:
            process.terminate()
            process.communicate(timeout=60)


def test_health_readiness_and_status_answer_without_a_token(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
    with server.publisher() as client:
        id = client.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}).json()["id"]
        client.post("/api/v1/sse/user.ann.private", json={"event": "e", "data": {}}).raise_for_status()
    token = server.stream_token("alerts", "dashboard")
    with httpx.stream("GET", server.stream_url("alerts,dashboard", token)) as stream:
        assert stream.status_code == 200
        status = httpx.get(f"{server.url}/api/v1/sse/status").json()
    assert status["status"] == "active"
    assert status["total_connections"] == 1
    assert list(status["channels"]) == ["dashboard", "alerts", "training", "backtest"]
    assert status["channels"]["alerts"] == {"connection_count": 1, "events_published": 1, "last_event_id": id}
    assert status["channels"]["training"] == {
        "connection_count": 0,
        "events_published": 0,
        "last_event_id": None,
    }
    assert "private" not in json.dumps(status)


def test_metrics_are_for_the_allowed_networks_and_not_for_proxies(start_server: Start) -> None:
    open_server = start_server(expected=("proxy_not_trusted",))
    text = httpx.get(f"{open_server.url}/metrics").text
    assert 'sse_app_channel_streams{channel="dashboard"} 0.0' in text
    assert "sse_app_deliveries_total" in text
    behind = httpx.get(f"{open_server.url}/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
    assert behind.status_code == 403


def test_metrics_can_be_closed(start_server: Start) -> None:
    closed = start_server(METRICS__ALLOW=["10.0.0.0/8"])
    answer = httpx.get(f"{closed.url}/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_log_lines_name_the_client_and_the_subject(server: ServerProcess) -> None:
    token = server.stream_token("alerts", subject="ann")
    with httpx.stream("GET", server.stream_url("alerts", token, client_id="tab-1")):
        pass
    server.stop()
    opened, closed = (
        next(line for line in server.log_lines() if line["event"] == event)
        for event in ("stream_opened", "stream_closed")
    )
    assert (opened["client_id"], opened["subject"], opened["channels"]) == ("tab-1", "ann", "alerts")
    assert (closed["client_id"], closed["reason"]) == ("tab-1", "client")
