"""Tokens with something wrong about them open nothing."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz.conversation import Manner, bearer, converse, request_of
from tests.faults.fuzz.fuzzed import MARKS, Fuzzed
from tests.faults.fuzz.made_up import JSON, manners, mutated
from tests.faults.fuzz.reference import matches
from tests.support.forging import TYPES as TYPES_OF_TOKENS
from tests.support.forging import Forge, encoded, sign

pytestmark = MARKS


LONGEST_LIFETIME = 30 * 86_400
"""Of tokens, in seconds, as the settings say by default."""


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


EVENT = b'{"event":"forged","data":1}'


def _doors(token: Token) -> dict[str, tuple[str, str, list[str], bytes | None]]:
    """Return where a token of its kind may be tried: method, target, headers and body."""
    there = [bearer(token.text)]
    query = "/api/v1/sse/dashboard?" + str(httpx.QueryParams({"token": token.text}))
    if token.kind == "stream":
        return {
            "stream by query": ("GET", query, [], None),
            "stream by header": ("GET", "/api/v1/sse/dashboard", there, None),
            "head": ("HEAD", query, [], None),
            "renew": ("POST", "/api/v1/sse/connections/c/renew", there, b""),
        }
    return {
        "publish": ("POST", "/api/v1/sse/dashboard", there, EVENT),
        "history": ("GET", "/api/v1/sse/dashboard/history", there, None),
        "me": ("GET", "/api/v1/auth/me", there, None),
        "stream token": ("POST", "/api/v1/auth/stream-token", there, b'{"channels":["dashboard"]}'),
        "administration": ("GET", "/api/v1/admin/connections", there, None),
        "logout": ("POST", "/api/v1/auth/logout", there, b""),
    }


def test_no_token_with_anything_wrong_opens_anything(fuzzed: Fuzzed) -> None:

    @fuzzed.fuzz(150)
    @given(tokens(fuzzed.forges), st.data(), manners(), st.randoms())
    def ask(token: Token, data: st.DataObject, manner: Manner, chance: random.Random) -> None:
        doors = _doors(token)
        door = data.draw(st.sampled_from(sorted(doors)))
        method, target, headers, body = doors[door]
        if token.claims is not None and door in ("publish", "logout"):
            return  # it may do that
        request = request_of(method, target, *headers, body=body)
        (answer,) = converse(fuzzed.port(chance), [request], manner).answers
        assert answer.status < 500, (token, answer)
        if token.claims is None:
            assert 400 <= answer.status < 500, (door, token, answer)
            assert method == "HEAD" or answer.names_what_is_wrong(), answer
        elif answer.status == 200 and door in ("stream by query", "stream by header", "head", "history"):
            granted = token.claims["sse"].get("subscribe", [])
            assert any(matches(pattern, "dashboard") for pattern in granted), token
        elif answer.status == 200 and door == "administration":
            assert token.claims["sse"]["admin"] is True
        look()

    before = fuzzed.mark()
    with fuzzed.nothing_is_left(150) as look:
        ask()
    stored = fuzzed.http.get("/api/v1/sse/dashboard/history", params={"after": before}).json()["events"]
    assert not [event for event in stored if event["event"] == "forged"]
