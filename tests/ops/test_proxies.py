"""nginx and Caddy, as Debian has them and set up as config/ says, between clients and a server."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from sse_app.client import (
    Backoff,
    CertificateRefused,
    Connected,
    Event,
    Publisher,
    Stream,
    Unavailable,
    Waiting,
)
from tests.support.ports import reserved_port
from tests.support.programs import require
from tests.support.proxies import (
    PROXIES,
    Certificate,
    Proxy,
    bare_nginx,
    caddy,
    connections_to,
    make_certificate,
    nginx,
)
from tests.support.server_process import ROOT, ServerProcess
from tests.support.waiting import until

CHANNEL = "user.proxied"
TOKEN = re.compile(r"eyJ[\w-]{10,}")
DEADLINE = 30.0  # seconds after which a test stops waiting
AT_ONCE = 5.0  # seconds in which an event comes that nobody holds back, on a machine that has much else to do


@dataclass
class Site:
    """A server, and a proxy in front of it."""

    server: ServerProcess
    proxy: Proxy
    certificate: Path
    trusted: ssl.SSLContext
    token: str
    access: str

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=self.trusted, trust_env=False, timeout=DEADLINE)

    @asynccontextmanager
    async def stream(self, http: httpx.AsyncClient, **more: object) -> AsyncIterator[Stream]:
        async with Stream(self.proxy.url, CHANNEL, self.token, http=http, **more) as stream:  # type: ignore[arg-type]
            async with asyncio.timeout(DEADLINE):
                await stream.opened()
            yield stream


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def site(
    request: pytest.FixtureRequest,
    start_server: Callable[..., ServerProcess],
    certificate: Certificate,
    tmp_path: Path,
) -> Iterator[Site]:
    """A server behind the proxy that the test's parameter names. No log of either ever has a token."""
    server = start_server(STREAM__RETRY=100, LIMITS__STREAMS_PER_USER=1000, TRUSTED_PROXIES=["127.0.0.0/8"])
    folder = tmp_path / "proxy"
    folder.mkdir()
    with PROXIES[request.param](server.port, certificate, folder) as proxy:
        path = certificate.certificate
        yield Site(
            server, proxy, path, certificate.trusted(), server.stream_token(CHANNEL), server.access_token()
        )
    logs = proxy.logs()
    assert not TOKEN.search(logs), TOKEN.findall(logs)
    assert "/api/v1/sse/" in logs, "there is an access log, or that it has no token would say nothing"


both = pytest.mark.parametrize("site", ["nginx", "caddy"], indirect=True)


async def next_event(stream: Stream) -> Event:
    """Return the next event, which has to come at once."""
    async with asyncio.timeout(AT_ONCE):
        item = await anext(stream)
    assert isinstance(item, Event), item
    return item


def all_have(text: str, files: list[Path]) -> bool:
    """Return whether a text is in all of these files."""
    return all(text in file.read_text() for file in files)


@pytest.mark.slow
@both
def test_each_event_comes_through_before_the_next_is_published(site: Site) -> None:
    async def test() -> None:
        async with (
            site.http() as http,
            site.stream(http) as stream,
            Publisher(site.proxy.url, site.access, http=http) as publisher,
        ):
            delays = []
            for n in range(30):
                begun = time.perf_counter()
                id = await publisher.publish(CHANNEL, "tick", {"n": n})
                event = await next_event(stream)
                delays.append(time.perf_counter() - begun)
                assert (event.id, event.data["n"]) == (id, n)
            print(
                f"published and back in {1000 * sorted(delays)[15]:.1f} ms, at most {1000 * max(delays):.1f} ms"
            )

    asyncio.run(test())


@pytest.mark.parametrize("site", ["nginx", pytest.param("caddy", marks=pytest.mark.slow)], indirect=True)
def test_eight_streams_share_one_connection_of_http_2(site: Site, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{n}.out" for n in range(8)]
    command = [require("curl"), "--http2", "--parallel", "--parallel-max", "8", "--no-buffer", "--silent"]
    command += [
        "--noproxy",
        "*",
        "--cacert",
        str(site.certificate),
        "--write-out",
        "%{stderr}HTTP/%{http_version}\\n",
    ]
    url = f"{site.proxy.url}/api/v1/sse/{CHANNEL}"
    for output in outputs:
        command += ["--output", str(output), f"{url}?token={site.token}&client_id={output.stem}"]
    curl = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until(
            lambda: all(out.exists() and "connected" in out.read_text() for out in outputs), "eight streams"
        )
        assert connections_to(site.proxy.port) == 1
        with site.server.publisher() as publisher:
            for n in range(10):  # each reaches all eight before the next is published
                answer = publisher.post(f"/api/v1/sse/{CHANNEL}", json={"event": "tick", "data": {"n": n}})
                line = f"id: {answer.json()['id']}\n"
                until(partial(all_have, line, outputs), "all eight have it", AT_ONCE)
        assert connections_to(site.proxy.port) == 1
        assert httpx.get(f"{site.server.url}/api/v1/sse/status").json()["total_connections"] == 8
        site.server.stop()  # which ends the streams, and so curl
        _, versions = curl.communicate(timeout=DEADLINE)
    finally:
        curl.kill()
        curl.wait()
    assert re.findall(r"HTTP/\S+", versions) == ["HTTP/2"] * 8
    assert all(output.read_text().count("event: tick") == 10 for output in outputs)


@pytest.mark.slow
@both
def test_a_stream_goes_on_over_a_kill_of_the_server_and_no_request_is_answered_wrongly(site: Site) -> None:
    async def test() -> None:
        states: list[Connected | Waiting] = []
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(site.http())
            stream = await stack.enter_async_context(
                site.stream(http, on_state=states.append, backoff=Backoff(0.2, 1.0))
            )
            publisher = Publisher(site.proxy.url, site.access, http=http, backoff=Backoff(0.1, 0.5))
            ids = [await publisher.publish(CHANNEL, "tick", {})]
            await asyncio.to_thread(site.server.kill)
            url = f"{site.proxy.url}/api/v1/sse/{CHANNEL}"
            # A stream of public channels has no token. Each EventSource says what it takes.
            for params, accepted in (({"token": site.token}, "*/*"), ({}, "text/event-stream")):
                headers = {"Origin": "http://page", "Accept": accepted}
                away = await http.get(url, params=params, headers=headers)
                assert (away.status_code, away.headers["content-type"]) == (200, "text/event-stream")
                assert away.headers["access-control-allow-origin"] == "http://page"
                assert re.fullmatch(
                    r'retry: (\d+)\nevent: closing\ndata: {"reason":"unavailable","retry":\1}\n\n', away.text
                )
            for refused in (await http.post(url, json={}), await http.get(f"{url}/history")):
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert refused.json()["error"]["code"] == "unavailable"
            hasty = Publisher(site.proxy.url, site.access, http=http, patience=1)
            with pytest.raises(Unavailable) as told:
                await hasty.publish(CHANNEL, "tick", {})
            assert told.value.retry_after == 5
            await asyncio.to_thread(site.server.start)
            ids += [await publisher.publish(CHANNEL, "tick", {"n": n}) for n in range(3)]
            async with asyncio.timeout(DEADLINE):
                items = [await anext(stream) for _ in ids]
            assert [item.id for item in items if isinstance(item, Event)] == ids
            last = [state for state in states if isinstance(state, Connected)][-1]
            assert last.recovered

    asyncio.run(test())


@pytest.mark.parametrize("which", ["nginx", "caddy"])
def test_the_server_learns_the_address_of_the_client_and_not_what_the_client_says_of_itself(
    which: str, certificate: Certificate, tmp_path: Path
) -> None:
    seen: list[dict[str, str]] = []

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(
                {name.lower(): value for name, value in self.headers.items()}
                | {"version": self.request_version}
            )
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            with PROXIES[which](server.server_port, certificate, tmp_path) as proxy:
                spoofed = {
                    "X-Forwarded-For": "6.6.6.6",
                    "X-Real-IP": "6.6.6.6",
                    "X-Forwarded-Proto": "gopher",
                }
                for path in ("/", "/api/v1/sse/alerts"):
                    httpx.get(
                        proxy.url + path, headers=spoofed, verify=certificate.trusted(), trust_env=False
                    )
        finally:
            server.shutdown()
    assert len(seen) == 2
    for headers in seen:
        assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.1"
        assert headers["x-forwarded-proto"] == "https"
        assert headers["host"] == proxy.url.removeprefix("https://")
        assert headers["version"] == "HTTP/1.1"


@pytest.mark.parametrize("site", ["nginx", pytest.param("caddy", marks=pytest.mark.slow)], indirect=True)
def test_our_own_page_logs_in_also_on_a_port_that_is_not_the_schemes(site: Site) -> None:
    site.server.add_user("ann", "correct horse battery", subscribe=CHANNEL)
    credentials = {"username": "ann", "password": "correct horse battery"}

    def log_in(origin: str) -> int:
        with httpx.Client(verify=site.trusted, trust_env=False, timeout=DEADLINE) as http:
            url = f"{site.proxy.url}/api/v1/auth/login"
            return http.post(url, json=credentials, headers={"Origin": origin}).status_code

    assert log_in(site.proxy.url) == 200
    assert httpx.get(f"{site.proxy.url}/api/v1/sse/status", verify=site.trusted, trust_env=False).is_success
    for other in ("https://localhost", "https://localhost:1", "https://evil.example", "null"):
        assert log_in(other) == 403


def test_nginx_bounds_the_connections_and_the_requests_of_an_address_and_answers_in_json(
    start_server: Callable[..., ServerProcess], certificate: Certificate, tmp_path: Path
) -> None:
    server = start_server(TRUSTED_PROXIES=["127.0.0.0/8"])
    token = server.stream_token(CHANNEL)
    fewer = {
        "sse_app_connections 1200;": "sse_app_connections 3;",
        "rate=100r/s": "rate=1r/m",
        "burst=1200": "burst=20",
    }
    with nginx(server.port, certificate, tmp_path, fewer) as proxy, ExitStack() as stack:

        def client(address: str) -> httpx.Client:
            transport = httpx.HTTPTransport(verify=certificate.trusted(), local_address=address)
            return stack.enter_context(
                httpx.Client(base_url=proxy.url, transport=transport, timeout=DEADLINE)
            )

        def refused(answer: httpx.Response) -> bool:
            assert answer.status_code in (200, 429), answer.text
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "too_many_requests"
                assert int(answer.headers["retry-after"]) > 0
            return answer.status_code == 429

        one, two = client("127.0.0.1"), client("127.0.0.2")
        path = f"/api/v1/sse/{CHANNEL}?token={token}"
        for _ in range(3):
            assert stack.enter_context(one.stream("GET", path)).status_code == 200
        assert refused(one.get(path))
        assert refused(one.get("/api/v1/sse/status"))
        assert not refused(two.get("/api/v1/sse/status"))
        assert [refused(two.get("/healthz")) for _ in range(40)].count(True) > 10
        assert not refused(client("127.0.0.3").get("/healthz"))
    assert not TOKEN.search(proxy.logs())


def test_nginx_counts_an_ipv6_64_as_one_client(tmp_path: Path) -> None:
    written = (ROOT / "config/nginx/sse_app.conf").read_text()
    (which,) = re.findall(r"^map \$remote_addr .*?^}$", written, re.MULTILINE | re.DOTALL)
    posing = "set_real_ip_from 127.0.0.1; real_ip_header X-Real-IP;"
    with ExitStack() as stack:
        listen = f"127.0.0.1:{stack.enter_context(reserved_port())}"
        site = f"{which} server {{ listen {listen}; {posing} location / {{ return 200 $sse_app_client; }} }}"
        proxy = stack.enter_context(bare_nginx(site, f"http://{listen}", tmp_path))
        http = stack.enter_context(httpx.Client(base_url=proxy.url, trust_env=False))

        def client(address: str) -> str:
            return http.get("/", headers={"X-Real-IP": address}).text

        assert client("192.0.2.1") == "192.0.2.1"
        assert (
            client("2001:db8:1:2::1")
            == client("2001:db8:1:2:ffff:eeee:dddd:cccc")
            != client("2001:db8:1:3::1")
        )
        assert client("2001:db8::1") == client("2001:db8::ffff:0:0:2") != client("2001:db8:1::1")
        assert client("::1") != client("192.0.2.1")


def test_caddys_administration_is_on_a_unix_socket_and_reloads_it(
    certificate: Certificate, start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    program, configuration = require("caddy"), str(ROOT / "config/Caddyfile")
    adapt = [program, "adapt", "--config", configuration]
    adapted = json.loads(subprocess.run(adapt, capture_output=True, check=True).stdout)
    assert adapted["admin"]["listen"].startswith("unix//")
    (served,) = adapted["apps"]["http"]["servers"].values()
    assert {"read_timeout", "read_header_timeout", "idle_timeout"} <= served.keys()
    assert "write_timeout" not in served, "a stream does not end"

    server = start_server(TRUSTED_PROXIES=["127.0.0.0/8"])
    with caddy(server.port, certificate, tmp_path) as proxy:
        mode = (tmp_path / "admin.sock").stat().st_mode
        assert not mode & 0o022, "others may not write to it, and so not connect (unix(7))"
        reload = [program, "reload", "--config", configuration, "--force"]
        done = subprocess.run(
            reload, env=proxy.environment, capture_output=True, timeout=DEADLINE, check=False
        )
        assert done.returncode == 0, done.stderr
        answer = httpx.get(f"{proxy.url}/healthz", verify=certificate.trusted(), trust_env=False)
        assert answer.status_code == 200


def test_a_certificate_that_proves_nothing_is_told_at_once_and_not_tried_again(
    certificate: Certificate, tmp_path: Path
) -> None:
    async def test(url: str) -> None:
        states: list[Connected | Waiting] = []
        async with Stream(url, CHANNEL, "token", on_state=states.append) as stream:
            with pytest.raises(CertificateRefused, match="self-signed certificate"):
                await anext(stream)
        async with Publisher(url, "token") as publisher:
            with pytest.raises(CertificateRefused, match="self-signed certificate"):
                await publisher.publish(CHANNEL, "tick", {})
        assert states == []

    with reserved_port() as nothing, nginx(nothing, certificate, tmp_path) as proxy:
        asyncio.run(asyncio.wait_for(test(proxy.url), DEADLINE))


@pytest.mark.long
def test_connections_that_are_idle_for_100_seconds_survive(
    start_server: Callable[..., ServerProcess], certificate: Certificate, tmp_path: Path
) -> None:
    server = start_server(KEEPALIVE__PING_INTERVAL=3600, TRUSTED_PROXIES=["127.0.0.0/8"])  # not even a ping

    async def test(proxies: list[Proxy]) -> None:
        token = server.stream_token(CHANNEL)
        states: list[Connected | Waiting] = []
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                httpx.AsyncClient(verify=certificate.trusted(), trust_env=False)
            )
            streams = [
                Stream(proxy.url, CHANNEL, token, http=http, ping_interval=3600, on_state=states.append)
                for proxy in proxies
            ]
            for stream in streams:
                await stack.enter_async_context(stream)
                await stream.opened()
            await asyncio.sleep(100)
            async with Publisher(server.url, server.access_token()) as publisher:
                id = await publisher.publish(CHANNEL, "tick", {})
            assert [(await next_event(stream)).id for stream in streams] == [id] * len(streams)
            assert len(states) == len(streams), states

    with ExitStack() as stack:
        proxies = []
        for name, start in PROXIES.items():
            (folder := tmp_path / name).mkdir()
            proxies.append(stack.enter_context(start(server.port, certificate, folder)))
        asyncio.run(test(proxies))
