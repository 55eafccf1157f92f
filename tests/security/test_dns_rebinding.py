"""A page that has its own name point at this machine reaches the server under that name, and gets nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tornado.httpserver import HTTPServer as Tornado
from tornado.netutil import bind_sockets

from sse_app import Settings, SSEApp
from tests.support.hostility import Target
from tests.support.server_process import ServerProcess, running

PATHS = (
    "/",
    "/admin",
    "/static/main.js",
    "/metrics",
    "/openapi.json",
    "/.well-known/jwks.json",
    "/api/v1/sse/status",
    "/api/v1/sse/dashboard",
    "/api/v1/auth/me",
    "/nope",
)
EVIL = (
    "evil.example",
    "evil.example:{port}",
    "EVIL.EXAMPLE",
    "evil.example.",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "notlocalhost:{port}",
    "xlocalhost",
    "evil_example",
    "intranet",
)
OURS = (
    "localhost",
    "LocalHost:{port}",
    "app.localhost:{port}",
    "127.0.0.1",
    "127.0.0.1:{port}",
    "127.8.9.10:1",
    "[::1]:{port}",
    "10.0.0.7",
    "",
)


class Rebound(Target):
    """A server, and requests that name a host."""

    def ask(
        self, host: str, path: str, method: str = "GET", by: str = "127.0.0.1", *, version: str = "1.1"
    ) -> tuple[int, bytes]:
        """Return the status and the whole answer."""
        header = f"Host: {host.format(port=self.server.port)}\r\n"
        head = f"{method} {path} HTTP/{version}\r\n{header}Connection: close\r\n{self.bearer}\r\n"
        data = f"{head}Content-Length: 2\r\n\r\n{{}}" if method == "POST" else f"{head}\r\n"
        received = b""
        with socket.create_connection(("127.0.0.1", self.server.port), 10, (by, 0)) as connection:
            connection.sendall(data.encode())
            while piece := connection.recv(65536):
                received += piece
        return int(received.split()[1]), received


@pytest.fixture(scope="module")
def rebound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rebound]:
    """A server as it is without settings."""
    with running(state_dir=tmp_path_factory.mktemp("rebound") / "state") as server:
        yield Rebound(server)


@pytest.mark.parametrize("host", EVIL)
def test_a_foreign_name_gets_nothing_of_a_server_on_loopback(rebound: Rebound, host: str) -> None:
    for path in PATHS:
        status, received = rebound.ask(host, path)
        assert status == 421, (path, received)
        assert b'{"error":{"code":"unknown_host","message":"' in received
        assert b"hosts" in received  # the setting that an operator needs to know
        assert host.lower().encode() not in received.lower()
        assert rebound.ask(host, path, "OPTIONS")[0] == 421
    for path in ("/api/v1/auth/login", "/api/v1/auth/refresh", "/api/v1/sse/dashboard"):
        assert rebound.ask(host, path, "POST")[0] == 421
    assert rebound.stored("dashboard") == []


@pytest.mark.parametrize("target", ["http://evil.example/metrics", "http://evil.example:80/"])
def test_the_host_of_an_absolute_target_counts(rebound: Rebound, target: str) -> None:
    assert rebound.ask("localhost", target)[0] == 421
    assert rebound.ask("evil.example", target.replace("evil.example", "localhost"))[0] == 200


@pytest.mark.parametrize("host", OURS)
def test_addresses_and_localhost_are_always_ours(rebound: Rebound, host: str) -> None:
    for path in ("/", "/admin", "/metrics", "/api/v1/sse/status"):
        assert rebound.ask(host, path)[0] == 200, path
    assert rebound.ask(host, "/api/v1/auth/login", "POST")[0] == 422


def test_http_1_0_needs_no_host(rebound: Rebound) -> None:
    assert rebound.raw(b"GET /metrics HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_told_under_any_name(rebound: Rebound, path: str) -> None:
    assert [rebound.ask(host, path)[0] for host in ("evil.example", "backend-1:80")] == [200, 200]
    assert rebound.ask("backend-1", path, "HEAD")[0] == 200


def test_names_that_are_configured_and_no_others_are_ours(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(
        HOSTS=["Events.Example.com", "*.desk.example"], TRUSTED_PROXIES=["127.0.5.0/24"], METRICS__ALLOW=[]
    )
    rebound = Rebound(server)
    for by in ("127.0.0.1", "127.0.5.1"):
        for host in (
            "events.example.com",
            "EVENTS.example.COM:8443",
            "events.example.com.",
            "a.desk.example",
            "a.b.desk.example",
            *OURS,
        ):
            assert rebound.ask(host, "/", by=by)[0] == 200, host
        for host in (
            "evil.example",
            "example.com",
            "x.events.example.com",
            "desk.example",
            "xdesk.example",
            "events.example.com.evil.example",
        ):
            assert rebound.ask(host, "/", by=by)[0] == 421, host


def test_a_trusted_proxy_chooses_the_names_where_none_is_configured(
    start_server: Callable[..., ServerProcess],
) -> None:
    rebound = Rebound(start_server(TRUSTED_PROXIES=["127.0.5.0/24"]))
    assert rebound.ask("events.example.com", "/", by="127.0.5.1")[0] == 200
    # A browser on this machine has an address of a proxy there, and a page that was rebound sets any header.
    for headers in ("", "\r\nX-Forwarded-For: 127.0.0.1", "\r\nX-Forwarded-For: "):
        assert rebound.ask(f"evil.example{headers}", "/metrics", by="127.0.5.1")[0] == 421
    assert rebound.ask("events.example.com", "/", by="127.0.0.1")[0] == 421


def test_every_name_is_ours_where_the_settings_say_so(start_server: Callable[..., ServerProcess]) -> None:
    assert Rebound(start_server(HOSTS=["*"])).ask("evil.example", "/")[0] == 200


@pytest.mark.gen_test
async def test_the_name_that_the_server_listens_on_is_its_own(tmp_path: Path) -> None:
    sse = SSEApp(Settings(state_dir=tmp_path / "state", event_log="memory:", host="Desk.internal"))
    await sse.start()
    server = Tornado(sse.application())
    (listening,) = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as http:
            for host, status in {
                "desk.internal:8000": 200,
                "DESK.internal": 200,
                "evil.internal": 421,
            }.items():
                assert (await http.get("/", headers={"Host": host})).status_code == status, host
    finally:
        server.stop()
        await server.close_all_connections()
        await sse.stop()
