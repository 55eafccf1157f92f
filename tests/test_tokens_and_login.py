"""Who may do what: access and stream tokens, forgeries, patterns, login, limits, and what the log must not say."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest

from tests.server_process import ROOT, ServerProcess

PASSWORDS = {"ann": "correct horse battery", "bob": "a second secret", "a.b": "dotted secret"}
CHANNELS = ["dashboard", "alerts", "training", "backtest", "user.**", "desk.**"]


def mint(key: bytes, kind: str = "access", **claims: object) -> str:
    """Return a token signed with the key; the claims override good ones, and ``...`` leaves one out."""
    now = int(time.time())
    good: dict[str, object] = {
        "iss": "sse_app",
        "aud": "sse_app",
        "sub": "forger",
        "iat": now,
        "exp": now + 600,
        "jti": f"j{time.monotonic_ns()}",
        "sid": "s1",
        "sse": {"subscribe": ["**"], "publish": ["**"], "admin": False},
    }
    merged = {name: value for name, value in (good | claims).items() if value is not ...}
    return sign(key, {"alg": "HS256", "kid": "first", "typ": TYPES[kind]}, merged)


TYPES = {"access": "at+jwt", "stream": "stream+jwt"}


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(key: bytes, header: object, payload: object, algorithm: str = "sha256") -> str:
    """Sign anything whatever as if it were a JWT: a JWT library would refuse most of it."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(hmac.new(key, signed.encode(), algorithm).digest())}"


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


@dataclass
class House:
    """A server with accounts, and a client for it that sends no token of its own."""

    server: ServerProcess
    http: httpx.Client
    key: bytes

    def login(self, username: str, password: str | None = None, address: str = "127.0.0.1") -> httpx.Response:
        """Log in; wrong passwords from one address are soon made to wait, so tests with many change it."""
        password = PASSWORDS.get(username, "") if password is None else password
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=10) as http:
            return http.post(
                f"{self.server.url}/api/v1/auth/login", json={"username": username, "password": password}
            )

    def tokens(self, username: str) -> dict[str, Any]:
        answer = self.login(username)
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def open(self, channels: str, token: str | None, **query: str) -> httpx.Response:
        """Open a stream and leave; the answer has a body only where it is a refusal."""
        params = query if token is None else {"token": token, **query}
        with self.http.stream("GET", f"/api/v1/sse/{channels}", params=params) as answer:
            if answer.status_code != 200:
                answer.read()
            return answer

    def publish(self, channel: str, token: str) -> httpx.Response:
        return self.http.post(
            f"/api/v1/sse/{channel}", json={"event": "e", "data": {}}, headers=bearer(token)
        )

    def history(self, token: str) -> httpx.Response:
        return self.http.get("/api/v1/sse/dashboard/history", headers=bearer(token))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def start(tmp_path_factory: pytest.TempPathFactory, **settings: object) -> Iterator[House]:
    state_dir = tmp_path_factory.mktemp("tokens") / "state"
    server = ServerProcess(state_dir=state_dir, expected=("login_refused",), CHANNELS=CHANNELS, **settings)
    server.start()
    try:
        (key,) = (state_dir / "keys").iterdir()
        with httpx.Client(base_url=server.url, timeout=10) as http:
            yield House(server, http, key.read_bytes())
        assert server.stop() == 0
    finally:
        server.kill()
    server.check_log()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    for house in start(tmp_path_factory):
        add = house.server.command
        add(
            *[
                "user",
                "add",
                "ann",
                "--subscribe",
                "dashboard,desk.*",
                "--publish",
                "alerts",
                "--password-stdin",
            ],
            input=PASSWORDS["ann"] + "\n",
        )
        add(
            *["user", "add", "bob", "--subscribe", "alerts", "--password-stdin"],
            input=PASSWORDS["bob"] + "\n",
        )
        yield house


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    yield from start(tmp_path_factory, LIMITS__STREAMS_PER_USER=2, LIMITS__STREAMS_PER_ADDRESS=4)


@pytest.fixture(autouse=True)
def the_log_stays_quiet(house: House) -> Iterator[None]:
    before = house.server.log_path.stat().st_size
    yield
    with house.server.log_path.open("rb") as log:
        log.seek(before)
        new = log.read().decode()
    assert "Traceback" not in new, new


def assert_refused(answer: httpx.Response, status: int) -> str:
    """Check that an answer is this error, in the form of all errors, and return its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) >= {"code", "message"}
    if status == 401:
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    return str(document["error"]["message"])


def assert_worthless(house: House, token: str) -> None:
    """Check that a token is 401 wherever one of either kind is taken."""
    assert_refused(house.open("dashboard", token), 401)
    assert_refused(house.publish("dashboard", token), 401)
    assert_refused(house.history(token), 401)
    assert_refused(
        house.http.post("/api/v1/auth/stream-token", json={"channels": ["dashboard"]}, headers=bearer(token)),
        401,
    )
    assert_refused(house.http.get("/api/v1/auth/me", headers=bearer(token)), 401)


# Two kinds


def test_a_stream_token_opens_streams_and_does_nothing_else(house: House) -> None:
    token = mint(house.key, "stream")
    assert house.open("dashboard", token).status_code == 200
    assert_refused(house.publish("dashboard", token), 401)
    assert_refused(house.history(token), 401)
    assert_refused(house.http.get("/api/v1/auth/me", headers=bearer(token)), 401)
    assert_refused(house.http.post("/api/v1/auth/stream-token", headers=bearer(token)), 401)
    assert_refused(house.http.post("/api/v1/sse", json={"events": []}, headers=bearer(token)), 401)
    for query in ("token", "access_token"):
        answer = house.http.post(
            "/api/v1/sse/dashboard", params={query: token}, json={"event": "e", "data": {}}
        )
        assert_refused(answer, 401)


def test_an_access_token_opens_no_stream(house: House) -> None:
    token = mint(house.key)
    assert house.publish("dashboard", token).status_code == 201
    assert house.history(token).status_code == 200
    assert_refused(house.open("dashboard", token), 401)
    answer = house.http.get("/api/v1/sse/dashboard", headers=bearer(token))
    assert_refused(answer, 401)
    for path in ("/api/v1/sse/dashboard/history", "/api/v1/auth/me"):
        assert_refused(house.http.get(path, params={"token": token}), 401)


def test_a_stream_token_in_the_header_opens_no_stream(house: House) -> None:
    assert_refused(house.http.get("/api/v1/sse/dashboard", headers=bearer(mint(house.key, "stream"))), 401)


# Forgeries


def test_tokens_signed_otherwise_are_401(house: House) -> None:
    for kind, typ in TYPES.items():
        good = mint(house.key, kind)
        header, payload, signature = good.split(".")
        claims = claims_of(good)
        flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
        for token in (
            mint(b"another secret that is long enough", kind),
            mint(b"", kind),
            mint(hashlib.sha256(house.key).digest(), kind),
            mint(house.key.hex().encode(), kind),
            f"{header}.{payload}.",
            f"{header}.{payload}",
            f"{header}.{payload}.{flipped}",
            f"{header}.{payload}.{signature[:-4]}",
            f"{header}.{payload}.{signature}.{signature}",
            f"{header}.{payload}.{signature}.",
            f".{payload}.{signature}",
            f"{header}..{signature}",
            f"{header}.{encoded({**claims, 'sub': 'root'})}.{signature}",
            *(
                f"{encoded({'alg': alg, 'typ': typ, 'kid': 'first'})}.{payload}."
                for alg in ("none", "None", "nOnE", "NONE", "")
            ),
            *(
                f"{encoded({'alg': alg, 'typ': typ, 'kid': 'first'})}.{payload}.{signature}"
                for alg in ("none", "HS1", "RS256", "EdDSA", "HS", "256")
            ),
            sign(house.key, {"alg": "HS512", "typ": typ, "kid": "first"}, claims, "sha512"),
            sign(house.key, {"alg": "HS384", "typ": typ, "kid": "first"}, claims, "sha384"),
            sign(house.key, {"alg": "none", "typ": typ, "kid": "first"}, claims),
            sign(b"", {"alg": "HS256", "typ": typ, "kid": "missing"}, claims),
            sign(b"", {"alg": "HS256", "typ": typ, "kid": "../../../../../../dev/null"}, claims),
            good.upper(),
            good.replace(".", "%2e"),
            "Bearer " + good,
        ):
            assert_worthless(house, token)


HOSTILE_HEADERS: list[object] = [
    {},
    [],
    None,
    1,
    "text",
    b"",
    b"not json",
    b"\xff\xfe",
    b"[" * 3_000,
    b'{"alg":' * 1_200,
    b'{"alg":"HS256","typ":"at+jwt","kid":' + b"[" * 4_000 + b"]" * 4_000 + b"}",
    b'{"alg":"HS256","typ":"at+jwt","kid":' + b"9" * 6_000 + b"}",
    b'{"alg":"HS256","typ":"at+jwt","kid":NaN}',
    b'{"alg":"HS256","typ":"at+jwt","kid":"\\ud800"}',
    b'{"alg":"HS256","typ":"\\ud800","kid":"first"}',
    b'{"alg":"\\ud800","typ":"at+jwt","kid":"first"}',
    b'{"alg":"HS256","typ":"at+jwt","kid":"first","\\ud800":1}',
    {"alg": "HS256"},
    {"typ": "at+jwt"},
    {"alg": ["HS256"], "typ": "at+jwt", "kid": "first"},
    {"alg": {"HS256": 1}, "typ": "at+jwt", "kid": "first"},
    {"alg": None, "typ": "at+jwt", "kid": "first"},
    {"alg": 256, "typ": "at+jwt", "kid": "first"},
    {"alg": "HS256", "typ": "at+jwt", "kid": ["first"]},
    {"alg": "HS256", "typ": "at+jwt", "kid": {"a": 1}},
    {"alg": "HS256", "typ": "at+jwt", "kid": 1},
    {"alg": "HS256", "typ": "at+jwt", "kid": "x\u0000y"},
    {"alg": "HS256", "typ": "at+jwt", "kid": "../keys/first"},
    {"alg": "HS256", "typ": "at+jwt", "kid": "/dev/zero"},
    {"alg": "HS256", "typ": "at+jwt", "kid": "k" * 4_000},
    {"alg": "HS256", "typ": "at+jwt", "kid": '\n{"event":"forged"}'},
    {"alg": "HS256", "typ": ["at+jwt"], "kid": "first"},
    {"alg": "HS256", "typ": {"at+jwt": 1}, "kid": "first"},
    {"alg": "HS256", "typ": 1, "kid": "first"},
    {"alg": "HS256", "typ": "at+jwt", "kid": "first", "crit": ["x"]},
    {"alg": "HS256", "typ": "at+jwt", "kid": "first", "crit": 5},
    {"alg": "HS256", "typ": "at+jwt", "kid": "first", "b64": False, "crit": ["b64"]},
    {"alg": "HS256", "typ": "at+jwt", "kid": "first", "jwk": {"kty": "oct", "k": "AA"}},
    {"alg": "HS256", "typ": "at+jwt", "kid": "first", "jku": "http://127.0.0.1:1/keys"},
]


@pytest.mark.parametrize("header", HOSTILE_HEADERS, ids=lambda header: ascii(header)[:60])
def test_a_header_that_anybody_can_write_is_401_whatever_it_says(house: House, header: object) -> None:
    claims = claims_of(mint(house.key))
    for payload in (claims, b"", b"[]", b"[" * 3_000, b"\xff", b'{"exp":' + b"9" * 5_000 + b"}"):
        assert_worthless(house, sign(b"a key of the attacker's, 32 bytes", header, payload))


@pytest.mark.parametrize(
    "typ",
    ["JWT", "", None, "at", "jwt", "stream", "at+jwt ", "refresh+jwt", ["at+jwt", "stream+jwt"]],
    ids=ascii,
)
def test_another_type_of_token_is_neither_kind(house: House, typ: object) -> None:
    claims = claims_of(mint(house.key))
    assert_worthless(house, sign(house.key, {"alg": "HS256", "kid": "first", "typ": typ}, claims))
    assert_worthless(house, sign(house.key, {"alg": "HS256", "kid": "first"}, claims))


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("iss", "another"),
        ("iss", ...),
        ("iss", ["sse_app"]),
        ("iss", ""),
        ("iss", "sse_ap"),
        ("aud", "another"),
        ("aud", ...),
        ("aud", ["another"]),
        ("aud", []),
        ("aud", "sse_app2"),
        ("aud", {"sse_app": 1}),
        ("sub", ...),
        ("sub", 5),
        ("sub", None),
        ("sub", ["ann"]),
        ("iat", ...),
        ("iat", "yesterday"),
        ("exp", ...),
        ("exp", None),
        ("exp", "later"),
        ("exp", []),
        ("exp", 0),
        ("exp", -1),
        ("jti", ...),
        ("jti", 5),
        ("sid", ...),
        ("sid", 5),
        ("sse", ...),
        ("sse", None),
        ("sse", "**"),
        ("sse", ["**"]),
        ("sse", {"subscribe": "dashboard", "publish": "dashboard", "admin": False}),
        ("sse", {"subscribe": [1], "publish": [1], "admin": False}),
        ("sse", {"subscribe": [["**"]], "publish": [["**"]], "admin": False}),
        ("sse", {"subscribe": {"**": 1}, "publish": {"**": 1}, "admin": False}),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_token_with_a_claim_missing_or_wrong_is_401_even_when_well_signed(
    house: House, claim: str, value: object
) -> None:
    for kind in TYPES:
        assert_worthless(house, mint(house.key, kind, **{claim: value}))


def test_an_expiry_as_a_string_is_401_or_counts_as_its_number(house: House) -> None:
    assert_worthless(house, mint(house.key, exp=str(int(time.time()) - 5)))
    answer = house.history(mint(house.key, exp=str(int(time.time()) + 600)))
    assert_refused(answer, 401)


@pytest.mark.parametrize("ago", [0, 1, 2, 3_600, 10**9])
def test_an_expired_token_is_401_without_leeway(house: House, ago: int) -> None:
    expired = int(time.time()) - ago
    for kind in TYPES:
        assert_worthless(house, mint(house.key, kind, iat=expired - 60, exp=expired))


@pytest.mark.parametrize("exp", [10**12, 10**18, 10**30, 10**300, 1e300])
def test_an_expiry_in_the_far_future_is_no_crash(house: House, exp: float) -> None:
    assert house.open("dashboard", mint(house.key, "stream", exp=exp)).status_code in (200, 401)
    assert house.history(mint(house.key, exp=exp)).status_code in (200, 401)


def test_an_expiry_that_is_no_number_is_no_crash(house: House) -> None:
    for name in ("Infinity", "-Infinity", "NaN"):
        for kind, typ in TYPES.items():
            payload = json.dumps({**claims_of(mint(house.key, kind)), "exp": 0}).replace(
                '"exp": 0', f'"exp": {name}'
            )
            token = sign(house.key, {"alg": "HS256", "kid": "first", "typ": typ}, payload.encode())
            assert_worthless(house, token)


def test_a_token_that_is_not_valid_yet_is_401(house: House) -> None:
    assert_worthless(house, mint(house.key, nbf=int(time.time()) + 60))


# Patterns


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("dashboard", "dashboard", True),
        ("dashboard", "alerts", False),
        ("dash", "dashboard", False),
        ("dashboardx", "dashboard", False),
        ("*", "dashboard", True),
        ("*", "desk.a", False),
        ("**", "dashboard", True),
        ("**", "desk.a.b.c", True),
        ("desk.*", "desk.a", True),
        ("desk.*", "desk.a.b", False),
        ("desk.*", "dashboard", False),
        ("desk.*", "user.a", False),
        ("desk.*.c", "desk.b.c", True),
        ("desk.*.c", "desk.b.d", False),
        ("desk.*.c", "desk.a.b.c", False),
        ("*.a", "desk.a", True),
        ("*.*", "desk.a", True),
        ("*.*", "dashboard", False),
        ("desk.**", "desk.a", True),
        ("desk.**", "desk.a.b.c", True),
        ("desk.**", "user.desk.a", False),
        ("desk.*.**", "desk.a.b", True),
        ("desk.a", "desk.a.b", False),
        ("desk.a.b", "desk.a", False),
        ("desk.a", "desk.b", False),
        ("desk", "desk.a", False),
        ("desk_a", "desk.a", False),
        ("des", "desk.a", False),
        ("d*", "dashboard", False),
        ("desk.a*", "desk.ab", False),
        ("desk.**.b", "desk.a.b", False),
        ("**.a", "desk.a", False),
        ("***", "dashboard", False),
        ("desk.?", "desk.a", False),
        ("desk..", "desk.a", False),
        ("[a-z]*", "dashboard", False),
        (".*", "dashboard", False),
        ("DASHBOARD", "dashboard", False),
        ("", "dashboard", False),
        ("dashboard\n", "dashboard", False),
        ("dashboard,alerts", "alerts", False),
        ("user.{sub}.**", "user.forger.x", False),
        ("%", "dashboard", False),
    ],
)
def test_a_pattern_grants_what_it_matches_and_no_more(
    house: House, pattern: str, channel: str, matches: bool
) -> None:
    grants = {"subscribe": [pattern], "publish": [pattern], "admin": False}
    streamed = house.open(channel, mint(house.key, "stream", sub="no.body", sse=grants)).status_code
    published = house.publish(channel, mint(house.key, sub="no.body", sse=grants)).status_code
    # A pattern that is none may spoil its token (401) instead of granting nothing (403).
    assert streamed in ((200,) if matches else (401, 403))
    assert published in ((201,) if matches else (401, 403))


def test_one_channel_beyond_the_grant_refuses_the_whole_stream(house: House) -> None:
    grants = {"subscribe": ["dashboard", "desk.*"], "publish": [], "admin": False}
    token = mint(house.key, "stream", sse=grants)
    assert house.open("dashboard,desk.a", token).status_code == 200
    assert_refused(house.open("dashboard,desk.a,alerts", token), 403)


def test_the_grants_to_subscribe_and_to_publish_are_two(house: House) -> None:
    token = mint(house.key, sse={"subscribe": ["dashboard"], "publish": ["alerts"], "admin": False})
    assert_refused(house.publish("dashboard", token), 403)
    assert house.publish("alerts", token).status_code == 201
    assert house.history(token).status_code == 200
    answer = house.http.get("/api/v1/sse/alerts/history", headers=bearer(token))
    assert_refused(answer, 403)


def test_administration_gives_no_channels(house: House) -> None:
    grants = {"subscribe": [], "publish": [], "admin": True}
    assert_refused(house.publish("dashboard", mint(house.key, sse=grants)), 403)
    assert_refused(house.open("dashboard", mint(house.key, "stream", sse=grants)), 403)


# Own channels


def test_everybody_who_logs_in_has_their_own_channels_to_read_and_only_those(house: House) -> None:
    tokens = house.tokens("ann")
    for channel in ("user.ann.jobs", "user.ann.jobs.7"):
        assert house.open(channel, tokens["stream_token"]).status_code == 200
        assert_refused(house.publish(channel, tokens["access_token"]), 403)
    for channel in ("user.bob.jobs", "user.ann2.jobs", "user.an.jobs", "user.bob.ann", "user.ann-x.a"):
        assert_refused(house.open(channel, tokens["stream_token"]), 403)


@pytest.mark.parametrize("name", ["a.b", "**", "Ann", "{sub}", "a/b"], ids=ascii)
def test_a_user_whose_name_is_no_segment_owns_no_channels_or_is_refused(house: House, name: str) -> None:
    done = command(house, "user", "add", name, "--password-stdin", input="dotted secret\n")
    if done.returncode == 0:
        tokens = house.login(name, "dotted secret").json()
        assert not [p for p in claims_of(tokens["stream_token"])["sse"]["subscribe"] if p.startswith("user")]
        for channel in ("user.a.b", "user.a.b.c", "user.x.y", "user.ann.jobs", "user.a.x"):
            assert_refused(house.open(channel, tokens["stream_token"]), 403)
    else:
        assert len(done.stderr.splitlines()) == 1, done.stderr


# Stream tokens from an access token


def test_a_stream_token_is_narrowed_to_the_channels_asked_for(house: House) -> None:
    tokens = house.tokens("ann")
    answer = house.http.post(
        "/api/v1/auth/stream-token",
        json={"channels": ["dashboard", "desk.a"]},
        headers=bearer(tokens["access_token"]),
    )
    assert answer.status_code == 200
    narrow = answer.json()["stream_token"]
    assert house.open("dashboard,desk.a", narrow).status_code == 200
    for channel in ("desk.b", "user.ann.jobs", "alerts", "dashboard,desk.b"):
        assert_refused(house.open(channel, narrow), 403)
    claims, whole = claims_of(narrow), claims_of(tokens["access_token"])
    assert (claims["sub"], claims["sid"]) == (whole["sub"], whole["sid"])
    assert claims["jti"] != whole["jti"]
    assert claims["sse"]["publish"] == []
    assert claims["sse"]["admin"] is False
    assert claims["exp"] <= time.time() + 600


@pytest.mark.parametrize(
    "channels",
    [
        ["alerts"],
        ["dashboard", "alerts"],
        ["*"],
        ["**"],
        ["user.**"],
        ["user.*.jobs"],
        ["desk.**"],
        ["user.bob.jobs"],
    ],
    ids=ascii,
)
def test_a_stream_token_is_never_wider_than_the_access_token(house: House, channels: list[str]) -> None:
    token = house.tokens("ann")["access_token"]
    answer = house.http.post("/api/v1/auth/stream-token", json={"channels": channels}, headers=bearer(token))
    if answer.status_code != 403:
        assert_refused(answer, 422 if answer.status_code == 422 else 400)


@pytest.mark.parametrize(
    "channels",
    [
        None,
        "dashboard",
        {},
        1,
        [1],
        [None],
        ["Bad"],
        ["a..b"],
        [""],
        ["dashboard\n"],
        [["dashboard"]],
        ["a"] * 100_000,
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_malformed_list_of_channels_makes_no_token(house: House, channels: object) -> None:
    token = house.tokens("ann")["access_token"]
    answer = house.http.post("/api/v1/auth/stream-token", json={"channels": channels}, headers=bearer(token))
    assert answer.status_code in (400, 403, 422), answer.text
    assert set(answer.json()) == {"error"}


def test_no_channels_make_a_token_for_none(house: House) -> None:
    token = house.tokens("ann")["access_token"]
    answer = house.http.post("/api/v1/auth/stream-token", json={"channels": []}, headers=bearer(token))
    if answer.status_code == 200:
        assert_refused(house.open("dashboard", answer.json()["stream_token"]), 403)
    else:
        assert answer.status_code in (400, 422)


# Login


def test_a_login_gives_both_tokens_and_what_they_are_good_for(house: House) -> None:
    answer = house.login("ann")
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    assert set(tokens) >= {
        "access_token",
        "stream_token",
        "token_type",
        "expires_in",
        "stream_expires_in",
        "channels",
    }
    assert tokens["token_type"] == "Bearer"
    assert 0 < tokens["expires_in"] <= 3_600
    assert 0 < tokens["stream_expires_in"] <= 600
    access, stream = claims_of(tokens["access_token"]), claims_of(tokens["stream_token"])
    for claims, lifetime in ((access, "expires_in"), (stream, "stream_expires_in")):
        assert set(claims) == {"iss", "aud", "sub", "iat", "exp", "jti", "sid", "sse"}
        assert claims["sub"] == "ann"
        assert claims["exp"] - time.time() <= tokens[lifetime] + 1
    assert access["sid"] == stream["sid"]
    assert stream["sse"]["publish"] == []
    assert house.open("dashboard", tokens["stream_token"]).status_code == 200
    assert_refused(house.open("alerts", tokens["stream_token"]), 403)
    assert house.publish("alerts", tokens["access_token"]).status_code == 201
    assert_refused(house.publish("dashboard", tokens["access_token"]), 403)


def test_me_says_who_it_is_and_no_secret(house: House) -> None:
    answer = house.http.get("/api/v1/auth/me", headers=bearer(house.tokens("ann")["access_token"]))
    assert answer.status_code == 200
    assert "ann" in answer.text
    assert "argon2" not in answer.text
    assert "password" not in answer.text


def test_a_wrong_password_and_an_unknown_user_are_told_apart_by_nothing(house: House) -> None:
    wrong, unknown = house.login("ann", "wrong"), house.login("nobody", "wrong")
    assert_login_refused(wrong)
    assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content)
    assert list(wrong.headers) == list(unknown.headers)
    times: dict[str, list[float]] = {"ann": [], "nobody": []}
    for number in range(15):
        for name, taken in times.items():
            before = time.perf_counter()
            house.login(name, f"wrong {number}", f"127.0.1.{number + 1}")
            taken.append(time.perf_counter() - before)
    ratio = statistics.median(times["ann"]) / statistics.median(times["nobody"])
    assert 0.5 < ratio < 2, times


def assert_login_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}


def test_a_name_is_not_a_pattern_and_a_password_is_not_trimmed(house: House) -> None:
    attempts = (
        ("*", PASSWORDS["ann"]),
        ("ANN", PASSWORDS["ann"]),
        ("ann ", PASSWORDS["ann"]),
        ("ann\x00", PASSWORDS["ann"]),
        ("ann", PASSWORDS["ann"] + " "),
        ("ann", PASSWORDS["ann"] + "\n"),
        ("ann", PASSWORDS["ann"] + "\x00"),
        ("ann", PASSWORDS["ann"].upper()),
        ("ann", PASSWORDS["ann"][:-1]),
        ("ann", PASSWORDS["bob"]),
    )
    for number, (name, password) in enumerate(attempts):
        answer = house.login(name, password, f"127.0.2.{number + 1}")
        assert answer.status_code in (400, 401, 422), (name, password)


def test_passwords_are_argon2id_in_the_database_and_nowhere_else(house: House) -> None:
    with sqlite3.connect(house.server.state_dir / "accounts.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert len(re.findall(r"\$argon2id\$v=19\$m=\d{5,},t=[2-9]", dump)) >= 2
    for file in house.server.state_dir.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [password for password in PASSWORDS.values() if password.encode() in content], file


def test_accounts_change_while_the_server_runs(house: House) -> None:
    user = house.server.command
    assert_login_refused(house.login("carl", "one secret"))
    user("user", "add", "carl", "--subscribe", "dashboard", "--password-stdin", input="one secret\n")
    assert house.login("carl", "one secret").status_code == 200
    user("user", "passwd", "carl", "--password-stdin", input="another secret\n")
    assert_login_refused(house.login("carl", "one secret"))
    assert house.login("carl", "another secret").status_code == 200
    user("user", "disable", "carl")
    unknown = house.login("nobody", "wrong")
    assert house.login("carl", "wrong").content == unknown.content
    disabled = house.login("carl", "another secret")
    assert disabled.status_code in (401, 403)
    assert set(disabled.json()) == {"error"}
    user("user", "enable", "carl")
    assert house.login("carl", "another secret").status_code == 200
    user("user", "remove", "carl")
    assert house.login("carl", "another secret").content == unknown.content


def test_passwords_of_any_characters_work(house: House) -> None:
    password = "  ünï😀 \t$1 'q' \"w\" "
    house.server.command("user", "add", "dora", "--password-stdin", input=password + "\n")
    assert house.login("dora", password).status_code == 200
    assert_login_refused(house.login("dora", password.strip()))


# The commands


def command(house: House, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=house.server.environment,
        input=input,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_token_command_puts_its_flags_into_the_claims_and_prints_only_the_token(house: House) -> None:
    printed = house.server.command(
        *[
            "token",
            "--kind",
            "stream",
            "--subject",
            "ann",
            "--session",
            "s-7",
            "--subscribe",
            "dashboard,desk.*",
            "--ttl",
            "30",
        ]
    )
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", printed)
    claims = claims_of(printed)
    assert (claims["sub"], claims["sid"]) == ("ann", "s-7")
    assert set(claims["sse"]["subscribe"]) >= {"dashboard", "desk.*"}
    assert claims["exp"] - claims["iat"] <= 30
    assert jwt.get_unverified_header(printed)["typ"] == "stream+jwt"
    assert house.open("desk.a", printed).status_code == 200
    access = house.server.command(*["token", "--publish", "alerts", "--admin"])
    claims = claims_of(access)
    assert claims["sse"]["admin"] is True
    assert claims["sse"]["publish"] == ["alerts"]
    assert 0 < claims["exp"] - claims["iat"] <= 600
    assert jwt.get_unverified_header(access)["typ"] == "at+jwt"
    assert house.publish("alerts", access).status_code == 201


@pytest.mark.parametrize(
    "flags",
    [
        "--ttl 0",
        "--ttl -5",
        "--ttl soon",
        "--ttl 1e400",
        "--kind refresh",
        "--subscribe **.a",
    ],
)
def test_a_bad_flag_makes_no_token(house: House, flags: str) -> None:
    done = command(house, "token", *flags.replace(" ", "=", 1).split())
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr
    assert "Traceback" not in done.stderr


# Limits


def test_over_a_limit_of_streams_is_429_with_retry_after_at_once(limited: House) -> None:
    ann, bob, carl = (mint(limited.key, "stream", sub=name) for name in ("ann", "bob", "carl"))
    narrow = mint(
        limited.key, "stream", sub="ann", sse={"subscribe": ["dashboard"], "publish": [], "admin": False}
    )
    with ExitStack() as streams:

        def hold(token: str) -> httpx.Response:
            request = limited.http.stream("GET", "/api/v1/sse/dashboard", params={"token": token})
            return streams.enter_context(request)

        assert hold(ann).status_code == 200
        first = streams.pop_all()
        with first:
            assert hold(ann).status_code == 200
            before = time.monotonic()
            assert_too_many(limited.open("dashboard", ann))
            assert_too_many(limited.open("dashboard", narrow, client_id="another"))
            assert time.monotonic() - before < 1
            # What comes before a limit is still told first.
            assert_refused(limited.open("BAD", ann), 400)
            assert_refused(limited.open("dashboard", ann + "x"), 401)
            assert_refused(limited.open("alerts", narrow), 403)
            assert_refused(limited.open("nowhere", ann), 404)
            # The limit of the user is not that of another, until the address has its share.
            assert hold(bob).status_code == 200
            assert hold(bob).status_code == 200
            for headers in (
                {},
                {"X-Forwarded-For": "9.9.9.9"},
                {"X-Real-IP": "9.9.9.9"},
                {"Forwarded": "for=9.9.9.9"},
            ):
                answer = limited.http.get("/api/v1/sse/dashboard", params={"token": carl}, headers=headers)
                assert_too_many(answer)
            assert status_from("127.0.0.2", limited, carl) == 200
            assert limited.http.get("/api/v1/sse/status").json()["total_connections"] <= 5
        # A place that is given up is free again.
        deadline = time.monotonic() + 3
        while (answer := limited.open("dashboard", carl)).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert answer.status_code == 200


def test_streams_that_are_refused_take_no_place(limited: House) -> None:
    deadline = time.monotonic() + 3
    while limited.http.get("/api/v1/sse/status").json()["total_connections"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    eve = mint(
        limited.key, "stream", sub="eve", sse={"subscribe": ["dashboard"], "publish": [], "admin": False}
    )
    for _ in range(5):
        assert_refused(limited.open("alerts", eve), 403)
        assert_refused(limited.open("BAD", eve), 400)
        assert_refused(limited.open("dashboard", eve, client_id="a b"), 400)
    with (
        limited.http.stream("GET", "/api/v1/sse/dashboard", params={"token": eve}) as one,
        limited.http.stream("GET", "/api/v1/sse/dashboard", params={"token": eve}) as two,
    ):
        assert (one.status_code, two.status_code) == (200, 200)


def assert_too_many(answer: httpx.Response) -> None:
    assert_refused(answer, 429)
    assert int(answer.headers["retry-after"]) > 0


def status_from(address: str, house: House, token: str) -> int:
    """Open a stream from another of this machine's addresses, and return its status."""
    with (
        socket.create_connection(("127.0.0.1", house.server.port), 10, (address, 0)) as connection,
        connection.makefile("rb") as file,
    ):
        connection.sendall(f"GET /api/v1/sse/dashboard?token={token} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        return int(file.readline().split()[1])


# The end of a token


def test_a_stream_ends_when_its_token_does_and_says_so(house: House) -> None:
    expiry = int(time.time()) + 2
    token = mint(house.key, "stream", exp=expiry)
    with house.http.stream("GET", "/api/v1/sse/dashboard", params={"token": token}) as stream:
        text = "".join(stream.iter_text())
        ended = time.time()
    assert expiry - 1.5 < ended < expiry + 1.5
    frames = [frame for frame in text.split("\n\n") if "event:" in frame]
    connected, closing = (
        {line.partition(": ")[0]: line.partition(": ")[2] for line in frame.split("\n")} for frame in frames
    )
    assert 0 < json.loads(connected["data"])["expires_in"] <= 2
    assert closing["event"] == "closing"
    assert json.loads(closing["data"]) == {"reason": "token_expired", "retry": None}
    assert "id" not in closing
    assert_refused(house.open("dashboard", token), 401)


# The log


def test_no_password_and_no_token_is_in_the_log_whatever_the_status(house: House) -> None:
    tokens = house.tokens("ann")
    access, stream = tokens["access_token"], tokens["stream_token"]
    strange = "sesame-open-" + "x" * 20
    expired = mint(house.key, "stream", exp=int(time.time()) - 5)
    other_key = mint(b"another secret that is long enough", "stream")
    escaped = "".join(f"%{byte:02x}" for byte in stream.encode())
    get = house.http.get
    statuses = [
        house.open("dashboard", stream).status_code,
        house.open("alerts", stream).status_code,
        house.open("BAD", stream).status_code,
        house.open("dashboard", access).status_code,
        house.open("dashboard", expired).status_code,
        house.open("dashboard", other_key).status_code,
        house.open("dashboard", stream, client_id=stream).status_code,
        house.open("dashboard", stream, client_id=stream[:64]).status_code,
        house.open("dashboard", stream, last_event_id=stream).status_code,
        house.open("dashboard", stream, last_event_id=stream[:128]).status_code,
        house.http.put("/api/v1/sse/dashboard", params={"token": stream}).status_code,
        house.http.post("/api/v1/sse/dashboard", params={"token": stream}, json={}).status_code,
        get(f"/nope?token={stream}").status_code,
        get(f"/healthz?token={stream}").status_code,
        get(f"/api/v1/sse/status?access_token={access}").status_code,
        get(f"/api/v1/sse/nowhere?token={escaped}").status_code,
        get(
            "/healthz", headers={"Referer": f"https://a.example/?token={stream}", "User-Agent": stream}
        ).status_code,
        get("/nope", headers={"Referer": f"https://a.example/?token={quote(stream)}"}).status_code,
        get("/api/v1/auth/me", headers={"Authorization": access}).status_code,
        get("/api/v1/auth/me", headers={"Authorization": f"Basic {access}"}).status_code,
        get("/api/v1/auth/me", headers={"Authorization": f"Bearer {access}x"}).status_code,
        get(f"/api/v1/sse/{stream}").status_code,
        get(f"/api/v1/sse/dashboard/{stream}").status_code,
        get(f"/{access}").status_code,
        get(f"/api/v1/auth/login?username=ann&password={strange}").status_code,
        house.login("ann", strange).status_code,
        house.login("nobody", strange).status_code,
        house.http.post("/api/v1/auth/login", content=f'{{"password": "{strange}"'.encode()).status_code,
        house.http.post("/api/v1/auth/login", json={"username": "ann", "password": [strange]}).status_code,
        house.http.post(
            "/api/v1/auth/login", json={"username": {"a": strange}, "password": strange}
        ).status_code,
        house.http.post("/api/v1/auth/login", json={"username": access, "password": strange}).status_code,
        house.http.post(
            "/api/v1/sse/alerts",
            json={"event": stream, "data": []},
            headers={**bearer(access), "Idempotency-Key": stream},
        ).status_code,
        house.http.post(
            "/api/v1/auth/stream-token", json={"channels": [stream]}, headers=bearer(access)
        ).status_code,
    ]
    assert {200, 400, 401, 403, 404, 405, 422} <= set(statuses)
    assert max(statuses) < 500
    log = house.server.log_path.read_text()
    for token in (access, stream, expired, other_key):
        for part in token.split(".")[1:]:
            assert part not in log
            assert part[10:50] not in log
    assert escaped[:120] not in log
    assert strange not in log
    assert not [password for password in PASSWORDS.values() if password in log]
    assert "argon2id$" not in log
    assert house.key.hex() not in log


def test_a_token_that_stands_in_the_path_by_mistake_is_not_in_the_log(house: House) -> None:
    token = mint(house.key, "stream")
    for path in (token, f"api/v1/sse/{token}", f"api/v1/sse/dashboard/{token}", f"static/{token}"):
        escaped = path.replace("eyJ", "%65%79%4a")
        for written in (path, escaped):
            assert house.http.get(f"/{written}").status_code in (400, 404)
    log = house.server.log_path.read_text()
    for part in token.split("."):
        assert part[10:50] not in log
