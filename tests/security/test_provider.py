"""Access tokens of an OpenID provider, exchanged for stream tokens; the provider is a real server beside ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.support.forging import encoded, sign
from tests.support.openid import AUDIENCE, ISSUER, Issuer, served
from tests.support.people import Site, bearer, claims_of
from tests.support.waiting import until


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    for kid, algorithm in (("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")):
        issuer.add(kid, algorithm)
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()


@pytest.fixture(scope="module")
def desk(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with served(tmp_path_factory.mktemp("provider") / "state", issuer.url) as desk:
        yield desk


@pytest.mark.parametrize("kid", ["rsa", "ec", "ed"])
def test_a_token_of_the_provider_is_exchanged_and_groups_say_for_what(
    desk: Site, issuer: Issuer, kid: str
) -> None:
    answer = desk.stream_token(issuer.token(kid))
    assert answer.status_code == 200, answer.text
    stream = answer.json()["stream_token"]
    claims = claims_of(stream)
    assert claims["sub"] == "oidc:kim"
    assert claims["sse"] == {"subscribe": ["dashboard", "alerts", "training"], "publish": [], "admin": False}
    assert desk.stream_status(stream, "dashboard,alerts") == 200
    assert desk.stream_status(stream, "backtest") == 403
    assert desk.stream_token(issuer.token(kid), "backtest").status_code == 403
    nobody = desk.stream_token(issuer.token(kid, groups=["strangers", 5, None])).json()["stream_token"]
    assert desk.stream_status(nobody, "dashboard") == 200
    assert desk.stream_status(nobody, "alerts") == 403
    brief = desk.stream_token(issuer.token(kid, exp=int(time.time()) + 20)).json()
    assert brief["stream_expires_in"] <= 20


def test_a_token_of_the_provider_opens_no_other_door(desk: Site, issuer: Issuer) -> None:
    token = issuer.token("ec", sse={"subscribe": ["**"], "publish": ["**"], "admin": True}, sid="s", jti="j")
    assert desk.me(token) == 401
    assert desk.stream_status(token) == 401
    for method, path in (
        ("POST", "sse/dashboard"),
        ("POST", "auth/logout"),
        ("GET", "sse/dashboard/history"),
        ("GET", "admin/audit"),
        ("POST", "sse/connections/c/renew"),
    ):
        assert desk.http.request(method, f"/api/v1/{path}", headers=bearer(token)).status_code == 401


WRONG: dict[str, dict[str, object]] = {
    "another issuer": {"iss": ISSUER + "/"},
    "no issuer": {"iss": ...},
    "another audience": {"aud": "account"},
    "no audience": {"aud": ...},
    "no subject": {"sub": ...},
    "a subject that is no text": {"sub": 5},
    "an empty subject": {"sub": ""},
    "a subject with half a character": {"sub": "\ud800"},
    "a session with half a character": {"sid": "\ud800"},
    "an id with half a character": {"jti": "\ud800"},
    "a subject of 300 characters": {"sub": "x" * 300},
    "no expiry": {"exp": ...},
    "an expiry that is a text": {"exp": "2100"},
    "expired": {"exp": 1_000_000_000},
    "in force too long": {"exp": 2**33},
    "not in force yet": {"nbf": 2**33},
    "issued in the future": {"iat": 2**33},
    "issued longer ago than is allowed": {"iat": 1_000_000_000},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_token_of_the_provider_is_401(desk: Site, issuer: Issuer, wrong: str) -> None:
    for kid in issuer.keys:
        assert desk.stream_token(issuer.token(kid, None, **WRONG[wrong])).status_code == 401


WRONG_HEADERS: list[dict[str, object]] = [
    {"alg": "none"},
    {"alg": "HS256"},
    {"kid": 5},
    {"kid": ["ec"]},
    {"typ": "dpop+jwt"},
    {"typ": "stream+jwt"},
    {"crit": ["x"]},
    {"jku": "http://127.0.0.1:1/"},
    {"jwk": {}},
    {"zip": "DEF"},
]


@pytest.mark.parametrize("member", WRONG_HEADERS, ids=ascii)
def test_a_wrong_header_is_401(desk: Site, issuer: Issuer, member: dict[str, object]) -> None:
    for kid in issuer.keys:
        assert desk.stream_token(issuer.token(kid, header=member)).status_code == 401


def test_a_public_key_is_no_secret_and_one_key_does_not_vouch_for_another(desk: Site, issuer: Issuer) -> None:
    claims = claims_of(issuer.token("ec"))
    for kid, (algorithm, key) in issuer.keys.items():
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        token = sign("HS256", pem, {"alg": "HS256", "typ": "at+jwt", "kid": kid}, claims)
        assert desk.stream_token(token).status_code == 401
        for other in issuer.keys:
            if other != kid:
                header = {"alg": algorithm, "typ": "at+jwt", "kid": other}
                assert desk.stream_token(sign(algorithm, key, header, claims)).status_code == 401
        head, _, signature = issuer.token(kid).rpartition(".")
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        for bit in range(6):
            altered = signature[:-1] + last[last.index(signature[-1]) ^ 1 << bit]
            assert desk.stream_token(f"{head}.{altered}").status_code == 401, (kid, bit)
    unsigned = f"{encoded({'alg': 'none', 'typ': 'at+jwt', 'kid': 'ec'})}.{encoded(claims)}."
    assert desk.stream_token(unsigned).status_code == 401


MORE: list[dict[str, Any]] = [{}, {"iat": ...}, {"sid": "one"}]


def test_a_revoked_subject_does_not_come_back_with_a_token_from_before(desk: Site, issuer: Issuer) -> None:
    tokens = [issuer.token("ec", sub="mallory", **more) for more in MORE]
    ears = [desk.hear(desk.stream_token(token).json()["stream_token"]) for token in tokens]
    assert desk.revoke(subject="oidc:mallory")["streams"] == 3
    until(lambda: not any(ear.open for ear in ears), "the streams end")
    for token in tokens:
        assert desk.stream_token(token).status_code == 401
    desk.leave_all()


ID_TOKENS: list[dict[str, object]] = [
    {"nonce": "n-0S6_WzA2Mj"},
    {"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"},
    {"c_hash": "LDktKdoQak3Pk0cnXxCltA"},
    {"typ": "ID"},
    {"typ": "Refresh"},
    {"typ": "ID", "nonce": "n"},
    {"typ": "Bearer", "at_hash": "x"},
    {"token_use": "id"},
    {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
]


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", None])
def test_an_id_token_or_a_logout_token_of_the_provider_is_no_access_token(
    desk: Site, issuer: Issuer, typ: str | None
) -> None:
    header: dict[str, object] = {"typ": typ}
    assert desk.stream_token(issuer.token("ec", header=header)).status_code == 200
    for claims in ID_TOKENS:
        answer = desk.stream_token(issuer.token("ec", header, **claims))
        assert answer.status_code == 401, claims
    keycloak = issuer.token(
        "ec", {"typ": "JWT"}, typ="Bearer", nonce="n", azp=AUDIENCE, sid="s", scope="openid"
    )
    assert desk.stream_token(keycloak).status_code == 200


def test_a_token_of_another_client_is_refused_unless_that_client_is_configured(
    issuer: Issuer, desk: Site, tmp_path: Path
) -> None:
    foreign: list[object] = ["other", "", None, 5, ["desk-page"], [AUDIENCE], AUDIENCE + " "]
    assert desk.stream_token(issuer.token("ec", azp=AUDIENCE)).status_code == 200
    for client in [*foreign, "desk-page"]:
        assert desk.stream_token(issuer.token("ec", azp=client)).status_code == 401, client
    with served(tmp_path / "state", issuer.url, OIDC__CLIENTS=["desk-page"]) as strict:
        for name in ("azp", "client_id", "cid", "appid"):
            assert strict.stream_token(issuer.token("ec", None, **{name: "desk-page"})).status_code == 200
            for client in foreign:
                assert strict.stream_token(issuer.token("ec", None, **{name: client})).status_code == 401, (
                    client
                )
        assert strict.stream_token(issuer.token("ec", azp="desk-page", client_id="other")).status_code == 401
        until(lambda: "oidc.clients" in strict.server.log_path.read_text(), "the log names the setting")


def test_a_provider_s_clock_may_be_some_seconds_ahead_and_ours_may_not(desk: Site, issuer: Issuer) -> None:
    now = int(time.time())
    for name in ("iat", "nbf"):
        assert desk.stream_token(issuer.token("ec", None, **{name: now + 60})).status_code == 401
    answer = desk.stream_token(issuer.token("ec", iat=now + 4, nbf=now + 4))
    assert answer.status_code == 200
    stream = answer.json()["stream_token"]
    assert claims_of(stream)["iat"] <= time.time()
    assert desk.stream_status(stream) == 200
    assert desk.stream_token(issuer.token("ec", exp=int(time.time()))).status_code == 401
    desk.restart()  # what was remembered of the token is gone
    assert desk.stream_status(stream) == 200
