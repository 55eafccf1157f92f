"""Whose address a request has behind proxies: what they say in all its forms, and what cannot be read."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse

import pytest

from sse_app.handlers.client_address import UNKNOWN, client_address
from sse_app.settings.types import Network
from tests.support.hostility import Target, request
from tests.support.server_process import ServerProcess, running
from tests.support.waiting import until

PROXY = "127.0.5.1"
STRANGER = "127.0.9.1"


class Behind(Target):
    """A server that believes the proxies of 127.0.5.0/24, written as an IPv6 network."""

    paths = itertools.count()

    def ask(self, target: str, *headers: str | bytes, by: str = PROXY) -> int:
        """Return the status that a request from this address has."""
        with (
            socket.create_connection(("127.0.0.1", self.server.port), 10, (by, 0)) as connection,
            connection.makefile("rb") as file,
        ):
            connection.sendall(request("GET", target, "Connection: close", *headers))
            return int(file.readline().split()[1])

    def address_of(self, *headers: str | bytes, by: str = PROXY) -> object:
        """Return the address in the log's line for a request."""
        path = f"/nope-{next(self.paths)}"
        assert self.ask(path, *headers, by=by) == 404
        found: list[object] = []

        def logged() -> list[object]:
            found[:] = [line["address"] for line in self.server.log_lines() if line.get("path") == path]
            return found

        until(logged, "the request is in the log")
        return found[0]

    def hold(self, streams: ExitStack, forwarded: str | None, by: str = PROXY) -> int:
        """Open a stream that stays open, and return its status."""
        connection = streams.enter_context(
            socket.create_connection(("127.0.0.1", self.server.port), 10, (by, 0))
        )
        headers = [] if forwarded is None else [f"X-Forwarded-For: {forwarded}"]
        connection.sendall(request("GET", f"/api/v1/sse/dashboard?token={self.stream_token}", *headers))
        response = HTTPResponse(connection)
        response.begin()
        streams.callback(response.close)
        return response.status


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with running(
        state_dir=tmp_path_factory.mktemp("behind") / "state",
        TRUSTED_PROXIES=["::ffff:127.0.5.0/120", "2001:db8:ff::/48"],
        METRICS__ALLOW=["127.0.0.0/8", "::ffff:192.0.2.0/120", "2001:db8:1::/48"],
        LIMITS__STREAMS_PER_ADDRESS=2,
        expected=("proxy_not_trusted",),
    ) as server:
        yield Behind(server)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("  203.0.113.7:4711\t", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0::0001", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%eth0]:4711", "fe80::1"),
        ("[fe80::1%25eth0]:4711", "fe80::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:4711", "203.0.113.7"),
        ("[::ffff:cb00:7107]:4711", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7:4711", "203.0.113.7"),
        ("203.0.113.7:1, 127.0.5.9:2, [::ffff:127.0.5.8]:3, [2001:db8:ff:7::1]:4", "203.0.113.7"),
        ("127.0.5.9:2, 127.0.5.8", "127.0.5.9"),
    ],
)
def test_the_client_is_read_with_ports_brackets_and_zones(
    behind: Behind, forwarded: str, address: str
) -> None:
    assert behind.address_of(f"X-Forwarded-For: {forwarded}") == address


def test_several_headers_are_one_list(behind: Behind) -> None:
    lines = ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7:1", "x-forwarded-for: 127.0.5.2:80")
    assert behind.address_of(*lines) == "203.0.113.7"


UNREADABLE = [
    "",
    ",",
    "203.0.113.7,",
    "nonsense",
    "unknown",
    "_hidden",
    "unix:",
    "localhost",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "127.0.0.01",
    "127.0.0.1:",
    "127.0.0.1:http",
    "127.0.0.1:999999",
    "127.0.0.1:80:80",
    "127.0.0.1/8",
    "127.0.0.1%lo",
    "[127.0.0.1]",
    "[127.0.0.1]:80",
    "[::1",
    "::1]",
    "[]",
    "[]:80",
    "[[::1]]",
    "[::1]80",
    "[::1]:80:80",
    "::1%",
    "127.0.0.1 127.0.0.1",
    "for=127.0.0.1",
    "127.0.0.1\u00a0",
    "\u0661\u0662\u0667.0.0.1",
    "192.0.2.1, nonsense",
    "192.0.2.1, nonsense, 127.0.5.2",
    "[::ffff:192.0.2.1",
    "1" * 5_000,
    "127.0.0.1:" + "9" * 5_000,
]


@pytest.mark.parametrize("forwarded", UNREADABLE, ids=lambda text: ascii(text)[:40])
def test_what_cannot_be_read_is_no_clients_address_and_not_local(behind: Behind, forwarded: str) -> None:
    header = f"X-Forwarded-For: {forwarded}"
    assert behind.address_of(header) == "unknown"
    assert behind.ask("/metrics", header) == 403
    assert behind.ask("/metrics") == 200  # the proxy's machine itself


def test_an_address_of_any_length_is_read_at_once() -> None:
    """The expression for brackets would try each colon anew: 20 s of the event loop for these."""
    begun = time.thread_time()
    for element in ("[" + ":" * 31_000, "1" * 31_000 + ":", "1." * 15_000):
        assert client_address("127.0.0.1", [element], [Network("127.0.0.0/8")]) == UNKNOWN
    assert time.thread_time() - begun < 2


@pytest.mark.parametrize("header", ["Forwarded: for=127.0.0.1", "X-Real-IP: 127.0.0.1", "Via: 1.1 proxy"])
def test_what_a_proxy_says_in_another_header_is_not_read_and_not_local(behind: Behind, header: str) -> None:
    assert behind.ask("/metrics", header) == 403
    assert behind.ask("/metrics", header, by="127.0.0.1") == 403


def test_metrics_are_for_networks_however_they_are_written(behind: Behind) -> None:
    for forwarded, status in {
        "192.0.2.9": 200,
        "192.0.2.9:4711": 200,
        "[::ffff:192.0.2.9]:1": 200,
        "[2001:db8:1:2::3]:1": 200,
        "192.0.3.9": 403,
        "[2001:db8:2::3]:1": 403,
    }.items():
        assert behind.ask("/metrics", f"X-Forwarded-For: {forwarded}") == status, forwarded


def test_clients_share_no_limit_for_their_ports_and_one_for_their_64(behind: Behind) -> None:
    with ExitStack() as streams:
        for client in range(6):
            assert behind.hold(streams, f"203.0.113.{client}:4711") == 200
        assert behind.hold(streams, "203.0.113.0:4712") == 200
        assert behind.hold(streams, "203.0.113.0:4713") == 429
        assert behind.hold(streams, "[2001:db8:9:9::1]:1") == 200
        assert behind.hold(streams, "2001:db8:9:9:ffff::2") == 200
        assert behind.hold(streams, "[2001:db8:9:9::3]:3") == 429
        assert behind.hold(streams, "2001:db8:9:a::3") == 200


def test_those_without_an_address_share_a_limit_but_not_the_proxys(behind: Behind) -> None:
    with ExitStack() as streams:
        assert [behind.hold(streams, text) for text in ("nonsense", "unknown", "")] == [200, 200, 429]
        assert behind.hold(streams, None) == 200
        assert behind.hold(streams, PROXY) == 200


def test_forwarding_headers_of_a_peer_that_is_not_trusted_are_told_once(behind: Behind) -> None:
    before = len(_told(behind.server))
    headers = ("X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7", "X-Real-IP: 203.0.113.7")
    for header in (*headers, *headers):
        assert behind.address_of(header, by=STRANGER) == STRANGER
        assert behind.address_of(header, by=PROXY) != STRANGER
    (line,) = _told(behind.server)[before:]
    assert (line["address"], line["level"]) == (STRANGER, "warning")
    assert "trusted_proxies" in str(line["detail"])
    for host in range(40):  # any client can send such a header
        behind.ask("/nope", headers[0], by=f"127.0.10.{host}")
    assert len(_told(behind.server)) <= 8


def test_a_server_behind_a_proxy_that_it_does_not_trust_says_so(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(
        state_dir=tmp_path_factory.mktemp("told") / "state", expected=("proxy_not_trusted",)
    ) as server:
        behind = Behind(server)
        for _ in range(3):
            assert behind.ask("/nope", "X-Forwarded-For: 203.0.113.7:4711", by="127.0.0.1") == 404
        until(lambda: _told(server), "the log says so")
        assert [line["address"] for line in _told(server)] == ["127.0.0.1"]


def _told(server: ServerProcess) -> list[dict[str, object]]:
    return [line for line in server.log_lines() if line["event"] == "proxy_not_trusted"]
