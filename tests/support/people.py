"""People who log in to a real server: their tokens, their streams, and what an administrator does to them."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, TypeVar

import httpx
import jwt

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.minting import EVERYTHING, add_account, mint
from tests.support.server_process import ServerProcess, running
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

IN_FORCE = 1.0
"""Within how many seconds a revocation ends the open streams; measured from the answer, not from the request."""

GRANTS = Grants.of(subscribe=["dashboard", "alerts", "desk.*"], publish=["alerts"])
PASSWORD = "correct horse battery"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


class Ear:
    """A client that listens on one TCP connection of its own, in a thread, until that ends."""

    def __init__(
        self, server: ServerProcess, channels: str, token: str, client_id: str = "", address: str = ""
    ) -> None:
        self.server = server
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ended_at: float | None = None
        self._socket = socket.create_connection(("127.0.0.1", server.port), 30, (address or "127.0.0.1", 0))
        query = f"token={token}" + (f"&client_id={client_id}" if client_id else "")
        self._socket.sendall(
            f"GET /api/v1/sse/{channels}?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        self._response = HTTPResponse(self._socket)
        self._response.begin()
        self.status = self._response.status
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        if self.status == 200:
            until(lambda: self.events, "connected")

    def _listen(self) -> None:
        reader = EventStreamReader()
        with suppress(OSError, HTTPException):
            while self.status == 200 and (piece := self._response.read1(65_536)):
                self.events += [(event.type, event.json()) for event in reader.feed(piece)]
        self.ended_at = time.monotonic()

    @property
    def open(self) -> bool:
        return self.ended_at is None

    @property
    def expires_in(self) -> int:
        return int(self.events[0][1]["expires_in"])

    @property
    def farewell(self) -> str | None:
        """The reason of ``closing``."""
        return next((data["reason"] for type, data in self.events if type == "closing"), None)

    def leave(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._response.close()
        self._socket.close()


@dataclass
class Session:
    """What a login or a refresh has given."""

    access: str
    stream: str
    refresh: str
    answer: dict[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return str(claims_of(self.access)["sid"])


class Site:
    """A server with accounts, and what is done to it over HTTP and on the command line."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=60)
        self.ears: list[Ear] = []

    def add_user(self, name: str, admin: bool = False) -> None:
        """Make an account."""
        add_account(self.server.state_dir, name, PASSWORD, EVERYTHING if admin else GRANTS)

    def mint(self, kind: TokenKind, subject: str, session: str = "", ttl: float = 600) -> str:
        """Return a token that may do everything its kind can."""
        grants = EVERYTHING if kind is TokenKind.ACCESS else EVERYTHING.only_subscribing()
        return mint(self.server.state_dir, kind, grants, subject=subject, session=session, ttl=ttl)

    def log_in(self, name: str, password: str = PASSWORD, address: str = "") -> Session:
        answer = self.try_login(name, password, address)
        assert answer.status_code == 200, answer.text
        return session_of(answer)

    def try_login(self, name: str, password: str = PASSWORD, address: str = "") -> httpx.Response:
        with httpx.Client(
            transport=httpx.HTTPTransport(local_address=address or "127.0.0.1"), timeout=30
        ) as http:
            return http.post(
                f"{self.server.url}/api/v1/auth/login",
                json={"username": name, "password": password, "cookie": False},
            )

    def try_refresh(self, token: str) -> httpx.Response:
        return self.http.post("/api/v1/auth/refresh", json={"refresh_token": token})

    def refresh(self, token: str) -> Session:
        answer = self.try_refresh(token)
        assert answer.status_code == 200, answer.text
        return session_of(answer)

    @property
    def admin(self) -> dict[str, str]:
        return bearer(self.mint(TokenKind.ACCESS, "root", ttl=60))

    def revoke(self, **what: object) -> dict[str, Any]:
        answer = self.http.post("/api/v1/admin/revocations", json=what, headers=self.admin)
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def hear(self, token: str, channels: str = "dashboard", client_id: str = "") -> Ear:
        ear = Ear(self.server, channels, token, client_id)
        self.ears.append(ear)
        assert ear.status == 200
        return ear

    def stream_status(self, token: str, channels: str = "dashboard") -> int:
        ear = Ear(self.server, channels, token)
        ear.leave()
        return ear.status

    def me(self, access: str) -> int:
        return self.http.get("/api/v1/auth/me", headers=bearer(access)).status_code

    def renew(self, token: str, client_id: str) -> httpx.Response:
        return self.http.post(f"/api/v1/sse/connections/{client_id}/renew", headers=bearer(token))

    def renewed(self, token: str, client_id: str) -> httpx.Response:
        """Renew, once more where another worker or node was too busy to answer in time."""
        return once_all_answer(lambda: self.renew(token, client_id))

    def stream_token(self, access: str, *channels: str) -> httpx.Response:
        body = {"channels": channels} if channels else {}
        return self.http.post("/api/v1/auth/stream-token", json=body, headers=bearer(access))

    def restart(self, hard: bool = True) -> None:
        if hard:
            self.server.kill()
        else:
            self.server.stop()
        self.server.start()

    def leave_all(self) -> None:
        for ear in self.ears:
            ear.leave()
        self.ears.clear()


def once_all_answer(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask, once more where another worker or node was too busy to answer in time; it does not do it later either."""
    answers: list[httpx.Response] = []

    def have_answered() -> bool:
        answers.append(ask())
        answer = answers[-1]
        return answer.status_code != 503 and not (
            answer.is_success and answer.json().get("complete") is False
        )

    until(have_answered, "all answer")
    return answers[-1]


def session_of(answer: httpx.Response) -> Session:
    document = answer.json()
    return Session(
        document["access_token"], document["stream_token"], document.get("refresh_token", ""), document
    )


S = TypeVar("S", bound=Site)


@contextmanager
def serving(
    of: type[S],
    state_dir: Path,
    *,
    users: tuple[str, ...] = (),
    expected: tuple[str, ...] = (),
    **settings: Any,
) -> Iterator[S]:
    """Serve with these accounts a site of that class, and check the log afterwards."""
    with running(state_dir=state_dir, expected=("login_refused", *expected), **settings) as server:
        site = of(server)
        try:
            for user in users:
                site.add_user(user)
            yield site
        finally:
            site.leave_all()
            site.http.close()


@contextmanager
def site(state_dir: Path, **options: Any) -> Iterator[Site]:
    """Serve a site; the options are those of `serving`."""
    with serving(Site, state_dir, **options) as site:
        yield site


LOOK = 0.2
"""Seconds that a look takes at the most with the pause before it, where nothing is held up."""


def assert_ended(ears: list[Ear], since: float, reason: str, admin: Mapping[str, str] | None = None) -> None:
    """Check that streams have ended with that reason within a second, in which nothing was held up.

    Args:
        ears: have the streams.
        since: when they were to end, by the monotonic clock.
        reason: what they are told.
        admin: who may see the audit trail there; by default a token that is signed with the server's own keys says so.
    """
    held_up, looked = 0.0, since
    audits = {
        f"{server.url}/api/v1/admin/audit?limit=1": admin or bearer(server.access_token(admin=True))
        for server in {ear.server for ear in ears}
    }

    def ended() -> bool:
        nonlocal held_up, looked
        for url, admin in audits.items():  # late where the server, its database, or this process was paused
            httpx.get(url, headers=admin, timeout=60).raise_for_status()
        now = time.monotonic()
        held_up += max(0.0, now - looked - LOOK)
        looked = now
        return not any(ear.open for ear in ears)

    until(ended, f"the streams end ({reason})")
    for ear in ears:
        assert ear.ended_at is not None
        assert ear.farewell == reason, ear.events
        assert ear.ended_at - since - held_up < IN_FORCE


def assert_go_on(site: Site, ears: list[Ear], channel: str = "dashboard") -> None:
    """Check that streams are open, by an event that each of them gets."""
    mark = f"mark-{time.monotonic_ns()}"
    answer = site.http.post(
        f"/api/v1/sse/{channel}", json={"event": "mark", "data": {"mark": mark}}, headers=site.admin
    )
    assert answer.status_code == 201, answer.text
    for ear in ears:
        until(lambda ear=ear: any(data.get("mark") == mark for _, data in ear.events), "a stream goes on")  # type: ignore[misc]
        assert ear.open


def refresh_cookies(answer: httpx.Response) -> list[str]:
    """Return each ``Set-Cookie`` of a refresh token, or of one that is dropped, as it was written."""
    cookies = answer.headers.get_list("set-cookie")
    return [cookie for cookie in cookies if re.match("(__Host-)?sse_app_refresh=", cookie)]


def refresh_cookie(answer: httpx.Response) -> str:
    """Return the ``Set-Cookie`` of the refresh token as it was written; there is no other."""
    (found,) = refresh_cookies(answer)
    return found
