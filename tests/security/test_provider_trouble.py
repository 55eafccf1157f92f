"""A provider that changes its keys, is dead, slow, or sends what it should not: only its own tokens suffer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.openid import Issuer, served
from tests.support.waiting import until


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.add("one")
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()


@pytest.mark.long
def test_new_keys_are_fetched_at_once_and_made_up_ones_at_a_bounded_rate(
    issuer: Issuer, tmp_path: Path
) -> None:
    with served(tmp_path / "state", issuer.url) as desk:
        assert desk.stream_token(issuer.token("one")).status_code == 200
        assert len(issuer.fetched) == 1
        strangers = Issuer()
        for number in range(200):
            strangers.keys = {f"made-up-{number}": issuer.keys["one"]}
            assert desk.stream_token(strangers.token(f"made-up-{number}")).status_code == 401
        strangers.server.shutdown()
        strangers.server.server_close()
        assert len(issuer.fetched) <= 2
        issuer.add("two", "EdDSA")
        until(lambda: desk.stream_token(issuer.token("two")).status_code == 200, "the new key is known")
        assert desk.stream_token(issuer.token("one")).status_code == 200
        gaps = [later - sooner for sooner, later in zip(issuer.fetched, issuer.fetched[1:], strict=False)]
        assert all(gap > 9 for gap in gaps), gaps
        # What was known stays known when the provider is gone.
        issuer.status = 500
        assert desk.stream_token(issuer.token("one")).status_code == 200


def test_a_provider_that_is_dead_from_the_start_stops_the_exchange_only(
    issuer: Issuer, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/jwks"
    with served(tmp_path / "state", url, users=("ann",)) as desk:
        for _ in range(3):
            answer = desk.stream_token(issuer.token("one"))
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "provider_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        session = desk.log_in("ann")
        assert desk.stream_token(session.access).status_code == 200
        assert desk.stream_status(session.stream) == 200
        assert desk.http.get("/readyz").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("delay", [3.0])
def test_a_slow_provider_does_not_stop_the_loop(issuer: Issuer, tmp_path: Path, delay: float) -> None:
    issuer.delay = delay
    with served(tmp_path / "state", issuer.url) as desk:
        statuses: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(desk.stream_token(issuer.token("one")).status_code)
            )
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        until(lambda: issuer.fetched, "the provider is asked")
        token, answered = desk.mint(TokenKind.STREAM, "ann"), 0
        while any(thread.is_alive() for thread in threads) and answered < 100:
            begun = time.monotonic()
            assert desk.http.get("/healthz").status_code == 200
            assert desk.stream_status(token) == 200
            assert time.monotonic() - begun < 2
            answered += 1
        for thread in threads:
            thread.join()
        assert answered >= 3
        assert statuses == [200] * 5
        assert len(issuer.fetched) == 1


ODD = [
    b"", b"not json", b"[]", b"{}", b"null", b'{"keys": 5}', b'{"keys": {}}', b"[" * 100_000, b"\xff\xfe",
    b'{"keys": [' + b'{"kty":"RSA","n":"' + b"A" * 1000 + b'","e":"AQAB"},' * 600 + b"{}]}",
    b"x" * 5_000_000,
]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        body
        if body in (b"not json", b"{}", b'{"keys": 5}', b"[" * 100_000)
        else pytest.param(body, marks=pytest.mark.slow)
        for body in ODD
    ],
    ids=lambda body: ascii(body[:20]),
)
def test_a_document_that_is_no_key_set_is_503_and_no_crash(
    issuer: Issuer, tmp_path: Path, body: bytes
) -> None:
    issuer.body = body
    with served(tmp_path / "state", issuer.url) as desk:
        assert desk.stream_token(issuer.token("one")).status_code == 503
        assert desk.http.get("/readyz").status_code == 200


NO_IDS: list[object] = [5, [], {}, ["one"]]


def test_odd_keys_in_the_set_do_not_spoil_the_good_one(issuer: Issuer, tmp_path: Path) -> None:
    odd: list[object] = [
        5, None, "x", [], {}, {"kty": "RSA"}, {"kty": 5}, {"kty": "RSA", "n": 5, "e": "AQAB"},
        {"kty": "RSA", "n": None, "e": None}, {"kty": "RSA", "n": "", "e": ""}, {"kty": "RSA", "n": "AQAB", "e": "AA"},
        {"kty": "RSA", "n": "é", "e": "AQAB"}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": [], "y": {}}, {"kty": "EC", "crv": ["P-256"], "x": "A", "y": "A"},
        {"kty": "OKP", "crv": "Ed25519", "x": 5}, {"kty": "OKP", "crv": "Ed25519", "x": "AA"}, {"kty": "oct", "k": 5},
        {"kty": "oct", "k": "AAAA", "kid": "one"}, {"kty": "RSA", "alg": [], "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "alg": {}, "kid": {}}, {"kty": ["RSA"]}, {"kty": {}, "use": "sig"}, {"use": []},
        {"kty": "EC", "crv": "P-256", "x": "A", "y": "A", "d": 1}, {"kty": "EC", "alg": "none", "kid": "one"},
    ]  # fmt: skip
    good = json.loads(issuer.document())["keys"]
    odd += [{**good[0], "kid": kid} for kid in NO_IDS]
    issuer.body = json.dumps({"keys": [*odd, *good, *odd]}).encode()
    with served(tmp_path / "state", issuer.url) as desk:
        assert desk.stream_token(issuer.token("one")).status_code == 200
