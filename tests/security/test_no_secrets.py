"""After a thousand varied requests no secret stands in a log line, a metric, a page, the audit trail or a file."""

from __future__ import annotations

import json
import random
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from tests.support.forging import encoded
from tests.support.people import PASSWORD, Site, bearer, refresh_cookie, site
from tests.support.waiting import until

REQUESTS = 1000


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("secrets") / "state"
    expected = ("refresh_reused", "provider_unavailable")
    with site(
        state_dir,
        users=("ann", "bob"),
        expected=expected,
        OIDC__ISSUER="https://login.example",
        OIDC__AUDIENCE="desk",
        OIDC__JWKS_URL="http://127.0.0.1:9/jwks",
        LIMITS__PUBLISH_RATE=50,
    ) as served:
        yield served


def foreign(number: int) -> str:
    """Return a token that says it is the provider's, which is not there."""
    header = {"alg": "ES256", "typ": "at+jwt", "kid": f"k{number}"}
    return f"{encoded(header)}.{encoded({'iss': 'https://login.example', 'sub': 'kim'})}.c2ln"


class Secrets:
    """What nobody but its owner may ever read; a part of a token counts as the token."""

    def __init__(self, desk: Site) -> None:
        self.sessions = [desk.log_in(name) for name in ("ann", "bob", "ann")]
        self.guess = f"guess-{secrets.token_urlsafe(18)}"
        cookie = refresh_cookie(
            httpx.post(
                f"{desk.server.url}/api/v1/auth/login",
                json={"username": "bob", "password": PASSWORD},
                timeout=30,
            )
        )
        self.cookie = cookie.partition("=")[2].partition(";")[0]
        self.known = [PASSWORD, self.guess, self.cookie]
        for session in self.sessions:
            self.know(session.access, session.stream, session.refresh)

    def know(self, *tokens: str) -> None:
        for token in tokens:
            self.known += [part for part in token.split(".")[-2:] if part]

    def found_in(self, text: str) -> list[str]:
        return [secret for secret in self.known if secret in text or secret[10:50] in text]


def varied(desk: Site, known: Secrets, number: int, http: httpx.Client) -> int:
    """Send one of many kinds of requests, each with a secret in it, and return the status; 0 where there is none."""
    choose = random.Random(number)
    session = choose.choice(known.sessions)
    token = choose.choice(
        [session.access, session.stream, session.refresh, known.cookie, PASSWORD, known.guess]
    )
    jwt = choose.choice([session.access, session.stream])
    cookie = {"Cookie": f"sse_app_refresh={known.cookie}x"}
    auth = "/api/v1/auth/"
    match number % 20:
        case 0:
            return http.get(f"/api/v1/sse/dashboard?token={quote(token)}x").status_code
        case 1:
            return http.get(auth + "me", headers=bearer(session.access)).status_code
        case 2:
            return http.get(f"/api/v1/sse/{jwt}?token={session.stream}").status_code
        case 3:
            guessed = {"username": token, "password": known.guess}
            return http.post(auth + "login", json=guessed).status_code
        case 4:
            return http.post(auth + "login", json={"username": "ann", "password": token}).status_code
        case 5:
            return http.post(
                auth + "refresh", json={"refresh_token": token + "y"}, headers=cookie
            ).status_code
        case 6:
            return http.post(
                auth + "logout", headers={**bearer(token.replace(" ", "") + "z"), **cookie}
            ).status_code
        case 7:
            headers = {**bearer(session.access), "Idempotency-Key": token.replace(" ", "+")}
            body = {"event": "e", "data": {"number": number}}
            return http.post("/api/v1/sse/alerts", json=body, headers=headers).status_code
        case 8:
            return http.get(f"/{jwt}/{session.stream}").status_code
        case 9:
            referer = {"Referer": f"http://a.example/?token={session.stream}", "User-Agent": session.access}
            return http.get("/healthz", headers=referer).status_code
        case 10:
            return http.put(f"/api/v1/sse/dashboard?token={session.stream}").status_code
        case 11:
            return http.post(
                auth + "stream-token", json={"channels": [token]}, headers=bearer(session.access)
            ).status_code
        case 12:
            return http.get(f"/static/{jwt}?access_token={session.access}").status_code
        case 13:
            headers = bearer(foreign(number))
            return http.post(auth + "stream-token", headers=headers).status_code
        case 14:
            return http.get(
                f"/api/v1/sse/dashboard?token={session.stream}&last_event_id={quote(token)[:120]}%00"
            ).status_code
        case 15:
            return http.post(
                "/api/v1/admin/revocations", json={"token_id": session.access}, headers=desk.admin
            ).status_code
        case 16:
            odd = {"event": token, "data": {}, "retry": token}
            return http.post("/api/v1/sse/alerts", json=odd, headers=bearer(session.access)).status_code
        case 17:
            return http.post(
                auth + "login", content=f'{{"password": "{known.guess}", "x'.encode()
            ).status_code
        case 18:
            return dropped(desk, session.stream)
        case _:
            return slow(desk, session.stream, session.access)


def dropped(desk: Site, token: str) -> int:
    """Open a stream and cut it, or leave in the middle of a body."""
    with socket.create_connection(("127.0.0.1", desk.server.port), 10) as connection:
        if random.random() < 0.5:
            connection.sendall(
                f"GET /api/v1/sse/dashboard?token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            connection.recv(100)
            return 200
        head = f"POST /api/v1/auth/login?token={token} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
        connection.sendall(f'{head}{{"password": "{PASSWORD}"'.encode())
    return 0


def slow(desk: Site, stream: str, access: str) -> int:
    """Send a request in small pieces."""
    with socket.create_connection(("127.0.0.1", desk.server.port), 10) as connection:
        head = f"GET /api/v1/auth/me?token={stream} HTTP/1.1\r\nHost: localhost\r\n"
        request = f"{head}Authorization: Bearer {access}\r\n\r\n"
        for start in range(0, len(request), 300):
            connection.sendall(request[start : start + 300].encode())
        return int(connection.recv(100).split()[1])


@pytest.mark.ci
def test_after_a_thousand_varied_requests_no_secret_is_anywhere(desk: Site) -> None:
    known = Secrets(desk)
    statuses: Counter[int] = Counter()
    spent = known.sessions[2].refresh
    fresh = desk.refresh(desk.refresh(spent).refresh)
    known.know(fresh.access, fresh.stream, fresh.refresh)
    ears = [desk.hear(session.stream) for session in known.sessions]

    def work(first: int) -> None:
        with httpx.Client(base_url=desk.server.url, timeout=30) as http:
            for number in range(first, REQUESTS, 4):
                statuses[varied(desk, known, number, http)] += 1

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.try_refresh(spent).status_code == 401  # reused: that is audited
    desk.revoke(subject="ann")
    until(lambda: not ears[0].open, "the stream ends")
    desk.log_in("bob", address="127.0.9.9")
    desk.http.post("/api/v1/auth/logout", headers=bearer(known.sessions[1].access))
    assert {0, 200, 201, 400, 401, 404, 405, 422, 429, 503} <= set(statuses), statuses
    assert sum(statuses.values()) == REQUESTS

    places = {
        "metrics": desk.http.get("/metrics").text,
        "page": desk.http.get("/").text,
        "status": desk.http.get("/api/v1/sse/status").text,
        "keys": desk.http.get("/.well-known/jwks.json").text,
        "audit": desk.http.get("/api/v1/admin/audit?limit=1000", headers=desk.admin).text,
        "connections": desk.http.get("/api/v1/admin/connections", headers=desk.admin).text,
        "printed audit": desk.server.command("audit", "--limit", "5000"),
        "log": desk.server.log_path.read_text(),
    }
    assert len(json.loads(places["audit"])["entries"]) > 50
    for file in desk.server.state_dir.rglob("*"):
        if file.is_file():
            places[file.name] = file.read_bytes().decode("latin-1")
    assert {name: known.found_in(text) for name, text in places.items() if known.found_in(text)} == {}
