"""Made up and mutated requests, ids, patterns, streams and settings: no 5xx, no traceback, and nothing is left behind.

The long forms ask as often as they can in some minutes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from sse_app.core.channels import ChannelPattern, parse_channel, parse_channels
from sse_app.core.errors import InvalidChannel, SettingsError
from sse_app.core.events import EventId
from sse_app.settings.loader import load_settings
from tests.support.server_process import ServerProcess, running
from tests.support.sse_reader import EventStreamReader
from tests.support.usage import MEBIBYTE, Usage
from tests.support.waiting import until

PASSWORD = "correct horse battery"

TOKENS = st.sampled_from([b"STREAM", b"ACCESS", b"", b"x.y.z", b"%00", b"STREAM.STREAM"])
VALUES = st.one_of(
    st.sampled_from(
        [b"0", b"-1", b"1e9", b"earliest", b"latest", b"**", b"*.a", b"a,b", b"%ff", b"%00", b"=", b"&"]
    ),
    st.binary(max_size=20),
)
NAMES = st.sampled_from(
    [
        b"token",
        b"last_event_id",
        b"from",
        b"last",
        b"since",
        b"types",
        b"rate",
        b"client_id",
        b"event",
        b"retry",
        b"final",
    ]
)
PATHS = st.sampled_from(
    [
        b"/api/v1/sse/dashboard",
        b"/api/v1/sse/dashboard,alerts",
        b"/api/v1/sse/user.*",
        b"/api/v1/sse",
        b"/api/v1/sse/alerts/history",
        b"/api/v1/sse/alerts/presence",
        b"/api/v1/sse/status",
        b"/api/v1/sse/connections/x/renew",
        b"/api/v1/auth/login",
        b"/api/v1/auth/refresh",
        b"/api/v1/auth/logout",
        b"/api/v1/auth/stream-token",
        b"/api/v1/auth/me",
        b"/api/v1/admin/connections",
        b"/api/v1/admin/revocations",
        b"/api/v1/admin/audit",
        b"/healthz",
        b"/metrics",
        b"/openapi.json",
        b"/",
    ]
)
BODIES = st.one_of(
    st.sampled_from(
        [
            b'{"event":"e","data":{"x":1}}',
            b'{"events":[{"channel":"alerts","event":"e","data":{}}]}',
            b'{"username":"ann","password":"wrong"}',
            b'{"channels":["dashboard"]}',
            b'{"refresh_token":"x"}',
            b"{}",
            b"",
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["event", "data", "channel", "events"]) | st.text(), inner)
        ),
        max_leaves=20,
    ).map(lambda value: msgspec.json.encode(value) if _fits(value) else b"NaN"),
    st.binary(max_size=200),
)


def _fits(value: Any) -> bool:
    with suppress(Exception):
        msgspec.json.encode(value)
        return True
    return False


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Make up a request, and change some of its bytes now and then."""
    method = draw(
        st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"get", b"PRI"])
    )
    query = b"&".join(
        name + b"=" + value for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    )
    token = draw(TOKENS)
    body = draw(BODIES)
    headers = [
        b"Host: localhost",
        b"Authorization: Bearer " + draw(TOKENS),
        b"Content-Type: "
        + draw(st.sampled_from([b"application/json", b"text/plain", b"text/html; charset=utf-16", b""])),
        b"Content-Length: %d" % len(body),
        *draw(
            st.lists(
                st.sampled_from(
                    [
                        b"Last-Event-ID: x-1",
                        b"Idempotency-Key: k",
                        b"Connection: close",
                        b"Expect: 100-continue",
                        b"Transfer-Encoding: chunked",
                        b"Origin: http://evil.example",
                        b"Content-Encoding: gzip",
                        b"X-Forwarded-For: 1.2.3.4",
                    ]
                ),
                max_size=3,
                unique=True,
            )
        ),
    ]
    target = draw(PATHS) + b"?token=" + token + b"&" + query
    target = bytes(byte for byte in target if 32 < byte < 127) if draw(st.booleans()) else target
    made = bytearray(b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, target, b"\r\n".join(headers), body))
    for place, byte in draw(
        st.lists(st.tuples(st.integers(0, len(made) - 1), st.integers(0, 255)), max_size=3)
    ):
        if draw(st.booleans()):
            made[place] = byte
    return bytes(made)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {"KEEPALIVE__PING_INTERVAL": 1, "LIMITS__CONNECTIONS_PER_ADDRESS": 1000}
    expected = ("login_refused", "proxy_not_trusted")
    with running(
        state_dir=tmp_path_factory.mktemp("fuzz") / "state", expected=expected, **settings
    ) as server:
        server.add_user("ann", PASSWORD, subscribe="**", publish="alerts")
        yield server


def send(server: ServerProcess, request: bytes) -> bytes:
    """Send a request, and return what comes back until the server waits for more, or streams."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(request)
        sock.settimeout(0.05)
        with suppress(OSError):
            return sock.recv(65_536)
    return b""


@pytest.mark.slow
@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.long)])
def test_no_made_up_request_is_a_5xx_or_leaves_anything(server: ServerProcess, count: int) -> None:
    tokens = {
        b"STREAM": server.stream_token("**").encode(),
        b"ACCESS": server.access_token(admin=True).encode(),
    }

    @hypothesis(max_examples=count, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(requests())
    def ask(request: bytes) -> None:
        for name, token in tokens.items():
            request = request.replace(name, token)
        answer = send(server, request)
        assert not answer.startswith(b"HTTP/1.1 5"), (request, answer)

    for _ in range(100):
        send(
            server,
            b"GET /api/v1/sse/dashboard?token=" + tokens[b"STREAM"] + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
    settle(server)
    assert server.process is not None
    pid = server.process.pid
    before = Usage(pid)
    ask()
    settle(server)
    until(lambda: Usage(pid).descriptors <= before.descriptors, "no connection is left")
    after = Usage(pid)
    assert after.threads <= before.threads + 4  # those of pools come when they are needed, and stay
    assert after.resident < before.resident + 16 * MEBIBYTE + 200 * count


def settle(server: ServerProcess) -> None:
    """Wait until no stream and no connection is left but one's own."""

    def is_quiet() -> bool:
        status = httpx.get(f"{server.url}/api/v1/sse/status").json()
        return bool(status["total_connections"] == 0)

    until(is_quiet, "no stream is left")


@pytest.mark.parametrize(
    "read", [EventId.parse, parse_channel, ChannelPattern, lambda text: parse_channels(text, 5)]
)
@hypothesis(max_examples=500, deadline=None)
@given(text=st.one_of(st.text(), st.from_regex(r"[a-z.*,0-9-]{0,40}", fullmatch=True)))
def test_an_id_a_channel_or_a_pattern_is_read_or_refused(read: Callable[[str], object], text: str) -> None:
    with suppress(InvalidChannel):
        read(text)


@hypothesis(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_a_stream_cut_anywhere_is_read_as_it_is_in_one_piece(stream: bytes, cuts: list[int]) -> None:
    whole = EventStreamReader(strict=False).feed(stream)
    reader, read = EventStreamReader(strict=False), []
    places = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    for begin, end in pairwise(places):
        read += reader.feed(stream[begin:end])
    assert read == whole


KEYS = st.sampled_from(
    [
        "port",
        "host",
        "workers",
        "channels",
        "keepalive",
        "limits",
        "history",
        "auth",
        "log",
        "event_log",
        "node",
        "x",
    ]
)
TREES = st.recursive(
    st.booleans()
    | st.integers()
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.sampled_from(["size", "ping_interval"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@hypothesis(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=3))
def test_settings_are_in_force_or_refused_in_one_line(values: dict[str, Any]) -> None:
    refusal = ""
    try:
        load_settings(None, values)
    except SettingsError as error:
        refusal = str(error)
    assert "\n" not in refusal
