"""A restart that no client notices, under a real systemd: with a standby, and cold, as where there can be none."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client, assert_all_received
from tests.support.ports import reserve_port
from tests.support.proxies import bare_nginx
from tests.support.server_process import ROOT
from tests.support.service import Service
from tests.support.waiting import until

STREAMS = 1000


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.long)])
def service(request: pytest.FixtureRequest, start_service: Callable[..., Service]) -> Service:
    """The server as a unit, in both ways, which trusts the proxy that some tests put in front of it."""
    service = start_service(TRUSTED_PROXIES=r"[\"127.0.0.0/8\"]")  # as systemd.syntax(7) has quotes
    if request.param == "cold":
        service.configure("cold", "KillMode=mixed")
    return service


both_ways = pytest.mark.parametrize("service", ["warm", "cold"], indirect=True)


@pytest.mark.slow
def test_a_thousand_streams_go_on_over_three_restarts_under_publishing(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher(pause=0.1)
    for _ in range(3):
        service.restart()
        service.settle(publisher)
    ids = publisher.stop()
    assert not service.fleet.ended
    assert_all_received(clients, ids)
    assert len(service.logged("listening")) == 4


@pytest.mark.slow
@both_ways
def test_clients_that_have_not_read_everything_lose_nothing(service: Service) -> None:
    slow = Client(service.port, service.stream_path(client_id="slow"), receive_buffer=4096)
    ids = service.publish(60, size=10_000)  # more than the kernel takes for a client that does not read
    service.restart()
    ids += service.publish(5)
    service.upgrade()
    ids += service.publish(5)
    slow.read_until(ids[-1])
    assert slow.ids() == ids
    slow.socket.close()


def test_a_stream_in_the_middle_of_a_long_replay_goes_on_with_it(service: Service) -> None:
    ids = service.publish(3000, size=1000)
    path = f"{service.stream_path(client_id='late')}&last_event_id={ids[0]}"
    late = Client(service.port, path, receive_buffer=4096)
    until(lambda: bool(service.logged("stream_opened")), "the stream is logged")
    service.restart()
    ids += service.publish(100, size=1000)
    service.upgrade()
    ids += service.publish(5)
    late.read_until(ids[-1])
    assert late.ids() == ids[1:]
    late.socket.close()


@pytest.mark.long
def test_streams_of_http_1_0_go_on(service: Service) -> None:
    clients = service.fleet.open(20, service.stream_path(), http="1.0")
    publisher = service.publisher()
    service.restart()
    service.settle(publisher)
    service.upgrade()
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


SLOW_COMMIT = """
import time
from sse_app.eventlog.sqlite.log import SqliteEventLog
wake = SqliteEventLog._wake
def wake_later(self):
    if os.path.exists({flag!r}):
        os.remove({flag!r})
        time.sleep(3)
    wake(self)
SqliteEventLog._wake = wake_later
"""


@pytest.mark.slow
def test_a_restart_waits_for_a_commit_that_takes_three_seconds(service: Service, tmp_path: Path) -> None:
    flag = tmp_path / "slow"
    service.inject(SLOW_COMMIT.format(flag=str(flag)))
    service.restart()
    clients = service.fleet.open(20, service.stream_path())
    publisher = service.publisher()
    service.settle(publisher)
    flag.touch()
    until(lambda: not flag.exists(), "a commit takes its time")
    service.restart()
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert publisher.longest > 2.5


@pytest.fixture(params=["as configured here", pytest.param("with its defaults", marks=pytest.mark.long)])
def nginx_port(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx in front of the service, which speaks HTTP/1.1 or HTTP/1.0 to it."""
    port = reserve_port(service)
    if request.param == "with its defaults":
        site = f"access_log off; server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {service.url}; }} }}"
    else:
        site = (ROOT / "config/nginx/sse_app.conf").read_text()
        for theirs, ours in {
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{service.port};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port};",
            "/var/log/nginx/": f"{tmp_path}/",
        }.items():
            assert theirs in site, theirs
            site = site.replace(theirs, ours)
        site = "\n".join(line for line in site.splitlines() if not line.strip().startswith("ssl_"))
    with bare_nginx(site, f"http://127.0.0.1:{port}", tmp_path):
        yield port


@pytest.mark.slow
def test_streams_through_nginx_go_on(service: Service, nginx_port: int) -> None:
    clients = service.fleet.open(50, service.stream_path(), port=nginx_port)
    publisher = service.publisher()
    for change in (service.restart, service.upgrade, service.restart):
        change()
        service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.mark.slow
def test_streams_whose_token_expires_or_is_revoked_in_the_pause_end(service: Service) -> None:
    (expiring,) = service.fleet.open(1, service.stream_path(ttl=8, client_id="expiring"))
    opened_at = time.monotonic()
    (revoked,) = service.fleet.open(1, service.stream_path(subject="eve", client_id="revoked"))
    (staying,) = service.fleet.open(1, service.stream_path(subject="ann", client_id="staying"))
    service.signal("STOP")
    service.command("revoke", "--subject", "eve")
    # Until the first token has expired, which nobody can end while the process stands still.
    until(lambda: time.monotonic() > opened_at + 9, "the token has expired")
    service.signal("CONT")
    service.restart()
    until(lambda: len(service.fleet.ended) == 2, "the streams have ended")
    assert b'"reason":"token_expired"' in expiring.body()
    assert b'"reason":"revoked"' in revoked.body()
    assert staying.ended is None


@pytest.mark.slow
def test_the_dashboard_shows_an_adopted_stream_with_its_original_time(service: Service) -> None:
    service.fleet.open(1, service.stream_path(client_id="ann"))
    headers = {"Authorization": f"Bearer {service.access_token()}"}

    def connections() -> object:
        return httpx.get(f"{service.url}/api/v1/admin/connections", headers=headers, timeout=30).json()

    def listed(answer: object) -> list[tuple[object, ...]]:
        assert isinstance(answer, dict)
        names = ("connection", "client_id", "subject", "address", "opened_at")
        return [tuple(one.get(name) for name in names) for one in answer["connections"]]

    before = connections()
    assert len(listed(before)) == 1
    service.restart()
    assert listed(connections()) == listed(before)


def test_a_crash_while_adopting_twice_loses_no_stream(cold: Service, tmp_path: Path) -> None:
    crashes = tmp_path / "crashes"
    crashes.write_text("2")
    clients = cold.fleet.open(50, cold.stream_path())
    cold.inject(
        f"counter = {str(crashes)!r}\n"
        "left = int(open(counter).read())\n"
        "def crash(name, arguments):\n"
        "    if name == 'sse_app.adopted':\n"
        "        os.kill(os.getpid(), 9)\n"
        "if left:\n"
        "    open(counter, 'w').write(str(left - 1))\n"
        "    sys.addaudithook(crash)\n"
    )
    cold.manager.systemctl("restart", "sse-app.service", check=False)
    until(lambda: cold.manager.show("ActiveState") == "active", "the service is active")
    assert crashes.read_text() == "0"
    publisher = cold.publisher()
    cold.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not cold.fleet.ended


def test_a_state_of_another_format_is_not_misread_and_its_streams_end_with_closing(cold: Service) -> None:
    chunked = cold.fleet.open(20, cold.stream_path())
    plain = cold.fleet.open(5, cold.stream_path(), http="1.0")
    cold.inject("import sse_app.handover.message as state\nstate.FORMAT += 1")
    cold.expected = {"handover_refused"}
    cold.restart()
    until(lambda: len(cold.fleet.ended) == 25, "the streams have ended")
    assert set(cold.fleet.ended) == {"end of file"}
    for client in chunked + plain:
        assert client.body().endswith(b"}\n\n")
        assert b'event: closing\ndata: {"reason":"shutdown"' in client.body()
    assert all(client.received.endswith(b"0\r\n\r\n") for client in chunked)
    cold.fleet.open(5, cold.stream_path())


@pytest.mark.slow
def test_streams_of_a_framing_that_the_next_process_does_not_know_are_closed_and_the_others_end_with_closing(
    cold: Service,
) -> None:
    chunked = cold.fleet.open(20, cold.stream_path())
    plain = cold.fleet.open(5, cold.stream_path(), http="1.0")
    cold.inject("import sse_app.core.framing as framing\ndel framing.FRAMINGS['unframed']")
    cold.expected = {"handover_refused"}
    cold.restart()
    until(lambda: len(cold.fleet.ended) == 25, "the streams have ended")
    assert set(cold.fleet.ended) == {"end of file"}
    for client in chunked:
        assert b'event: closing\ndata: {"reason":"shutdown"' in client.body()
        assert client.received.endswith(b"0\r\n\r\n")
    assert not any(b"event: closing" in client.body() for client in plain)
    cold.fleet.open(5, cold.stream_path())


def test_a_connection_made_in_the_pause_is_answered_not_refused(service: Service) -> None:
    statuses = []
    restarting = subprocess.Popen(
        ["systemctl", "--user", "restart", "sse-app.service"], env=service.manager.environment
    )
    ends = False
    while not ends:
        ends = restarting.poll() is not None
        statuses.append(httpx.get(f"{service.url}/healthz", timeout=30).status_code)
    assert set(statuses) == {200}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "change"),
    [
        ("warm", Service.restart),
        ("cold", Service.restart),
        ("warm", Service.upgrade),
        pytest.param("cold", Service.upgrade, marks=pytest.mark.long),
    ],
    indirect=["service"],
)
def test_idle_connections_and_half_sent_requests_go_on(
    service: Service, change: Callable[[Service], None]
) -> None:
    with (
        socket.create_connection(("127.0.0.1", service.port)) as idle,
        socket.create_connection(("127.0.0.1", service.port)) as half,
        socket.create_connection(("127.0.0.1", service.port)) as silent,
    ):
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b'"ok"' in idle.recv(4096)
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: ")
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        change(service)
        half.sendall(b"sent\r\n\r\n")
        assert b'"ok"' in half.recv(4096)
        for connection in (idle, silent):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'"ok"' in connection.recv(4096)


@pytest.mark.slow
def test_a_publisher_that_sends_its_body_slowly_does_not_keep_the_others_waiting(service: Service) -> None:
    clients = service.fleet.open(5, service.stream_path())
    token = service.access_token()
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.sendall(
            f"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            'Content-Length: 1000\r\n\r\n{"event": '.encode()
        )
        until(lambda: httpx.get(f"{service.url}/healthz").status_code == 200, "the server answers")
        publisher = service.publisher()
        service.settle(publisher)
        begun = time.monotonic()
        service.restart()
        assert time.monotonic() - begun < 10
        service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.mark.slow
def test_a_store_that_lacks_an_end_is_replaced(cold: Service) -> None:
    """As after an upgrade from a version without one, or one end of which systemd has dropped."""
    cold.fleet.open(5, cold.stream_path())
    cold.configure("none", "FileDescriptorStoreMax=1")
    cold.restart()  # the old store is whole
    clients = cold.fleet.open(5, cold.stream_path())
    cold.manager.systemctl("stop", "sse-app.service")
    until(lambda: len(cold.fleet.ended) == 10, "the streams have ended")
    cold.manager.systemctl("start", "sse-app.service")  # only one end fits
    clients = cold.fleet.open(5, cold.stream_path())
    cold.manager.systemctl("restart", "sse-app.service")
    until(lambda: all(client.ended for client in clients), "the streams have ended")
    cold.fleet.open(5, cold.stream_path())
