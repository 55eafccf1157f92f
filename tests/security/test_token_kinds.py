"""Two kinds of token, each refused where the other belongs, and every forgery of either."""

from __future__ import annotations

import hashlib
import json
import time

import pytest

from tests.support.house import TYPES, House, assert_refused, bearer, claims_of, encoded, mint, sign

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet")


def assert_worthless(house: House, token: str) -> None:
    """Check that a token is 401 wherever one of either kind is taken."""
    assert_refused(house.open("dashboard", token), 401)
    if token.isascii() and token.isprintable():
        assert_refused(house.http.get("/api/v1/sse/dashboard", headers=bearer(token)), 401)
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
