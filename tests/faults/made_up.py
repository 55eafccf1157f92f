"""What hypothesis makes up for servers: requests, tokens, bodies and their framing, positions, and cookies."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

import msgspec
from hypothesis import strategies as st

from tests.faults.conversation import Manner
from tests.support.forging import TYPES as TYPES_OF_TOKENS
from tests.support.forging import Forge, encoded, sign

LONGEST_LIFETIME = 30 * 86_400
"""Of tokens, in seconds, as the settings say by default."""

ALPHABET = st.characters(exclude_categories=["Cs"])

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(ALPHABET, max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(ALPHABET, max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)

SHARES = st.floats(0, 1)
CUTS = st.lists(SHARES, max_size=4)


def manners(*ends: str) -> st.SearchStrategy[Manner]:
    """Make up how a client sends, with one of these ends."""
    pauses = st.sampled_from([0.0, 0.0, 0.0, 0.002])
    return st.builds(Manner, CUTS, pauses, st.sampled_from(ends or ("half-close",)))


def mutated(draw: st.DrawFn, made: bytes, most: int = 3) -> bytes:
    """Change, insert or drop some bytes."""
    changed = bytearray(made)
    for share, byte, how in draw(
        st.lists(st.tuples(SHARES, st.integers(0, 255), st.sampled_from("cid")), max_size=most)
    ):
        place = int(share * len(changed))
        if how == "i" or place == len(changed):
            changed.insert(place, byte)
        elif how == "c":
            changed[place] = byte
        else:
            del changed[place]
    return bytes(changed)


@st.composite
def mutations(draw: st.DrawFn, made: bytes) -> bytes:
    """Do as `mutated` does."""
    return mutated(draw, made)


# -- anything at all --------------------------------------------------------------------------------------------

_TOKENS = st.sampled_from([b"STREAM", b"ACCESS", b"", b"x.y.z", b"%00", b"STREAM.STREAM"])
_VALUES = st.one_of(
    st.sampled_from(
        [b"0", b"-1", b"1e9", b"earliest", b"latest", b"**", b"*.a", b"a,b", b"%ff", b"%00", b"=", b"&"]
    ),
    st.binary(max_size=20),
)
_NAMES = st.sampled_from(
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
_PATHS = st.sampled_from(
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
    method = draw(
        st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"get", b"PRI"])
    )
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
    target = draw(_PATHS) + b"?token=" + token + b"&" + query
    target = bytes(byte for byte in target if 32 < byte < 127) if draw(st.booleans()) else target
    made = bytearray(b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, target, b"\r\n".join(headers), body))
    for place, byte in draw(
        st.lists(st.tuples(st.integers(0, len(made) - 1), st.integers(0, 255)), max_size=3)
    ):
        if draw(st.booleans()):
            made[place] = byte
    return bytes(made)


# -- publishing -----------------------------------------------------------------------------------------------

CHANNELS = ("user.fuzz.a", "user.fuzz.b", "dashboard", "alerts")
TYPES_OF_EVENTS = st.sampled_from(["e", "order.filled", "A_b-c:d", "x" * 128])
STRANGE = st.sampled_from(
    [
        b'{"event":"e","data":"\\ud800"}',
        b'{"event":"e","data":1e400}',
        b'{"event":"e","data":-0.0}',
        b'{"event":"e","data":12345678901234567890123}',
        b'{"event":"e","data":{"channel":"x","timestamp":null,"channel":"y"}}',
        b'{"event":"e","event":"f","data":[]}',
        b'{"event":"e","data":"\\u0000\\r\\n\\u2028"}',
        b'{"event":"e","data":NaN}',
        b'{"event":"ping","data":1}',
        b'{"event":"e","data":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"event":"e","data":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\xef\xbb\xbf" + b'{"event":"e","data":1}',
        b'{"event":"e","data":"\xff"}',
        b'["events"]',
        b"",
    ]
)


@dataclass(frozen=True)
class Posting:
    """A request that publishes.

    Attributes:
        path: its path, with the query.
        content_type: None where there is no such header.
        body: what is meant to be the body.
        framed: the headers and bytes that carry the body.
        well_framed: whether these are as HTTP says.
        key: the idempotency key; empty where there is none.
        allowed: whether its token is one.
    """

    path: str
    content_type: str | None
    body: bytes
    framed: tuple[bytes, bytes]
    well_framed: bool = True
    key: str = ""
    allowed: bool = True

    @property
    def channel(self) -> str | None:
        """The channel that it names; None of a batch."""
        return self.path.partition("?")[0].removeprefix("/api/v1/sse").removeprefix("/") or None

    @property
    def takes_one_more(self) -> bool:
        """Whether it says that its body is one byte longer than it is: the first one of the next request."""
        return self.framed[0] == _length(len(self.body) + 1)

    def bytes(self, access: str) -> bytes:
        """Return the bytes of the request."""
        token = access if self.allowed else "x.y.z"
        headers = [b"Host: localhost", b"Authorization: Bearer " + token.encode()]
        if self.content_type is not None:
            headers.append(b"Content-Type: " + self.content_type.encode())
        if self.key:
            headers.append(b"Idempotency-Key: " + self.key.encode())
        framing, body = self.framed
        return b"POST %s HTTP/1.1\r\n%s\r\n%s\r\n%s" % (
            self.path.encode(),
            b"\r\n".join(headers),
            framing,
            body,
        )


def _length(size: int) -> bytes:
    return b"Content-Length: %d\r\n" % size


@st.composite
def postings(draw: st.DrawFn) -> Posting:
    """Make up a request that publishes, some with a bad body, type or framing."""
    channel = draw(st.sampled_from([*CHANNELS, *CHANNELS, "unknown", "status", "user.*", "A"]))
    kind = draw(st.sampled_from(["one", "one", "text", "batch"]))
    content_type = draw(
        st.sampled_from(["application/json", "application/json; charset=utf-8", None, "a/b", "TEXT"])
    )
    path = f"/api/v1/sse/{channel}"
    body: bytes
    if kind == "text":
        content_type = draw(
            st.sampled_from(
                ["text/plain", "text/plain; charset=UTF-8", "text/csv", "text/plain;charset=utf-16"]
            )
        )
        query = draw(
            st.sampled_from(["event=e", "event=e", "event=e&retry=10", "event=ping", "", "event=e&x=1"])
        )
        path = f"{path}?{query}"
        body = draw(st.one_of(st.text(ALPHABET).map(str.encode), st.binary(max_size=60)))
    elif kind == "batch":
        path = "/api/v1/sse"
        items = draw(st.lists(st.tuples(st.sampled_from(CHANNELS), TYPES_OF_EVENTS, JSON), max_size=4))
        events: list[dict[str, Any]] = [
            {"channel": name, "event": type, "data": data} for name, type, data in items
        ]
        if events and draw(st.integers(0, 5)) == 0:
            events[-1] |= draw(
                st.sampled_from(
                    [{"channel": "A"}, {"event": "ping"}, {"retry": -1}, {"id": "x"}, {"data": "\0"}]
                )
            )
        body = json.dumps({"events": events}, ensure_ascii=draw(st.booleans())).encode()
    else:
        event: dict[str, Any] = {"event": draw(TYPES_OF_EVENTS), "data": draw(JSON)}
        event |= draw(st.sampled_from([{}, {}, {"retry": 1000}, {"retry": 3.0}, {"retry": "1"}, {"x": 1}]))
        body = json.dumps(event, ensure_ascii=draw(st.booleans())).encode()
        body = draw(st.one_of(st.just(body), STRANGE))
    if kind != "text" and draw(st.integers(0, 3)) == 0:
        body = mutated(draw, body)
    framed, well = draw(framings(body, broken=kind != "text" and body.endswith(b"}")))
    key = draw(st.sampled_from(["", "", "k"]))
    allowed = draw(st.integers(0, 9)) > 0
    return Posting(path, content_type, body, framed, well, key and f"k{time.monotonic_ns()}", allowed)


@st.composite
def framings(draw: st.DrawFn, body: bytes, *, broken: bool) -> tuple[tuple[bytes, bytes], bool]:
    """Make up headers and bytes that carry a body, and say whether that is as HTTP says.

    Args:
        draw: of hypothesis.
        body: what is to be carried.
        broken: whether the framing may be broken.
    """
    how = draw(st.sampled_from(["length", "chunked", "chunked", *(["broken"] * 2 if broken else [])]))
    if how == "length":
        return (_length(len(body)), body), True
    pieces = [*Manner(draw(CUTS)).pieces(body)]
    extensions = draw(
        st.lists(st.sampled_from([b"", b";a", b";a=b", b';a="b;c"', b";" + b"x" * 200]), min_size=1)
    )
    chunks = []
    for number, piece in enumerate(pieces):
        size = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(piece)
        chunks.append(b"%s%s\r\n%s\r\n" % (size, extensions[number % len(extensions)], piece))
    trailers = draw(st.sampled_from([b"", b"", b"X-Sum: 1\r\n"]))
    chunked = b"Transfer-Encoding: chunked\r\n"
    whole = b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"
    if how == "chunked":
        return (chunked, whole), True
    return draw(
        st.sampled_from(
            [
                (_length(len(body) - 1), body),
                (_length(len(body) + 1), body),
                (b"Content-Length: +%d\r\n" % len(body), body),
                (b"Content-Length: %d\r\nContent-Length: %d\r\n" % (len(body), len(body) + 1), body),
                (_length(len(whole)) + chunked, whole),
                (b"Transfer-Encoding: chunked, chunked\r\n", whole),
                (b"Transfer-Encoding: gzip, chunked\r\n", whole),
                (b"Transfer-Encoding: \x0bchunked\r\n", whole),
                (chunked, whole.replace(b"\r\n", b"\n")),
                (chunked, b";" + whole),
                (chunked, b"-" + whole),
                (chunked, b"0x" + whole),
                (chunked, b"fffffffffffffffff\r\n" + whole),
                (chunked, b"%x;a=\x00\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                (chunked, b"%x;a\rb\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                (chunked, b'%x;a="b\r\n%s\r\n0\r\n\r\n' % (len(body), body)),
                (chunked, b"%x \r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                (chunked, b"%x\r\n%sXX0\r\n\r\n" % (len(body), body)),
                (chunked, b"%x\r\n%s\r\n0\r\nbad trailer\r\n\r\n" % (len(body), body)),
                (chunked, b"%x\r\n%s\r\n0\r\n\r" % (len(body), body)),
                (chunked, whole.removesuffix(b"\r\n") + b"Content-Length: 3\r\n\r\n"),
                (chunked, mutated(draw, whole)),
            ]
        )
    ), False


# -- tokens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token, and what is known of it.

    Attributes:
        kind: what it says to be for: a key of `TYPES_OF_TOKENS`.
        text: the token.
        claims: what it says, where everything about it is right; else None: it must open nothing.
    """

    kind: str
    text: str
    claims: dict[str, Any] | None


HEADERS: dict[str, list[Any]] = {
    "alg": ["none", "HS256", "HS384", "RS256", "PS256", "ES256", "EdDSA", "Ed25519", "", None, ["HS256"]],
    "kid": [
        "secret",
        "rsa",
        "edwards",
        "elliptic",
        "",
        "../keys/secret",
        "/dev/null",
        "secret.hs256",
        "\0",
        0,
        "%2e",
    ],
    "typ": ["at+jwt", "stream+jwt", "JWT", "AT+JWT", "application/at+jwt", None, 1],
    "crit": [["b64"], [], "exp", None],
    "b64": [False, True],
    "jwk": [{"kty": "oct", "k": ""}],
    "jku": ["http://127.0.0.1:1/"],
    "zip": ["DEF"],
    "cty": ["JWT"],
}
NOW = -1.0
"""Stands for the time at which a token is made."""

CLAIMS: dict[str, list[Any]] = {
    "iss": ["other", "", None, ["sse_app"], "sse_app ", "SSE_APP"],
    "aud": ["other", [], ["sse_app"], ["sse_app", "other"], None, ["other"]],
    "sub": ["", None, 1, "a b", "\ud800", "x" * 300, "../x"],
    "iat": [0, -1, "1", None, 1e300, 2**63, True, 10**400],
    "exp": [0, 1, "9" * 10, None, 1e300, 2**63, True, [], 10**400, 2**40],
    "nbf": [0, "1", None, 2**40, [], 10**400],
    "jti": ["", None, 0, [], "x" * 500],
    "sid": ["", None, {}, "a.b"],
    "sse": [
        None,
        [],
        {},
        "**",
        {"subscribe": "**"},
        {"subscribe": ["user.x"], "publish": [], "admin": False},
        {"subscribe": ["dash*"], "publish": ["**"], "admin": True},
        {"subscribe": [], "publish": [], "admin": "yes"},
        {"subscribe": [["**"]], "publish": ["**"], "admin": 1},
        {"subscribe": ["**"] * 5000, "publish": [], "admin": False},
    ],
}


@st.composite
def tokens(draw: st.DrawFn, forges: Sequence[Forge]) -> Token:
    """Make up a token that is right but for some things; in a few of them these do not matter."""
    forge, kind = draw(st.sampled_from(list(forges))), draw(st.sampled_from(sorted(TYPES_OF_TOKENS)))
    header, claims = forge.header(kind), forge.claims()
    good = True
    for _ in range(draw(st.integers(0, 2))):
        part, pool = draw(st.sampled_from([(header, HEADERS), (claims, CLAIMS)]))
        name = draw(st.sampled_from(sorted(pool)))
        value = draw(st.one_of(st.sampled_from(pool[name]), JSON, st.just(...)))
        if value is ...:
            part.pop(name, None)
        else:
            part[name] = value
    if draw(st.integers(0, 9)) == 0:
        claims["more"] = draw(st.one_of(JSON, st.just("x" * 9000), st.just(forge.token(kind))))
    how = draw(st.sampled_from(["right", "right", "right", "none", "another", "public", "twice", "text"]))
    text = sign(forge.algorithm, forge.key, header, claims)
    if how == "none":
        text, good = f"{encoded(header)}.{encoded(claims)}.", False
    elif how == "another":
        key = draw(st.binary(max_size=40))
        text, good = sign("HS256", key, header | {"alg": "HS256"}, claims), False
    elif how == "public":
        key = draw(st.sampled_from(forge.public_encodings()))
        text, good = sign("HS256", key, header | {"alg": "HS256"}, claims), False
    elif how == "twice":  # a member that is there twice
        raw = json.dumps(claims)
        name = draw(st.sampled_from(sorted(claims)))
        raw = "{" + json.dumps({name: draw(JSON)})[1:-1] + ", " + raw[1:]
        text, good = sign(forge.algorithm, forge.key, header, raw.encode()), False
    elif how == "text":
        changed = draw(st.one_of(_texts(text), _texts(text)))
        text, good = changed, changed.strip(" \t") == text  # whitespace around a header is not of its value
    return Token(kind, text, claims if good and _is_right(forge, kind, header, claims, text) else None)


@st.composite
def _texts(draw: st.DrawFn, text: str) -> str:
    """Change a token as a text."""
    first, second, third = text.split(".")
    chosen = draw(
        st.sampled_from(
            [
                f"{text}.",
                f".{text}",
                f"{first}.{second}",
                f"{first}..{third}",
                f"{text}.{third}",
                f"{text}=",
                f"{first}=.{second}.{third}",
                f"{second}.{first}.{third}",
                text.upper(),
                text[::-1],
                text + "A" * 9000,
                base64.urlsafe_b64encode(text.encode()).decode(),
                json.dumps({"payload": second, "protected": first, "signature": third}),
                text.replace(".", "%2E"),
                f"{text},{text}",
                f" {text}",
                f"{text}\t",
                f"Bearer {text}",
                "",
            ]
        )
    )
    if draw(st.booleans()):
        return chosen
    raw = mutated(draw, text.encode())
    return "".join(chr(byte) for byte in raw if byte not in b"\r\n") or "."


def _is_right(forge: Forge, kind: str, header: dict[str, Any], claims: dict[str, Any], text: str) -> bool:
    """Return whether everything about a token that is rightly signed is right, as the contract says."""

    def is_number(value: object) -> bool:
        return type(value) in (int, float) and 0 <= value < 2**40  # type: ignore[operator]

    now = time.time()
    grants = claims.get("sse")
    return (
        len(text) <= 8192
        and (header.get("alg"), header.get("kid"), header.get("typ"))
        == (forge.algorithm, forge.kid, TYPES_OF_TOKENS[kind])
        and header.keys() <= {"alg", "kid", "typ", "cty", "jwk", "jku"}
        and claims.get("iss") == "sse_app"
        and claims.get("aud") in ("sse_app", ["sse_app"])
        and all(isinstance(claims.get(name), str) and claims[name] for name in ("sub", "sid", "jti"))
        and is_number(claims.get("iat"))
        and is_number(claims.get("exp"))
        and claims["iat"] <= now + 1 < claims["exp"] <= claims["iat"] + LONGEST_LIFETIME
        and ("nbf" not in claims or (is_number(claims["nbf"]) and claims["nbf"] <= now + 1))
        and isinstance(grants, dict)
        and all(
            isinstance(grants.get(name, []), list)
            and all(isinstance(one, str) for one in grants.get(name, []))
            for name in ("subscribe", "publish")
        )
        and isinstance(grants.get("admin", False), bool)
    )


# -- positions ------------------------------------------------------------------------------------------------


TYPES: Mapping[bytes, frozenset[str]] = {
    value: frozenset(value.decode().split(",")) for value in (b"x,mark", b"mark,y", b"y,x,mark,y", b"mark")
}
"""Lists of event types as a stream may ask for them, all with that of the test's own events."""


_BEGINNINGS: Mapping[str, Sequence[bytes]] = {
    "from": [b"earliest", b"latest"],
    "last": [b"1", b"2", b"3", b"100"],
    "since": [b"-3600", b"2000-01-01T00:00:00Z", b"2999-12-31T23:59:59.5+23:59"],
}


@dataclass(frozen=True)
class Question:
    """What a client asks of a stream's beginning.

    Attributes:
        header: the value of ``Last-Event-ID``; None where there is no such header.
        query: the parameters, each with its raw value.
    """

    header: bytes | None
    query: Sequence[tuple[str, bytes]]

    def bytes(self, channels: str, token: str) -> bytes:
        """Return the bytes of the request."""
        query = "".join(f"&{name}={quote_from_bytes(value)}" for name, value in self.query)
        header = b"" if self.header is None else b"Last-Event-ID: " + self.header + b"\r\n"
        return b"GET /api/v1/sse/%s?token=%s%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (
            channels.encode(),
            token.encode(),
            query.encode(),
            header,
        )


@st.composite
def questions(draw: st.DrawFn, epoch: str, head: int, known: Sequence[int]) -> Question:
    """Make up where a stream is to begin.

    Args:
        draw: of hypothesis.
        epoch: of the log.
        head: the number of its last event.
        known: the numbers of events of the channels.
    """
    numbers = st.sampled_from(
        [*known, *known, 0, head, head + 1, head + 1000, 2**31, 2**63 - 1, 2**63, 10**18, 10**40]
    )
    ids = st.builds(
        lambda epoch, number: f"{epoch}-{number}".encode(),
        st.sampled_from([epoch, epoch, epoch, "0" * 8, epoch.upper(), "", "a" * 33]),
        numbers,
    )
    garbage = st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"", b"-", b"null", b"earliest", b"0", b"x" * 200, b"%", f"{epoch}-01".encode()]),
        st.builds(lambda id: id + b" ", ids),
        st.builds(lambda id: b"+" + id, ids),
    )
    positions = st.one_of(ids, ids, ids, garbage)
    values = {
        "last_event_id": positions,
        "from": st.sampled_from([b"earliest", b"latest", b"EARLIEST", b"", b"0"]),
        "last": st.sampled_from(
            [b"1", b"2", b"3", b"100", b"0", b"-1", b"01", b"9" * 18, b"9" * 19, b"1e1", b"", b"\xd9\xa3"]
        ),
        "since": st.sampled_from(
            [
                *(b"-3600", b"-9999999999", b"-1e3", b"2000-01-01T00:00:00Z", b"2999-12-31T23:59:59.5+23:59"),
                b"0001-01-01T00:00:00+23:59",
                b"9999-12-31T23:59:59-23:59",
                b"2000-02-30T00:00:00Z",
                b"now",
                b"",
                b"-",
            ]
        ),
        "types": st.sampled_from(
            [*TYPES, *TYPES, b"", b"x,", b"x,ping", b"x y", b"x" * 129, b",".join([b"x"] * 33)]
        ),
        "rate": st.sampled_from(
            [
                *(b"100", b"100.000000000", b"99.5", b"40", b"000000050"),
                *(b"0", b"0.0", b"100.1", b"-1", b"+5", b"1e1", b"5.", b".5", b"", b"nan", b"\xb2"),
            ]
        ),
    }
    how = draw(
        st.sampled_from(["header", "header", "parameter", "parameter", "beginning", "beginning", "", ""])
    )
    if how:  # one that is right, maybe but for the rate
        header, query = None, []
        good = f"{epoch}-{draw(st.sampled_from(known))}".encode()
        if how == "header":
            header = good
        elif how == "parameter":
            query.append(("last_event_id", good))
        else:
            name, beginnings = draw(st.sampled_from(sorted(_BEGINNINGS.items())))
            query.append((name, draw(st.sampled_from(beginnings))))
        for name, some in (("types", [*TYPES]), ("rate", [b"100", b"99.5"])):
            if draw(st.integers(0, 2)) == 0:
                query.append((name, draw(st.sampled_from(some))))
        return Question(header, query)
    names = draw(st.lists(st.sampled_from(["last_event_id", *values]), max_size=3))
    header = draw(st.one_of(st.none(), st.none(), positions))
    if header is not None:
        header = bytes(byte for byte in header if byte not in b"\r\n")
    return Question(header, [(name, draw(values[name])) for name in names])


# -- sessions -------------------------------------------------------------------------------------------------


def quoted_cookies(value: str) -> st.SearchStrategy[str]:
    """Make up a ``Cookie`` header in which a value may be, by its name or by another one."""
    names = st.sampled_from(
        ["sse_app_refresh", "sse_app_refresh", "__Host-sse_app_refresh", "SSE_APP_REFRESH", "a", ""]
    )
    values = st.one_of(
        st.just(value),
        st.just(f'"{value}"'),
        st.just(value[:-1]),
        st.just(value + "A"),
        st.just(value.swapcase()),
        st.just(""),
        st.text("abc=\"' ,\\\t", max_size=8),
    )
    pairs = st.builds("{}{}{}".format, names, st.sampled_from(["=", "=", "", " = "]), values)
    return st.lists(pairs, max_size=3).map(lambda found: ";".join(found)) | st.lists(pairs, max_size=3).map(
        "; ".join
    )
