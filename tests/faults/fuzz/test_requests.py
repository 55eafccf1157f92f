"""Any bytes that are nearly requests, and large bodies: none is answered with a 5xx, and nothing is left behind."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz.conversation import Manner, converse, request_of
from tests.faults.fuzz.fuzzed import MARKS, Fuzzed
from tests.faults.fuzz.made_up import CUTS, manners, mutated

pytestmark = MARKS


_TOKENS = st.sampled_from([b"STREAM", b"ACCESS", b"", b"x.y.z", b"%00", b"STREAM.STREAM"])
_VALUES = st.one_of(
    st.sampled_from(
        [b"0", b"-1", b"1e9", b"earliest", b"latest", b"**", b"*.a", b"a,b", b"%ff", b"%00", b"=", b"&"]
    ),
    st.binary(max_size=20),
)
_NAMES = st.sampled_from(
    b"token last_event_id from last since types rate client_id event retry final".split()
)
_PATHS = st.sampled_from(
    b"""
    /api/v1/sse /api/v1/sse/dashboard /api/v1/sse/dashboard,alerts /api/v1/sse/user.* /api/v1/sse/status
    /api/v1/sse/alerts/history /api/v1/sse/alerts/presence /api/v1/sse/connections/x/renew
    /api/v1/auth/login /api/v1/auth/refresh /api/v1/auth/logout /api/v1/auth/stream-token /api/v1/auth/me
    /api/v1/admin/connections /api/v1/admin/revocations /api/v1/admin/audit
    /healthz /metrics /openapi.json /
    """.split()
)
_HEADERS = st.sampled_from(
    [
        *(b"Last-Event-ID: x-1", b"Idempotency-Key: k", b"Connection: close", b"Expect: 100-continue"),
        *(b"Transfer-Encoding: chunked", b"Content-Encoding: gzip"),
        *(b"Origin: http://evil.example", b"X-Forwarded-For: 1.2.3.4"),
    ]
)
_BODIES = st.one_of(
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
    """Make up a request, and change some of its bytes now and then.

    ``STREAM`` and ``ACCESS`` in it stand for tokens.
    """
    method = draw(st.sampled_from(b"GET POST HEAD OPTIONS DELETE PATCH get PRI".split()))
    query = b"&".join(
        name + b"=" + value for name, value in draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=4))
    )
    token = draw(_TOKENS)
    body = draw(_BODIES)
    headers = [
        b"Host: localhost",
        b"Authorization: Bearer " + draw(_TOKENS),
        b"Content-Type: "
        + draw(st.sampled_from([b"application/json", b"text/plain", b"text/html; charset=utf-16", b""])),
        b"Content-Length: %d" % len(body),
        *draw(st.lists(_HEADERS, max_size=3, unique=True)),
    ]
    target = draw(_PATHS) + b"?token=" + token + b"&" + query
    target = bytes(byte for byte in target if 32 < byte < 127) if draw(st.booleans()) else target
    return mutated(draw, b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, target, b"\r\n".join(headers), body))


def test_no_made_up_request_is_a_5xx_or_leaves_anything(fuzzed: Fuzzed) -> None:
    stand_ins = {b"STREAM": fuzzed.stream.encode(), b"ACCESS": fuzzed.access.encode()}

    @fuzzed.fuzz(150)
    @given(
        st.lists(requests(), min_size=1, max_size=3),
        manners("half-close", "half-close", "close", "reset"),
        st.randoms(),
    )
    def ask(made: list[bytes], manner: Manner, chance: random.Random) -> None:
        for name, token in stand_ins.items():
            made = [request.replace(name, token) for request in made]
        heard = converse(fuzzed.port(chance), made, manner)
        for answer in heard.answers:
            assert answer.status < 500, (made, answer)
            assert (
                not answer.is_stream or not answer.events or answer.events[0].type in ("connected", "closing")
            )
        look()

    with fuzzed.nothing_is_left(150) as look:
        ask()
    fuzzed.assert_streams_are_counted()


# -- large bodies ----------------------------------------------------------------------------------------------


@st.composite
def large_posts(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """Make up what is put in the place of a token, and the head and the beginning of a body, maybe all of it."""
    token = draw(st.sampled_from(["ACCESS", "ACCESS", "ACCESS", "STREAM", "x.y.z", ""]))
    size = draw(st.sampled_from([200_000, 1_048_576, 65_536, 65_537, 1_048_577, 1_500_000]))
    path = draw(st.sampled_from(["/api/v1/sse/dashboard?event=large", "/api/v1/sse", "/api/v1/sse/A"]))
    body = b"x" * size
    framing = f"Content-Length: {size}"
    if draw(st.booleans()):
        framing = "Transfer-Encoding: chunked"
        pieces = Manner(draw(CUTS)).pieces(body)
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        if draw(st.integers(0, 3)) == 0:
            body = mutated(draw, body)
    sent = int(len(body) * draw(st.sampled_from([1.0, 0.99, 1.0, 0.5, 0.06, 0.0])))
    headers = [
        "Content-Type: text/plain",
        *draw(st.lists(st.just("Expect: 100-continue"), max_size=1)),
        framing,
    ]
    return token, request_of("POST", path, "Authorization: Bearer TOKEN", *headers), body[:sent]


def test_a_large_body_is_counted_no_more_once_its_request_has_ended(fuzzed: Fuzzed) -> None:
    there = {"ACCESS": fuzzed.access, "STREAM": fuzzed.stream}

    @fuzzed.fuzz(40)
    @given(large_posts(), manners("half-close", "close", "reset"), st.randoms())
    def ask(made: tuple[str, bytes, bytes], manner: Manner, chance: random.Random) -> None:
        token, head, body = made
        head = head.replace(b"TOKEN", there.get(token, token).encode())
        for answer in converse(fuzzed.port(chance), [head + body], manner).answers:
            assert answer.status == 201 or answer.names_what_is_wrong(), (head, answer)
            assert answer.status != 201 or token == "ACCESS"
        look()

    with fuzzed.nothing_is_left(40) as look:
        ask()
