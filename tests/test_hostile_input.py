"""What a real server answers to malformed, oversized and hostile requests: a 4xx with a JSON error, never a 5xx.

Requests are written to the socket byte by byte: an HTTP client library would repair or refuse most of them.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.server_process import ServerProcess

ORIGINS = ("http://localhost:3020", "https://desk.example.com")
CHANNELS = ["dashboard", "alerts", "training", "backtest", "user.**"]
MIB = 1 << 20
EVENT_ID = re.compile(r"[A-Za-z0-9]+-[0-9]+")


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return strict_json(self.body)


@dataclass(frozen=True)
class Event:
    """One event of a stream, parsed as the standard says."""

    type: str
    data: str
    id: str | None
    retry: str | None

    def json(self) -> Any:
        return strict_json(self.data)


class Stream:
    """An open stream."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._response = response

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        lines = iter(self._response.readline, b"")
        for line in lines:
            text = line.decode().rstrip("\r\n")
            if text:
                name, _, value = text.partition(":")
                assert name in ("id", "event", "data", "retry", ""), f"injected field {text!r}"
                assert name in ("data", "") or name not in fields, f"field {name} twice"
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value
            elif fields:
                if "data" in fields:
                    yield Event(
                        fields.get("event", "message"), fields["data"], fields.get("id"), fields.get("retry")
                    )
                fields = {}

    def next(self, *types: str) -> Event:
        """Return the next event, or the next of these types."""
        for event in self:
            if not types or event.type in types:
                return event
        pytest.fail("the stream ended")

    def events_until(self, type: str) -> list[Event]:
        """Return the events before the first of this type."""
        found: list[Event] = []
        for event in self:
            if event.type == type:
                return found
            found.append(event)
        pytest.fail("the stream ended")


def strict_json(text: str | bytes) -> Any:
    """Parse JSON as a browser would: no NaN, no Infinity, and here no key twice either."""

    def constant(name: str) -> NoReturn:
        pytest.fail(f"{name} is not JSON")

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in members}) == len(members), f"a key twice: {members}"
        return dict(members)

    return json.loads(text, parse_constant=constant, object_pairs_hook=pairs)


def request(
    method: str, target: str | bytes, *headers: str | bytes, body: bytes | None = None, version: str = "1.1"
) -> bytes:
    """Return a request's bytes; a ``Content-Length`` is added to a body unless the headers frame it."""
    as_bytes = [header if isinstance(header, bytes) else header.encode() for header in headers]
    framed = any(re.match(rb"(?i)(content-length|transfer-encoding):", header) for header in as_bytes)
    if body is not None and not framed:
        as_bytes.append(b"Content-Length: %d" % len(body))
    target = target if isinstance(target, bytes) else target.encode()
    start = [b"%s %s HTTP/%s" % (method.encode(), target, version.encode()), b"Host: localhost"]
    return b"\r\n".join([*start, *as_bytes, b"", body or b""])


class Target:
    """The server under attack, with a token of each kind that is good for every channel."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.access = server.access_token()
        self.stream_token = server.stream_token("**")
        self.bearer = f"Authorization: Bearer {self.access}"

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=timeout)

    def send(self, data: bytes, timeout: float = 10) -> Answer:
        """Send bytes and return the first answer to them."""
        method = data.split(b" ", 1)[0].decode("latin-1")
        with self.connect(timeout) as connection:
            connection.sendall(data)
            with closing(HTTPResponse(connection, method=method)) as response:
                response.begin()
                headers = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, headers, response.read())

    def raw(self, data: bytes) -> bytes:
        """Send bytes, end the sending side, and return all that comes back."""
        received = b""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
            except TimeoutError:
                raise
            except OSError:
                pass  # The server has hung up on it: what came until then is the answer.
        return received

    def get(self, target: str | bytes, *headers: str | bytes) -> Answer:
        return self.send(request("GET", target, "Connection: close", *headers))

    def history(self, channel: str, query: str = "") -> Answer:
        return self.get(f"/api/v1/sse/{channel}/history{query}", self.bearer)

    def stored(self, channel: str) -> list[Any]:
        """Return all that the log has of a channel."""
        answer = self.history(channel, "?limit=1000")
        assert answer.status == 200, answer
        events = answer.json()["events"]
        assert isinstance(events, list)
        return events

    def post(self, target: str, body: bytes | object, *headers: str | bytes, bearer: bool = True) -> Answer:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = [header for header in (self.bearer,) if bearer]
        return self.send(request("POST", target, "Connection: close", *own, *headers, body=payload))

    def publish(self, channel: str, body: bytes | object, *headers: str | bytes) -> Answer:
        return self.post(f"/api/v1/sse/{channel}", body, *headers)

    @contextmanager
    def stream(
        self, channels: str, query: str = "", *headers: str | bytes, version: str = "1.1"
    ) -> Iterator[Stream]:
        target = f"/api/v1/sse/{channels}?token={self.stream_token}{query}"
        with self.connect() as connection:
            connection.sendall(request("GET", target, *headers, version=version))
            with closing(HTTPResponse(connection)) as response:
                response.begin()
                yield Stream(response)

    def open(self, channels: str, query: str = "", *headers: str | bytes) -> Answer:
        """Open a stream and leave at once; the body is that of a refusal, and empty for a stream."""
        with self.stream(channels, query, *headers) as stream:
            body = b"" if stream.status == 200 else stream._response.read()
            return Answer(stream.status, stream.headers, body)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    server = ServerProcess(
        state_dir=tmp_path_factory.mktemp("hostile") / "state",
        expected=("login_refused",),
        CORS_ORIGINS=list(ORIGINS),
        CHANNELS=CHANNELS,
    )
    server.start()
    try:
        yield Target(server)
        assert server.stop() == 0
    finally:
        server.kill()
    server.check_log()


@pytest.fixture(autouse=True)
def the_log_stays_quiet_and_the_server_alive(target: Target) -> Iterator[None]:
    before = target.server.log_path.stat().st_size
    yield
    assert target.get("/healthz").status == 200
    with target.server.log_path.open("rb") as log:
        log.seek(before)
        new = log.read().decode()
    assert "Traceback" not in new, new
    for line in filter(None, new.split("\n")):
        assert json.loads(line)["level"] in ("debug", "info") or "login_refused" in line, line


def assert_refused(answer: Answer, *statuses: int) -> str:
    """Check that an answer is one of these errors, in the form of all errors, and return its message."""
    assert answer.status in statuses, answer
    assert answer.headers["content-type"].startswith("application/json"), answer
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) >= {"code", "message"}
    assert isinstance(document["error"]["message"], str)
    assert re.fullmatch(r"[a-z_0-9]+", document["error"]["code"])
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    if answer.status == 405:
        assert answer.headers["allow"]
    message: str = document["error"]["message"]
    return message


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


# Channel names


BAD_CHANNELS = [
    "Dashboard",
    "DASHBOARD",
    "dashboard%0a",
    "%0adashboard",
    "dash%0aboard",
    "dash%0d%0aX-Evil:%201",
    "dashboard%00",
    "%00",
    "dashboard%20",
    "%20dashboard",
    "dash+board",
    "dash%2fboard",
    "..%2f..%2fetc%2fpasswd",
    "..",
    ".",
    ".dashboard",
    "dashboard.",
    "user..ann",
    "*",
    "**",
    "user.*",
    "user.**",
    "%2a%2a",
    "%ff",
    "dashboard%ff",
    "%c3%28",
    "%ed%a0%80",
    "d%c3%a9sk",
    "%d9%a3",
    "%ef%bc%a1",
    "%",
    "%zz",
    "dashboard%",
    "a" * 65,
    "user." + "a" * 65,
    "dashboard,",
    ",dashboard",
    ",",
    "dashboard,,alerts",
    "dashboard,%20alerts",
    "dashboard,Alerts",
    "{sub}",
    "user.{sub}",
    "%3cscript%3e",
    "'%20or%201=1--",
    "$(reboot)",
    "dashboard%e2%80%a8",
    "dashboard%7f",
    "x" * 20_000,
]


@pytest.mark.parametrize("channel", BAD_CHANNELS, ids=lambda name: name[:40])
def test_a_malformed_channel_is_400_for_streams_publishers_and_history(target: Target, channel: str) -> None:
    assert_refused(target.open(channel), 400)
    assert_refused(target.publish(channel, {"event": "e", "data": {}}), 400)
    assert_refused(target.history(channel), 400)


@pytest.mark.parametrize("raw", [b"dash\xffboard", b"d\xc3\xa9sk", b"dashboard\x80", b"\xed\xa0\x80"])
def test_a_channel_in_bytes_that_belong_escaped_is_400(target: Target, raw: bytes) -> None:
    path = b"/api/v1/sse/" + raw
    assert target.get(path + b"?token=" + target.stream_token.encode()).status == 400


def test_a_channel_of_the_longest_segments_is_none_the_worse_for_it(target: Target) -> None:
    assert target.open("user." + "a" * 64 + ".-_9").status == 200


def test_a_channel_of_very_many_segments_is_answered_like_any_other(target: Target) -> None:
    assert target.open("user" + ".a" * 5_000).status in (200, 400)


def test_more_channels_than_allowed_are_400(target: Target) -> None:
    names = [f"user.n{number}" for number in range(33)]
    assert target.open(",".join(names[:32])).status == 200
    assert_refused(target.open(",".join(names)), 400)
    assert_refused(target.open(",".join(names * 100)), 400)


def test_a_channel_named_twice_is_not_delivered_twice(target: Target) -> None:
    with target.stream("user.twice,user.twice") as stream:
        if stream.status == 200:
            assert stream.next().json()["channels"] == ["user.twice"]
            for number in range(3):
                assert target.publish("user.twice", {"event": "e", "data": {"n": number}}).status == 201
            assert [stream.next("e").json()["n"] for _ in range(3)] == [0, 1, 2]
        else:
            assert stream.status == 400


def test_status_is_no_channel(target: Target) -> None:
    assert_refused(target.open("dashboard,status"), 400, 404)
    assert_refused(target.publish("status", {"event": "e", "data": {}}), 405)
    assert_refused(target.history("status"), 400, 404)
    batch = {"events": [{"channel": "status", "event": "e", "data": {}}]}
    assert_refused(target.post("/api/v1/sse", batch), 400, 404, 422)


def test_publishing_to_several_channels_in_one_path_is_400(target: Target) -> None:
    assert_refused(target.publish("dashboard,alerts", {"event": "e", "data": {}}), 400)
    assert_refused(target.history("dashboard,alerts"), 400)


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/api/v1/sse/dashboard/nope",
        "/api/v1/sse/dashboard/history/more",
        "/api/v1/sse//",
        "/api/v2/sse/dashboard",
        "/api/v1",
        "/%ff",
        "/%00",
        "/%0d%0aX-Evil:%201",
        "//evil.example/%2e%2e",
        "/..%2f..%2f..%2fetc/passwd",
        "/../../../../etc/passwd",
        "/static/../../../../etc/passwd",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/static/%00",
        "/static/%ff",
        "/static/",
        "/api/v1/auth/nope",
    ],
)
def test_a_path_that_leads_nowhere_is_a_json_error(target: Target, path: str) -> None:
    answer = target.get(path)
    assert_refused(answer, 400, 403, 404)
    assert b"root:" not in answer.body
    assert "x-evil" not in answer.headers


# Positions


BAD_POSITIONS = [
    "%0a",
    "%00",
    "%0d",
    "%09",
    "%1b",
    "%7f",
    "%01",
    "abc-1%0a",
    "%0aabc-1",
    "abc-1%00",
    "abc-1%0d%0aid:%20evil-1",
    "abc%09-1",
    "a" * 129,
    "a" * 5_000,
    "%c3%a9" * 65,
    "abc-" + "1" * 125,
    "%0a%0a%0a%0a",
    "%20%0a%20",
]


@pytest.mark.parametrize("position", BAD_POSITIONS, ids=lambda value: value[:40])
def test_a_position_with_control_characters_or_over_128_bytes_is_400(target: Target, position: str) -> None:
    assert_refused(target.open("dashboard", f"&last_event_id={position}"), 400)
    assert_refused(target.history("dashboard", f"?after={position}"), 400)


UNREADABLE_POSITIONS = [
    "abc",
    "-",
    "--",
    "-1",
    "1",
    "0",
    "abc-1",
    "EPOCH-",
    "EPOCH--1",
    "EPOCH-%2b1",
    "EPOCH-%201",
    "%20EPOCH-1",
    "EPOCH-1%20",
    "EPOCH-1_0",
    "EPOCH-1e1",
    "EPOCH-0x1",
    "EPOCH-1.0",
    "EPOCH-%d9%a1",
    "EPOCH-%c2%b2",
    "EPOCH-999999999",
    "EPOCH-9223372036854775807",
    "EPOCH-9223372036854775808",
    "EPOCH-18446744073709551616",
    "EPOCH-99999999999999999999999999999999999999",
    "EPOCH-1-1",
    "EPOCH-nan",
    "EPOCH-1;drop",
    "EPOCH-1:0",
    "null",
    "undefined",
    "a" * 128,
    "%c3%a9" * 64,
    "%20",
    "%e2%80%a8",
    "%f0%9f%98%80-1",
    "'%20OR%201=1",
]


@pytest.mark.parametrize("position", UNREADABLE_POSITIONS, ids=lambda value: value[:40])
def test_a_position_that_cannot_be_continued_brings_a_reset_and_no_silent_gap(
    target: Target, position: str
) -> None:
    made = target.publish("training", {"event": "e", "data": {}}).json()["id"]
    position = position.replace("EPOCH", made.rpartition("-")[0])
    with target.stream("dashboard,training", f"&last_event_id={position}") as stream:
        assert stream.status == 200
        connected = stream.next()
        assert connected.type == "connected"
        assert connected.json()["recovered"] is False
        assert connected.id is not None
        assert EVENT_ID.fullmatch(connected.id), connected
        resets = [stream.next(), stream.next()]
        assert [event.type for event in resets] == ["reset", "reset"]
        assert {event.json()["channel"] for event in resets} == {"dashboard", "training"}
        live = target.publish("training", {"event": "live", "data": {}}).json()["id"]
        event = stream.next()
        assert (event.type, event.id) == ("live", live)
    history = target.history("training", f"?after={position}")
    assert history.status == 200
    assert history.json()["complete"] is False


@pytest.mark.parametrize("position", ["%ff", "abc%ff-1", "%c3%28", "%ed%a0%80", "%c2%85"])
def test_a_position_that_is_no_utf_8_is_400_or_a_reset(target: Target, position: str) -> None:
    with target.stream("dashboard", f"&last_event_id={position}") as stream:
        assert stream.status in (200, 400)
        if stream.status == 200:
            assert stream.next().type == "connected"
            assert stream.next().type == "reset"
    assert target.history("dashboard", f"?after={position}").status in (200, 400)


def test_an_empty_position_is_none_at_all(target: Target) -> None:
    target.publish("user.empty", {"event": "old", "data": {}})
    for headers in ((), ("Last-Event-ID:",), ("Last-Event-ID:   ",)):
        with target.stream("user.empty", "&last_event_id=", *headers) as stream:
            assert stream.next().json()["recovered"] is False
            made = target.publish("user.empty", {"event": "new", "data": {}}).json()["id"]
            event = stream.next()
            assert (event.type, event.id) == ("new", made)


def test_the_header_wins_over_the_query_and_an_empty_header_does_not(target: Target) -> None:
    first, second = (target.publish("user.both", {"event": "e", "data": {}}).json()["id"] for _ in range(2))
    with target.stream("user.both", f"&last_event_id={second}", f"Last-Event-ID: {first}") as stream:
        assert stream.next().json()["recovered"] is True
        assert stream.next().id == second
    with target.stream("user.both", "&last_event_id=rubbish", f"Last-Event-ID: {first}") as stream:
        assert stream.next().json()["recovered"] is True
        assert stream.next().id == second
    with target.stream("user.both", f"&last_event_id={first}", "Last-Event-ID:") as stream:
        assert stream.next().json()["recovered"] is True
        assert stream.next().id == second


@pytest.mark.parametrize(
    "value",
    [b"a\x00b", b"a\x01", b"\x7f", b"a\tb", b"a" * 129, "é".encode() * 65, b"\x1b[31m", b"a" * 5_000],
)
def test_a_position_in_the_header_is_held_to_the_same_rules(target: Target, value: bytes) -> None:
    assert target.open("dashboard", "", b"Last-Event-ID: " + value).status == 400


@pytest.mark.parametrize("value", [b"\xff\xfe", "é".encode(), b"abc, def", b'"abc"', b"a" * 128])
def test_a_strange_position_in_the_header_is_400_or_a_reset(target: Target, value: bytes) -> None:
    with target.stream("dashboard", "", b"Last-Event-ID: " + value) as stream:
        assert stream.status in (200, 400)
        if stream.status == 200:
            assert stream.next().type == "connected"
            assert stream.next().type == "reset"


def test_two_positions_are_not_silently_one(target: Target) -> None:
    first, second = (target.publish("user.pair", {"event": "e", "data": {}}).json()["id"] for _ in range(2))
    with target.stream("user.pair", "", f"Last-Event-ID: {first}", f"Last-Event-ID: {second}") as stream:
        assert stream.status in (200, 400)
        if stream.status == 200:
            assert stream.next().type == "connected"
            assert stream.next().type == "reset"
    assert target.open("user.pair", f"&last_event_id={first}&last_event_id={second}").status in (200, 400)


# Client ids


@pytest.mark.parametrize(
    "client_id",
    [
        "tab%0a",
        "%0atab",
        "tab%00",
        "%20tab",
        "tab%20",
        "a%20b",
        "a" * 65,
        "a" * 10_000,
        "%ff",
        "t%c3%a9",
        "%d9%a3",
        "a/b",
        "a,b",
        "<b>",
        "tab%0d%0a%0d%0adata:evil",
        "{}",
        "%22",
        "tab%e2%80%a8",
    ],
    ids=lambda value: value[:40],
)
def test_a_malformed_client_id_is_400(target: Target, client_id: str) -> None:
    assert_refused(target.open("dashboard", f"&client_id={client_id}"), 400)


def test_a_client_id_of_every_allowed_character_is_told_back(target: Target) -> None:
    for client_id in ("a", "-._09azAZ", "x" * 64):
        with target.stream("dashboard", f"&client_id={client_id}") as stream:
            assert stream.next().json()["client_id"] == client_id


def test_client_ids_given_twice_are_no_crash(target: Target) -> None:
    assert target.open("dashboard", "&client_id=a&client_id=b").status in (200, 400)


@pytest.mark.parametrize(
    "query", ["&", "&&&", "&%", "&%zz=1", "&%ff=1", "&a=%ff", "&;;", "&a", "&=", "&" + "a=1&" * 2_000]
)
def test_a_strange_query_beside_good_arguments_is_no_crash(target: Target, query: str) -> None:
    assert target.open("dashboard", query).status in (200, 400)


# JSON


NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"nonsense",
    b"event=e&data=1",
    b"{'event': 'e', 'data': {}}",
    b'{"event":"e","data":{}} x',
    b'{"event":"e","data":{}}{"event":"e","data":{}}',
    b'{"event":"e","data":{},}',
    b'{"event":"e","data":{"a":NaN}}',
    b'{"event":"e","data":{"a":Infinity}}',
    b'{"event":"e","data":{"a":-Infinity}}',
    b'{"event":"e","data":{"a":01}}',
    b'{"event":"e","data":{"a":.5}}',
    b'{"event":"e","data":{"a":+1}}',
    b'{"event":"e","data":{"a":0x10}}',
    b'{"event":"e","data":{"a":1_0}}',
    b'{"event":"e","data":{"a":"\n"}}',
    b'{"event":"e","data":{"a":"\x00"}}',
    b'{"event":"e","data":{"a":"\\x41"}}',
    b'{"event":"e","data":{"a":"\\ud800"}}',
    b'{"event":"e","data":{"a":"\\udc00\\ud800"}}',
    b'{"event":"e","data":{"\\ud800":1}}',
    b'{"event":"\\ud800","data":{}}',
    b'{"\\ud800":1,"event":"e","data":{}}',
    b'{"event":"e","data":{"a":"\xff"}}',
    b'{"event":"e","data":{"a":"\xed\xa0\x80"}}',
    b'{"event":"e","data":{"a":"\xc0\x80"}}',
    b'{"event":"e\xff","data":{}}',
    b'{"event":"e","data":{}}\x00',
    b"\x00",
    b'{"event":"e","data":{}} // comment',
    '{"event":"e","data":{}}'.encode("utf-16"),
    '{"event":"e","data":{}}'.encode("utf-16-le"),
    '{"event":"e","data":{}}'.encode("utf-32"),
    gzip.compress(b'{"event":"e","data":{}}', mtime=0),
    b"[" * 100_000,
    b'{"event":"e","data":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    b'{"event":"e","data":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"event":' + b"[" * 5_000 + b"]" * 5_000 + b',"data":{}}',
    b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n",
]


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:40]))
def test_a_body_that_is_no_json_is_refused_and_stores_nothing(target: Target, body: bytes) -> None:
    assert_refused(target.publish("user.nojson", body), 400, 415, 422)
    assert_refused(target.post("/api/v1/sse", body), 400, 415, 422)
    assert_refused(target.post("/api/v1/auth/login", body, bearer=False), 400, 415, 422)
    if body:  # Without a body this is a request for all that the user may have.
        assert_refused(target.post("/api/v1/auth/stream-token", body), 400, 415, 422)
    assert target.stored("user.nojson") == []


@pytest.mark.parametrize("body", [b"[]", b"[1]", b'"text"', b"1", b"null", b"true", b"1e999", b"{}", b"-0"])
def test_a_body_of_the_wrong_shape_is_refused(target: Target, body: bytes) -> None:
    assert_refused(target.publish("user.nojson", body), 400, 422)
    assert_refused(target.post("/api/v1/sse", body), 400, 422)
    assert_refused(target.post("/api/v1/auth/login", body, bearer=False), 400, 422)
    if body != b"{}":
        assert_refused(target.post("/api/v1/auth/stream-token", body), 400, 422)


def test_a_body_with_a_byte_order_mark_is_read_or_refused(target: Target) -> None:
    body = b'\xef\xbb\xbf{"event":"e","data":{}}'
    answer = target.publish("dashboard", body)
    assert answer.status == 201 or assert_refused(answer, 400, 422)


def test_a_post_without_a_body_or_a_length_is_refused(target: Target) -> None:
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse", "/api/v1/auth/login"):
        answer = target.send(request("POST", path, "Connection: close", target.bearer))
        assert_refused(answer, 400, 411, 422)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-16",
        "application/json; charset=\x80",
        "/",
        "",
    ],
)
def test_a_strange_content_type_is_no_crash(target: Target, content_type: str) -> None:
    for body in (b"%ff=%ff&&", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: x\r\n\r\n\r\n--x--"):
        header = b"Content-Type: " + content_type.encode("latin-1")
        for path in ("/api/v1/sse/dashboard", "/api/v1/auth/login", "/nope", "/api/v1/sse/status"):
            assert 400 <= target.post(path, body, header).status < 500


def test_a_compressed_body_is_refused_or_understood_but_never_a_bomb(target: Target) -> None:
    small = gzip.compress(b'{"event":"e","data":{}}')
    answer = target.publish("dashboard", small, "Content-Encoding: gzip")
    assert answer.status == 201 or assert_refused(answer, 400, 415, 422)
    bomb = gzip.compress(b'{"event":"e","data":{"a":"' + b"a" * (20 * MIB) + b'"}}')
    assert_refused(target.publish("dashboard", bomb, "Content-Encoding: gzip"), 400, 413, 415, 422)
    for encoding in ("br", "deflate", "identity, gzip", "x" * 100):
        answer = target.publish("dashboard", b"\x00\xff", f"Content-Encoding: {encoding}")
        assert_refused(answer, 400, 415, 422)


def delivered(target: Target, channel: str, publish: Callable[[], Answer]) -> list[str] | None:
    """Return an event's data as it comes live, by replay and as history's text, or None where it is refused."""
    start = target.publish(channel, {"event": "start", "data": {}}).json()["id"]
    with target.stream(channel) as live:
        live.next("connected")
        answer = publish()
        if answer.status != 201:
            assert_refused(answer, 400, 413, 422)
            return None
        texts = [live.next("e").data]
    with target.stream(channel, f"&last_event_id={start}") as replay:
        assert replay.next().type == "connected"
        again = replay.next()
        assert again.type == "e"
        texts.append(again.data)
    history = target.history(channel, f"?after={start}")
    assert history.status == 200, history
    return [*texts, history.body.decode()]


@pytest.mark.parametrize(
    "number",
    [
        "123456789012345678901234567890",
        "-123456789012345678901234567890",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "1" + "0" * 300,
    ],
    ids=lambda number: number[:32],
)
def test_integers_of_any_size_come_through_exactly(target: Target, number: str) -> None:
    body = b'{"event":"e","data":{"n":%s,"m":[{"n":%s}]}}' % (number.encode(), number.encode())
    texts = delivered(target, "user.numbers", lambda: target.publish("user.numbers", body))
    assert texts is not None
    for text in texts[:2]:
        data = strict_json(text)
        assert (data["n"], data["m"]) == (int(number), [{"n": int(number)}])
    assert strict_json(texts[2])["events"][0]["data"]["n"] == int(number)


@pytest.mark.parametrize(
    "number",
    ["0.1", "-0.0", "1e5", "1E-7", "5e-324", "1.7976931348623157e308", "0.30000000000000004", "1e-400"],
)
def test_floating_point_numbers_come_through_exactly(target: Target, number: str) -> None:
    body = b'{"event":"e","data":{"n":%s}}' % number.encode()
    texts = delivered(target, "user.numbers", lambda: target.publish("user.numbers", body))
    assert texts is not None
    for text in texts[:2]:
        assert repr(float(strict_json(text)["n"])) == repr(float(number))


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "1" * 5_000, "1" + "0" * 400 + ".5", "1e999999999"],
    ids=lambda number: number[:12],
)
def test_numbers_beyond_bounds_are_refused_or_come_through_as_json(target: Target, number: str) -> None:
    body = b'{"event":"e","data":{"n":%s}}' % number.encode()
    texts = delivered(target, "user.numbers", lambda: target.publish("user.numbers", body))
    for text in texts or ():
        assert "Infinity" not in text
        assert "NaN" not in text
        assert "null" not in text
        if number.isdigit():
            assert number in text


@pytest.mark.parametrize("levels", [100, 250, 300, 900, 1_100, 2_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_deep_nesting_comes_through_or_is_refused(target: Target, levels: int, left: str, right: str) -> None:
    nested = left * levels + "1" + right * levels
    body = f'{{"event":"e","data":{{"deep":{nested}}}}}'.encode()
    texts = delivered(target, "user.deep", lambda: target.publish("user.deep", body))
    for text in texts or ():
        assert nested in text.replace(" ", "")
    if levels <= 100:
        assert texts is not None


def test_a_batch_with_deep_nesting_is_refused_as_a_whole_or_comes_through(target: Target) -> None:
    for levels in (300, 2_000):
        nested = "[" * levels + "]" * levels
        body = (
            f'{{"events":[{{"channel":"user.deepbatch","event":"e","data":{{}}}},'
            f'{{"channel":"user.deepbatch","event":"e","data":{{"deep":{nested}}}}}]}}'
        ).encode()
        before = len(target.stored("user.deepbatch"))
        answer = target.post("/api/v1/sse", body)
        assert len(target.stored("user.deepbatch")) - before == (2 if answer.status == 201 else 0)
        if answer.status != 201:
            assert_refused(answer, 400, 422)


@pytest.mark.parametrize(
    "data",
    [
        b'{"channel":"dashboard"}',
        b'{"channel":"dashboard","channel":"alerts"}',
        b'{"ch\\u0061nnel":"dashboard"}',
        b'{"channel":null}',
        b'{"channel":{"channel":"dashboard"}}',
        b'{"a":1,"channel":"dashboard","b":2}',
    ],
)
def test_an_event_cannot_pose_as_one_of_another_channel(target: Target, data: bytes) -> None:
    body = b'{"event":"e","data":%s}' % data
    texts = delivered(target, "user.pose", lambda: target.publish("user.pose", body))
    for text in texts or ():
        document = strict_json(text)
        if "events" in document:
            document = document["events"][0]
            assert document["channel"] == "user.pose"
            document = document["data"]
        assert document["channel"] == "user.pose"


def test_a_body_cannot_choose_its_own_id_or_channel(target: Target) -> None:
    body = {"event": "e", "data": {}, "id": "evil-1", "channel": "dashboard"}
    answer = target.publish("user.fields", body)
    if answer.status == 201:
        assert answer.json()["channel"] == "user.fields"
        assert answer.json()["id"] != "evil-1"
        assert target.stored("user.fields")[-1]["channel"] == "user.fields"
    else:
        assert_refused(answer, 422)


def test_keys_given_twice_are_refused_or_the_last_one_counts(target: Target) -> None:
    body = b'{"event":"first","event":"e","data":{"a":1},"data":{"b":1,"b":2}}'
    texts = delivered(target, "user.twins", lambda: target.publish("user.twins", body))
    for text in (texts or ())[:2]:
        data = strict_json(text)
        assert (data["b"], "a" in data) == (2, False)
    hidden = b'{"event":"connected","event":"e","data":{}}'
    answer = target.publish("user.twins", hidden)
    assert answer.status in (201, 400, 422)
    turned = b'{"event":"e","event":"connected","data":{}}'
    assert_refused(target.publish("user.twins", turned), 400, 422)


@pytest.mark.parametrize(
    "data",
    [
        {"text": "a\n\nevent: evil\ndata: x\n\n"},
        {"text": "a\r\rid: evil\r\r"},
        {"text": "a\r\n\r\nretry: 0\r\n\r\n"},
        {"text": "\u0000\u2028\u2029\u0085\ufeff\x0b\x0c\x1c"},
        {"text": "😀🏴‍☠️ ﷽ \U0010ffff"},
        {"": 1, "__proto__": {"x": 1}, "\n": 2, "data: ": 3},
        {"timestamp": 5},
        {"timestamp": None},
        {"timestamp": "yesterday\n\ndata: evil"},
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_no_text_breaks_out_of_its_frame(target: Target, data: dict[str, object]) -> None:
    for raw in (json.dumps(data).encode(), json.dumps(data, ensure_ascii=False).encode()):
        body = b'{"event":"e","data":%s}' % raw
        texts = delivered(target, "user.text", lambda body=body: target.publish("user.text", body))  # type: ignore[misc]
        assert texts is not None
        for text in texts[:2]:
            document = strict_json(text)
            assert document.pop("channel") == "user.text"
            if "timestamp" not in data:
                assert document.pop("timestamp")
            assert document == data


# Event types and fields


@pytest.mark.parametrize(
    "event",
    [
        "",
        " ",
        "e\n",
        "\ne",
        "e\r",
        "e\r\n",
        "e\ndata: evil",
        "e\x00",
        "\x00",
        "e e",
        "e\t",
        "e/e",
        "é",
        "٣",
        "\uff25",
        "e\u2028",
        "e\ufeff",
        "a" * 129,
        "a" * 500_000,
        "😀",
        "connected",
        "ping",
        "reset",
        "closing",
        "open",
        "error",
        None,
        1,
        1.5,
        True,
        [],
        ["e"],
        {},
        {"e": 1},
    ],
    ids=lambda event: ascii(event)[:30],
)
def test_a_malformed_or_reserved_event_type_is_422_and_names_the_field(target: Target, event: object) -> None:
    assert "event" in assert_refused(target.publish("user.types", {"event": event, "data": {}}), 422)
    batch = {"events": [{"channel": "user.types", "event": event, "data": {}}]}
    assert "event" in assert_refused(target.post("/api/v1/sse", batch), 422)
    assert target.stored("user.types") == []


def test_event_types_of_every_allowed_character_come_through(target: Target) -> None:
    with target.stream("user.goodtypes") as stream:
        stream.next("connected")
        for event in (
            "e",
            "a" * 128,
            "A.b:c-d_9",
            "Ping",
            "CONNECTED",
            "message",
            "constructor",
            ".",
            ":",
            "-",
        ):
            assert target.publish("user.goodtypes", {"event": event, "data": {}}).status == 201
            assert stream.next().type == event


@pytest.mark.parametrize("data", [None, 1, "text", True, [], [{}], 1.5], ids=ascii)
def test_data_that_is_no_object_is_422_and_names_the_field(target: Target, data: object) -> None:
    assert "data" in assert_refused(target.publish("user.data", {"event": "e", "data": data}), 422)
    batch = {"events": [{"channel": "user.data", "event": "e", "data": data}]}
    assert "data" in assert_refused(target.post("/api/v1/sse", batch), 422)
    assert target.stored("user.data") == []


def test_a_missing_field_is_422_and_named(target: Target) -> None:
    assert "data" in assert_refused(target.publish("user.data", {"event": "e"}), 422)
    assert "event" in assert_refused(target.publish("user.data", {"data": {}}), 422)
    batch: dict[str, object] = {"events": [{"event": "e", "data": {}}]}
    assert "channel" in assert_refused(target.post("/api/v1/sse", batch), 422)
    assert "events" in assert_refused(target.post("/api/v1/sse", {}), 422)
    assert target.stored("user.data") == []


@pytest.mark.parametrize("retry", [-1, 1.5, "5", True, [], {}, 10**30, "1\ndata: evil"], ids=ascii)
def test_a_malformed_retry_is_422_and_names_the_field(target: Target, retry: object) -> None:
    body = {"event": "e", "data": {}, "retry": retry}
    assert "retry" in assert_refused(target.publish("user.retry", body), 422)
    assert target.stored("user.retry") == []


def test_a_retry_comes_through_as_a_field_of_the_event(target: Target) -> None:
    with target.stream("user.goodretry") as stream:
        stream.next("connected")
        target.publish("user.goodretry", {"event": "e", "data": {}, "retry": 5000})
        assert stream.next("e").retry == "5000"


# Batches


GOOD = {"channel": "user.batch", "event": "e", "data": {}}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({**GOOD, "event": "connected"}, "event"),
        ({**GOOD, "event": "e\n"}, "event"),
        ({**GOOD, "data": []}, "data"),
        ({**GOOD, "retry": -1}, "retry"),
        ({"event": "e", "data": {}}, "channel"),
        ({**GOOD, "channel": 1}, "channel"),
        ({**GOOD, "channel": ["user.batch"]}, "channel"),
        ({**GOOD, "channel": None}, "channel"),
        ({"channel": "user.batch", "data": {}}, "event"),
        ({"channel": "user.batch", "event": "e"}, "data"),
        ("text", "events"),
        (None, "events"),
        ([], "events"),
        (1, "events"),
    ],
    ids=lambda value: ascii(value)[:60],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_event_in_a_batch_stores_none_and_is_named(
    target: Target, bad: object, field: str, place: int
) -> None:
    events: list[object] = [GOOD, GOOD]
    events.insert(place, bad)
    message = assert_refused(target.post("/api/v1/sse", {"events": events}), 422)
    assert field in message
    assert re.search(rf"\b{place}\b", message), message
    assert target.stored("user.batch") == []


@pytest.mark.parametrize(
    "channel",
    ["Bad", "", "a..b", "user.x\n", "user.**", "\u0000", "*", "a" * 65, "x" * 100_000, "é", "a,b"],
    ids=lambda channel: ascii(channel)[:30],
)
def test_a_malformed_channel_in_a_batch_stores_none(target: Target, channel: str) -> None:
    batch = {"events": [GOOD, {**GOOD, "channel": channel}]}
    assert_refused(target.post("/api/v1/sse", batch), 400, 422)
    assert target.stored("user.batch") == []


def test_a_batch_with_an_unknown_channel_stores_none(target: Target) -> None:
    assert_refused(target.post("/api/v1/sse", {"events": [GOOD, {**GOOD, "channel": "nowhere"}]}), 404)
    assert target.stored("user.batch") == []


def test_a_batch_with_a_channel_beyond_the_grant_stores_none(target: Target) -> None:
    token = target.server.access_token(publish="user.batch")
    bearer = f"Authorization: Bearer {token}"
    batch = {"events": [GOOD, {**GOOD, "channel": "alerts"}, GOOD]}
    assert_refused(target.post("/api/v1/sse", batch, bearer, bearer=False), 403)
    batch["events"][1]["channel"] = "nowhere"
    assert_refused(target.post("/api/v1/sse", batch, bearer, bearer=False), 403)
    assert target.stored("user.batch") == []


@pytest.mark.parametrize(
    "events", [None, 1, "text", {}, True, {"0": GOOD}], ids=lambda value: ascii(value)[:20]
)
def test_a_batch_that_is_no_list_is_422_and_names_the_field(target: Target, events: object) -> None:
    assert "events" in assert_refused(target.post("/api/v1/sse", {"events": events}), 422)


def test_a_batch_of_too_many_events_stores_none(target: Target) -> None:
    assert_refused(target.post("/api/v1/sse", {"events": [GOOD] * 1_001}), 400, 413, 422)
    assert target.stored("user.batch") == []


def test_a_batch_keeps_its_order_and_an_empty_one_stores_nothing(target: Target) -> None:
    answer = target.post("/api/v1/sse", {"events": []})
    assert (answer.status, answer.body[:10]) == (201, b'{"ids":[]}'[:10]) or assert_refused(answer, 422)
    events = [{**GOOD, "channel": "user.order", "data": {"n": number}} for number in range(50)]
    answer = target.post("/api/v1/sse", {"events": events})
    assert answer.status == 201
    ids = answer.json()["ids"]
    numbers = [int(id.rpartition("-")[2]) for id in ids]
    assert numbers == list(range(numbers[0], numbers[0] + 50))
    stored = target.stored("user.order")
    assert [event["id"] for event in stored] == ids
    assert [event["data"]["n"] for event in stored] == list(range(50))


# Idempotency keys


def test_a_repeat_with_the_same_key_answers_as_the_first_did_and_stores_once(target: Target) -> None:
    body = {"event": "e", "data": {"n": 1}}
    first, second = (target.publish("user.key", body, "Idempotency-Key: one") for _ in range(2))
    assert (first.status, second.status) == (201, 201)
    assert first.json() == second.json()
    assert len(target.stored("user.key")) == 1
    batch = {"events": [{"channel": "user.key", **body}] * 3}
    first, second = (target.post("/api/v1/sse", batch, "Idempotency-Key: two") for _ in range(2))
    assert (first.status, second.status) == (201, 201)
    assert first.json() == second.json()
    assert len(target.stored("user.key")) == 4


def test_the_same_key_with_another_body_or_channel_is_422_and_stores_nothing(target: Target) -> None:
    body = {"event": "e", "data": {"n": 1}}
    target.publish("user.otherbody", body, "Idempotency-Key: three")
    other = {"event": "e", "data": {"n": 2}}
    assert_refused(target.publish("user.otherbody", other, "Idempotency-Key: three"), 422)
    assert len(target.stored("user.otherbody")) == 1
    elsewhere = target.publish("user.otherplace", body, "Idempotency-Key: three")
    if elsewhere.status == 201:
        assert elsewhere.json()["channel"] == "user.otherplace"
        assert len(target.stored("user.otherplace")) == 1
    else:
        assert_refused(elsewhere, 422)
        assert target.stored("user.otherplace") == []
    batch = {"events": [{"channel": "user.otherbody", **body}]}
    answer = target.post("/api/v1/sse", batch, "Idempotency-Key: three")
    assert answer.status == 422 or set(answer.json()) == {"ids"}


def test_keys_belong_to_their_subject(target: Target) -> None:
    body = {"event": "e", "data": {}}
    first = target.publish("user.subjects", body, "Idempotency-Key: four").json()["id"]
    other = target.server.access_token(subject="somebody-else")
    answer = target.post(
        "/api/v1/sse/user.subjects",
        {"event": "other", "data": {}},
        "Idempotency-Key: four",
        f"Authorization: Bearer {other}",
        bearer=False,
    )
    assert answer.status == 201
    assert answer.json()["id"] != first
    assert len(target.stored("user.subjects")) == 2


def test_concurrent_duplicates_store_once_and_all_get_the_same_answer(target: Target) -> None:
    answers: list[Answer] = []
    start = threading.Barrier(12)

    def publish() -> None:
        start.wait()
        answers.append(target.publish("user.race", {"event": "e", "data": {}}, "Idempotency-Key: five"))

    threads = [threading.Thread(target=publish) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [201] * 12
    assert len({answer.body for answer in answers}) == 1
    assert len(target.stored("user.race")) == 1


def test_concurrent_bodies_under_one_key_store_exactly_one_of_them(target: Target) -> None:
    answers: list[Answer] = []
    start = threading.Barrier(8)

    def publish(number: int) -> None:
        start.wait()
        body = {"event": "e", "data": {"n": number}}
        answers.append(target.publish("user.bodies", body, "Idempotency-Key: six"))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [201] + [422] * 7
    assert len(target.stored("user.bodies")) == 1


def test_a_refused_request_is_not_remembered_as_an_event(target: Target) -> None:
    assert_refused(target.publish("user.later", {"event": "ping", "data": {}}, "Idempotency-Key: seven"), 422)
    assert target.stored("user.later") == []
    answer = target.publish("user.later", {"event": "ok", "data": {}}, "Idempotency-Key: seven")
    assert answer.status == 201


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b" ",
        b"\xff\xfe",
        "é".encode(),
        b"a" * 256,
        b"a" * 5_000,
        b'"',
        b"'; drop table",
        b"a, b",
        b"a\tb",
    ],
)
def test_a_strange_key_is_taken_or_refused(target: Target, key: bytes) -> None:
    answer = target.publish("user.keys", {"event": "e", "data": {}}, b"Idempotency-Key: " + key)
    assert answer.status == 201 or assert_refused(answer, 400, 422)


# History


@pytest.mark.parametrize(
    "limit",
    ["abc", "-1", "1.5", "%0a5", "5%0a", "1_0", "%d9%a3", "0x5", "nan", "1e1", "--1", "%ff", "%00", "5,5"],
)
def test_a_malformed_limit_is_400(target: Target, limit: str) -> None:
    assert_refused(target.history("dashboard", f"?limit={limit}"), 400, 422)


@pytest.mark.parametrize(
    "limit", ["0", "", "%205", "1000000000", "9223372036854775808", "9" * 100, "9" * 5_000, "5&limit=6"]
)
def test_a_strange_limit_is_taken_or_refused(target: Target, limit: str) -> None:
    answer = target.history("dashboard", f"?limit={limit}")
    assert answer.status == 200 or assert_refused(answer, 400, 422)


def test_history_answers_in_order_after_a_position_and_within_a_limit(target: Target) -> None:
    ids = [
        target.publish("user.past", {"event": "e", "data": {"n": number}}).json()["id"] for number in range(5)
    ]
    answer = target.history("user.past", f"?after={ids[1]}&limit=2").json()
    assert [event["id"] for event in answer["events"]] == ids[2:4]
    assert answer["complete"] is True
    assert set(answer["events"][0]) == {"id", "channel", "event", "data"}
    assert target.history("user.past", f"?after={ids[4]}").json() == {"events": [], "complete": True}


def test_history_wants_an_access_token_in_the_header(target: Target) -> None:
    path = "/api/v1/sse/dashboard/history"
    assert_refused(target.get(path), 401)
    assert_refused(target.get(f"{path}?token={target.stream_token}"), 401)
    assert_refused(target.get(f"{path}?token={target.access}"), 401)
    assert_refused(target.get(path, f"Authorization: Bearer {target.stream_token}"), 401)
    narrow = target.server.access_token(subscribe="alerts")
    assert_refused(target.get(path, f"Authorization: Bearer {narrow}"), 403)
    assert_refused(target.history("nowhere"), 404)


# Sizes


def body_of(size: int) -> bytes:
    """Return a good body of exactly so many bytes."""
    body = b'{"event":"big","data":{"a":""}}'
    return body.replace(b'""', b'"%s"' % (b"a" * (size - len(body))))


@pytest.mark.parametrize(
    "path", ["/api/v1/sse/dashboard", "/api/v1/sse", "/api/v1/auth/login", "/api/v1/auth/stream-token"]
)
def test_a_body_over_1_mib_is_413_by_its_length_and_by_its_chunks(target: Target, path: str) -> None:
    assert_refused(target.post(path, body_of(MIB + 1)), 413)
    head = ("Connection: close", target.bearer)
    pieces = [b"a" * 65536] * 17
    data = request("POST", path, *head, "Transfer-Encoding: chunked", body=chunked(*pieces))
    assert_refused(target.send(data), 413)


def test_a_client_that_sends_a_body_and_a_half_sees_the_413_and_no_reset(target: Target) -> None:
    for _ in range(5):
        for body, framing in (
            (body_of(MIB * 3 // 2), f"Content-Length: {MIB * 3 // 2}"),
            (chunked(*[b"a" * 65536] * 24), "Transfer-Encoding: chunked"),
        ):
            with target.connect() as connection:
                connection.sendall(
                    request("POST", "/api/v1/sse/dashboard", target.bearer, framing, body=body)
                )
                time.sleep(0.05)  # A slow client: a reset in this time would take the answer with it.
                with closing(HTTPResponse(connection)) as response:
                    response.begin()
                    answer = Answer(
                        response.status,
                        {name.lower(): value for name, value in response.getheaders()},
                        response.read(),
                    )
            assert_refused(answer, 413)


def test_a_large_body_where_none_belongs_is_a_4xx_and_no_reset(target: Target) -> None:
    body = b"a" * (MIB * 3 // 2)
    for method, path in (
        ("POST", "/nope"),
        ("PUT", "/api/v1/sse/dashboard"),
        ("POST", "/api/v1/sse/BAD"),
        ("POST", "/api/v1/sse/status"),
        ("GET", "/api/v1/sse/dashboard"),
    ):
        answer = target.send(request(method, path, "Connection: close", body=body))
        assert_refused(answer, 400, 401, 404, 405, 413)
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse"):
        answer = target.post(path, body, "Authorization: Bearer nonsense", bearer=False)
        assert_refused(answer, 401, 413)


def test_a_chunked_body_of_9_mib_is_413_too(target: Target) -> None:
    head = request("POST", "/api/v1/sse/dashboard", target.bearer, "Transfer-Encoding: chunked")
    with target.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(head + chunked(*[b"a" * 65536] * 144))
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            assert_refused(Answer(response.status, headers, response.read()), 413)


@pytest.mark.parametrize(
    "length", [str(MIB + 1), str(2 * MIB), str(200 * MIB), "9" * 18, "9" * 30, "9" * 5_000], ids=len
)
@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["", "expect"])
def test_a_length_over_1_mib_is_413_before_any_of_the_body_is_sent(
    target: Target, length: str, more: tuple[str, ...]
) -> None:
    head = ("Connection: close", target.bearer, f"Content-Length: {length}", *more)
    assert_refused(target.send(request("POST", "/api/v1/sse/dashboard", *head), timeout=2), 413)


def test_a_body_of_exactly_1_mib_is_published_delivered_live_and_replayed(target: Target) -> None:
    start = target.publish("user.large", {"event": "start", "data": {}}).json()["id"]
    with target.stream("user.large") as live:
        live.next("connected")
        answer = target.publish("user.large", body_of(MIB))
        assert answer.status == 201
        event = live.next()
        assert (event.type, event.id) == ("big", answer.json()["id"])
        assert len(event.json()["a"]) == MIB - 31
    with target.stream("user.large", f"&last_event_id={start}") as replay:
        assert [replay.next().type, replay.next().type] == ["connected", "big"]
        target.publish("user.large", {"event": "after", "data": {}})
        assert replay.next().type == "after"


@pytest.mark.parametrize(
    "framing",
    [b"zz\r\n", b"-1\r\n\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nabc", b"3\r\nabcde\r\n0\r\n\r\n"],
)
def test_malformed_chunks_are_no_crash(target: Target, framing: bytes) -> None:
    head = request("POST", "/api/v1/sse/dashboard", target.bearer, "Transfer-Encoding: chunked")
    assert_4xx_or_nothing(target.raw(head + framing))


@pytest.mark.parametrize("length", ["-1", "+5", "abc", "5, 6", "1e3", "", "0x10", "5 5", "٣"])
def test_a_malformed_content_length_is_a_4xx(target: Target, length: str) -> None:
    head = request("POST", "/api/v1/sse/dashboard", target.bearer, f"Content-Length: {length}")
    assert_4xx_or_nothing(target.raw(head + b'{"event":"e","data":{}}'))


# HTTP itself


def assert_4xx_or_nothing(received: bytes) -> None:
    """Check an answer to what is hardly HTTP: a 4xx without a body will do, and so will a closed connection."""
    assert not received or re.match(rb"HTTP/1\.[01] 4\d\d ", received), received[:200]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / FTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /api/v1/sse/dash board HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /nope HTTP/1.1\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a/b?c\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\nX\xff: b\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
        b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda data: repr(data[:50]),
)
def test_what_is_hardly_http_is_a_4xx_or_a_closed_connection(target: Target, data: bytes) -> None:
    assert_4xx_or_nothing(target.raw(data))


def test_clients_that_leave_in_the_middle_are_not_the_servers_trouble(target: Target) -> None:
    whole = request("POST", "/api/v1/sse/user.torn", target.bearer, body=b'{"event":"e","data":{}}')
    for cut in (1, 20, len(whole) // 2, len(whole) - 1):
        for abrupt in (True, False):
            with target.connect() as connection:
                connection.sendall(whole[:cut])
                if abrupt:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert target.stored("user.torn") == []
    stream = request("GET", f"/api/v1/sse/user.torn?token={target.stream_token}")
    for _ in range(10):
        with target.connect() as connection:
            connection.sendall(stream)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert target.publish("user.torn", {"event": "e", "data": {}}).status == 201


def test_what_a_client_sends_behind_its_stream_request_does_not_disturb_the_stream(target: Target) -> None:
    first = request("GET", f"/api/v1/sse/user.piped?token={target.stream_token}")
    more = request("POST", "/api/v1/sse/user.piped", target.bearer, body=b'{"event":"smuggled","data":{}}')
    with target.connect() as connection:
        connection.sendall(first + more + b"\x00\xff rubbish \r\n\r\n" * 1_000)
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            stream = Stream(response)
            assert stream.next().type == "connected"
            assert target.publish("user.piped", {"event": "e", "data": {}}).status == 201
            assert stream.next().type == "e"


def test_an_http_1_0_client_gets_the_same_bytes_unframed(target: Target) -> None:
    for headers in ((), ("Connection: keep-alive",), ("Connection: close",)):
        data = request("GET", f"/api/v1/sse/user.old?token={target.stream_token}", *headers, version="1.0")
        with target.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(data)
            status = file.readline()
            assert re.match(rb"HTTP/1\.[01] 200 ", status)
            head = b"".join(iter(file.readline, b"\r\n")).lower()
            assert b"transfer-encoding" not in head
            assert b"content-length" not in head
            assert b"content-type: text/event-stream" in head
            assert re.fullmatch(rb"retry: ?\d+\n", file.readline())
            frame = b""
            while b'"client_id"' not in frame:
                frame = b"".join(iter(file.readline, b"\n"))
            made = target.publish("user.old", {"event": "e", "data": {"n": 1}}).json()["id"]
            lines = b"".join(iter(file.readline, b"\n")).decode().splitlines()
            assert {line.partition(":")[0] for line in lines} == {"id", "event", "data"}
            assert f"id: {made}" in lines


def test_an_http_1_0_client_gets_its_errors_too(target: Target) -> None:
    for path, status in (("/api/v1/sse/dashboard", 401), ("/api/v1/sse/BAD", 400), ("/nope", 404)):
        assert_refused(target.send(request("GET", path, version="1.0")), status)
    body = body_of(MIB * 3 // 2)
    answer = target.send(request("POST", "/api/v1/sse/dashboard", target.bearer, body=body, version="1.0"))
    assert_refused(answer, 413)


def test_a_stream_has_the_headers_of_the_contract(target: Target) -> None:
    with target.stream("dashboard") as stream:
        for name, value in {
            "content-type": "text/event-stream",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }.items():
            assert stream.headers[name].partition(";")[0] == value
        assert "content-encoding" not in stream.headers


# Methods


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/sse/dashboard", {"GET", "POST"}),
        ("/api/v1/sse/BAD", {"GET", "POST"}),
        ("/api/v1/sse", {"POST"}),
        ("/api/v1/sse/status", {"GET"}),
        ("/api/v1/sse/dashboard/history", {"GET"}),
        ("/api/v1/auth/login", {"POST"}),
        ("/api/v1/auth/stream-token", {"POST"}),
        ("/api/v1/auth/me", {"GET"}),
        ("/healthz", {"GET"}),
        ("/readyz", {"GET"}),
        ("/metrics", {"GET"}),
    ],
)
def test_a_method_that_is_not_there_is_405_with_what_is(target: Target, path: str, allowed: set[str]) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "get", "PROPFIND"):
        if method in allowed:
            continue
        answer = target.send(request(method, path, "Connection: close", body=b""))
        assert_refused(answer, 405)
        named = {name.strip() for name in answer.headers["allow"].split(",")}
        assert allowed <= named <= allowed | {"HEAD", "OPTIONS"}, (method, named)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/sse/dashboard",
        "/api/v1/sse/status",
        "/api/v1/sse/BAD",
        "/healthz",
        "/nope",
        "/api/v1/auth/login",
    ],
)
def test_head_is_answered_at_once_and_without_a_body(target: Target, path: str) -> None:
    query = f"?token={target.stream_token}" if path.endswith("dashboard") else ""
    with target.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(request("HEAD", path + query, "Connection: close"))
        status = file.readline()
        assert re.match(rb"HTTP/1\.1 [24]\d\d ", status), status
        b"".join(iter(file.readline, b"\r\n"))
        assert file.read() == b""


# Errors, in their order


def test_errors_come_in_the_order_of_the_contract_for_streams(target: Target) -> None:
    narrow = target.server.stream_token("dashboard")
    sse = "/api/v1/sse"
    for method, path, status in (
        ("PUT", f"{sse}/BAD?token=x", 405),
        ("GET", f"{sse}/BAD?token=x", 400),
        ("GET", f"{sse}/dashboard?token=x&client_id=%0a", 400),
        ("GET", f"{sse}/dashboard?token=x&last_event_id=%0a", 400),
        ("GET", f"{sse}/dashboard?last_event_id=%0a", 400),
        ("GET", f"{sse}/{','.join(f'user.n{n}' for n in range(40))}", 400),
        ("GET", f"{sse}/nowhere?token=x", 401),
        ("GET", f"{sse}/nowhere", 401),
        ("GET", f"{sse}/alerts?token=x", 401),
        ("GET", f"{sse}/alerts?token={target.access}", 401),
        ("GET", f"{sse}/nowhere?token={narrow}", 403),
        ("GET", f"{sse}/alerts?token={narrow}", 403),
        ("GET", f"{sse}/dashboard,alerts?token={narrow}", 403),
        ("GET", f"{sse}/dashboard,nowhere?token={narrow}", 403),
        ("GET", f"{sse}/nowhere?token={target.stream_token}", 404),
        ("GET", f"{sse}/dashboard,nowhere?token={target.stream_token}", 404),
    ):
        assert_refused(target.send(request(method, path, "Connection: close")), status)


def test_errors_come_in_the_order_of_the_contract_for_publishers(target: Target) -> None:
    narrow = f"Authorization: Bearer {target.server.access_token(publish='dashboard')}"
    bad = "Authorization: Bearer x"
    sse = "/api/v1/sse"
    good = b'{"event":"e","data":{}}'
    for method, path, token, body, status in (
        ("PUT", f"{sse}/BAD", bad, b"{", 405),
        ("POST", f"{sse}/BAD", bad, b"{", 400),
        ("POST", f"{sse}/nowhere", bad, good, 401),
        ("POST", f"{sse}/dashboard", bad, good, 401),
        ("POST", f"{sse}/nowhere", narrow, good, 403),
        ("POST", f"{sse}/alerts", narrow, good, 403),
        ("POST", f"{sse}/nowhere", target.bearer, good, 404),
        ("POST", sse, bad, b'{"events":[]}', 401),
    ):
        answer = target.send(request(method, path, "Connection: close", token, body=body))
        assert_refused(answer, status)


# Headers


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer  ",
        b"Basic YW5uOnBhc3N3b3Jk",
        b"Token",
        b"Bearer a b",
        b"Bearer ,",
        b"Bearer =",
        b"Bearer .",
        b"Bearer ..",
        b"Bearer ...",
        b"Bearer \xff\xfe",
        b"Bearer \xe2\x82\xac.\xe2\x82\xac.\xe2\x82\xac",
        b"Bearer " + b"a" * 7_000,
        b"Bearer " + b"a." * 3_500,
        b"Bearer null",
        b"Digest username=x",
        b"Bearer\x09x",
        b'Bearer "',
        b"\xff",
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_strange_authorization_is_401(target: Target, authorization: bytes) -> None:
    header = b"Authorization: " + authorization
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse", "/api/v1/auth/stream-token"):
        assert_refused(target.post(path, {"event": "e", "data": {}}, header, bearer=False), 401)
    for path in ("/api/v1/sse/dashboard/history", "/api/v1/auth/me"):
        assert_refused(target.get(path, header), 401)


def test_the_scheme_of_authorization_is_read_in_any_case(target: Target) -> None:
    for scheme in ("bearer", "BEARER", "BeArEr"):
        header = f"Authorization: {scheme} {target.access}"
        assert target.get("/api/v1/sse/dashboard/history", header).status == 200


def test_two_authorizations_are_none(target: Target) -> None:
    both = (target.bearer, "Authorization: Bearer x")
    assert_refused(target.get("/api/v1/sse/dashboard/history", *both), 400, 401)
    assert_refused(target.get("/api/v1/sse/dashboard/history", *reversed(both)), 400, 401)


def test_a_token_given_twice_in_the_query_is_401(target: Target) -> None:
    for other in ("x", ""):
        assert_refused(target.open("dashboard", f"&token={other}"), 400, 401)


# CORS


def preflight(target: Target, origin: str, path: str, method: str, headers: str = "") -> Answer:
    extra = [f"Access-Control-Request-Headers: {headers}"] if headers else []
    return target.send(
        request(
            "OPTIONS",
            path,
            "Connection: close",
            f"Origin: {origin}",
            f"Access-Control-Request-Method: {method}",
            *extra,
        )
    )


def names_in(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",")}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_preflight_of_a_configured_origin_allows_what_a_page_needs(target: Target, origin: str) -> None:
    for path, method, headers in (
        ("/api/v1/sse/dashboard", "GET", "last-event-id"),
        ("/api/v1/sse/dashboard", "POST", "authorization, content-type, idempotency-key"),
        ("/api/v1/sse", "POST", "authorization, content-type, idempotency-key"),
        ("/api/v1/sse/dashboard/history", "GET", "authorization"),
        ("/api/v1/auth/login", "POST", "content-type"),
        ("/api/v1/auth/stream-token", "POST", "authorization, content-type"),
        ("/api/v1/auth/me", "GET", "authorization"),
    ):
        answer = preflight(target, origin, path, method, headers)
        assert answer.status in (200, 204), (path, answer)
        assert answer.headers["access-control-allow-origin"] == origin
        assert method.lower() in names_in(answer.headers["access-control-allow-methods"])
        assert names_in(headers) <= names_in(answer.headers["access-control-allow-headers"])
        assert "origin" in names_in(answer.headers["vary"])


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "*",
        "",
        "http://localhost:3021",
        "http://localhost",
        "https://localhost:3020",
        "http://localhost:3020.evil.example",
        "http://localhost:30200",
        "http://evil.example?http://localhost:3020",
        "http://xlocalhost:3020",
        "http://localhost:3020/",
        "http://localhost:3020, http://evil.example",
        "https://deskXexample.com",
        "é",
    ],
)
def test_another_origin_gets_no_cors_headers(target: Target, origin: str) -> None:
    answers = [
        preflight(target, origin, "/api/v1/sse/dashboard", "POST", "authorization"),
        preflight(target, origin, "/api/v1/auth/login", "POST", "content-type"),
        target.open("dashboard", "", f"Origin: {origin}"),
        target.get("/api/v1/sse/dashboard", f"Origin: {origin}"),
        target.get("/api/v1/sse/status", f"Origin: {origin}"),
        target.history("dashboard"),
    ]
    for answer in answers:
        assert answer.status < 500
        assert not [name for name in answer.headers if name.startswith("access-control-")], answer


def test_a_configured_origin_may_read_streams_answers_and_errors(target: Target) -> None:
    origin = f"Origin: {ORIGINS[0]}"
    answers = {
        "stream": target.open("dashboard", "", origin),
        "401": target.get("/api/v1/sse/dashboard", origin),
        "400": target.open("BAD", "", origin),
        "404": target.open("nowhere", "", origin),
        "405": target.send(request("PUT", "/api/v1/sse/dashboard", "Connection: close", origin)),
        "413": target.publish("dashboard", body_of(MIB + 1), origin),
        "422": target.publish("dashboard", {"event": "ping", "data": {}}, origin),
        "201": target.publish("dashboard", {"event": "e", "data": {}}, origin),
        "login": target.post("/api/v1/auth/login", {"username": "a", "password": "b"}, origin, bearer=False),
        "status": target.get("/api/v1/sse/status", origin),
    }
    for name, answer in answers.items():
        assert answer.headers.get("access-control-allow-origin") == ORIGINS[0], (name, answer)
        assert "origin" in names_in(answer.headers["vary"]), name
    assert {name: answer.status for name, answer in answers.items() if name.isdigit()} == {
        name: int(name) for name in answers if name.isdigit()
    }


def test_options_without_an_origin_or_a_good_path_is_no_crash(target: Target) -> None:
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse/BAD", "/nope", "/healthz", "/api/v1/auth/login", "/"):
        answer = target.send(request("OPTIONS", path, "Connection: close"))
        assert answer.status in (200, 204) or assert_refused(answer, 400, 404, 405)
        assert "access-control-allow-origin" not in answer.headers


# Login


@pytest.mark.parametrize(
    "body",
    [
        {"username": None, "password": None},
        {"username": 1, "password": 2},
        {"username": ["ann"], "password": "x"},
        {"username": "ann", "password": ["x"]},
        {"username": {"$ne": ""}, "password": {"$ne": ""}},
        {"username": True, "password": True},
        {"username": "ann"},
        {"password": "x"},
        {"user": "ann", "pass": "x"},
    ],
    ids=lambda body: ascii(body)[:50],
)
def test_a_login_of_the_wrong_shape_is_422_or_400(target: Target, body: object) -> None:
    assert_refused(target.post("/api/v1/auth/login", body, bearer=False), 400, 422)


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("", ""),
        ("ann", ""),
        ("", "x"),
        ("ann\u0000", "x"),
        ("ann", "x\u0000y"),
        ("\n", "\n"),
        ("' OR 1=1 --", "x"),
        ("ann", "é" * 1_000),
        ("a" * 100_000, "x"),
        ("ann", "a" * 900_000),
        ("😀", "😀"),
        ("**", "x"),
        ("../../etc/passwd", "x"),
        ("\u202eann", "x"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_login_with_strange_text_is_a_4xx(target: Target, username: str, password: str) -> None:
    answer = target.post("/api/v1/auth/login", {"username": username, "password": password}, bearer=False)
    assert answer.status in (400, 401, 422), answer
    assert set(answer.json()["error"]) >= {"code", "message"}


def test_a_path_or_a_name_cannot_write_lines_of_its_own_into_the_log(target: Target, tmp_path: Path) -> None:
    login = {"username": 'ann\n{"event":"forged"}\x1b[31m', "password": "x"}
    target.post("/api/v1/auth/login", login, bearer=False)
    target.get("/nope%0a%7b%22event%22:%22forged%22%7d")
    target.get("/nope", "Referer: x", "User-Agent: \u2028\x85forged", b"X-Forwarded-For: \xff{}")
    target.open("dashboard", "", "Referer: https://desk.example.com/?token=" + target.stream_token)
    for line in target.server.log_path.read_bytes().split(b"\n"):
        if line:
            assert json.loads(line)["event"] != "forged"
