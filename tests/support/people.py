"""People who log in to a real server: their tokens, their streams, and what an administrator does to them."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson

from sse_app.auth.accounts.accounts import Accounts
from sse_app.auth.accounts.passwords import PasswordThreads
from sse_app.auth.factory import make_auth_store
from sse_app.auth.tokens.claims import new_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind, Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory
from tests.support.server_process import ServerProcess

DEADLINE = 10.0
IN_FORCE = 1.0
"""Within how many seconds a revocation ends the open streams; measured from the answer, not from the request."""

GRANTS = Grants.of(subscribe=["dashboard", "alerts", "desk.*"], publish=["alerts"])
ALL = Grants.of(subscribe=["**"], publish=["**"], admin=True)
PASSWORD = "correct horse battery"


def until(condition: Callable[[], object], what: str, seconds: float = DEADLINE) -> None:
    """Wait for a condition, and fail in words where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


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
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ended_at: float | None = None
        self._socket = socket.create_connection(("127.0.0.1", server.port), 30, (address or "127.0.0.1", 0))
        query = f"token={token}" + (f"&client_id={client_id}" if client_id else "")
        self._socket.sendall(f"GET /api/v1/sse/{channels}?{query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        if self.status == 200:
            until(lambda: self.events, "connected")

    def _listen(self) -> None:
        type = ""
        with suppress(OSError):
            for line in self._file:
                if line.startswith(b"event: "):
                    type = line[7:].decode().strip()
                elif line.startswith(b"data: "):
                    self.events.append((type, orjson.loads(line[6:])))
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
        self._thread.join(DEADLINE)
        self._file.close()
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
        self.http = httpx.Client(base_url=server.url, timeout=30)
        self.ears: list[Ear] = []

    def add_user(self, name: str, admin: bool = False) -> None:
        """Make an account as the command does, in a fraction of its time."""
        asyncio.run(self._add_user(name, ALL if admin else GRANTS))

    async def _add_user(self, name: str, grants: Grants) -> None:
        store = make_auth_store(StateDirectory(self.server.state_dir))
        await store.open()
        threads = PasswordThreads()
        try:
            await Accounts(store, threads, Settings().auth).add(name, PASSWORD, grants)
        finally:
            threads.close()
            await store.close()

    def mint(self, kind: TokenKind, subject: str, session: str = "", ttl: float = 600) -> str:
        """Return a token as the ``token`` command mints it, in a fraction of its time."""
        keys = KeyRing.load(self.server.state_dir / "keys")
        issuer = Tokens(keys, issuer="sse_app", audience="sse_app", longest=ttl)
        grants = ALL if kind is TokenKind.ACCESS else ALL.only_subscribing()
        return issuer.issue(kind, subject, session or new_id(), grants, ttl)

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


def session_of(answer: httpx.Response) -> Session:
    document = answer.json()
    return Session(
        document["access_token"], document["stream_token"], document.get("refresh_token", ""), document
    )


@contextmanager
def site(
    state_dir: Path, *, users: tuple[str, ...] = (), expected: tuple[str, ...] = (), **settings: Any
) -> Iterator[Site]:
    """Serve with these accounts, and check the log afterwards."""
    server = ServerProcess(state_dir=state_dir, expected=("login_refused", *expected), **settings)
    try:
        server.start()
        site = Site(server)
        for user in users:
            site.add_user(user)
        yield site
        site.leave_all()
        site.http.close()
        assert server.stop() == 0
    finally:
        server.kill()
    server.check_log()


def assert_ended(ears: list[Ear], since: float, reason: str) -> None:
    """Check that streams have ended with that reason within a second."""
    until(lambda: not any(ear.open for ear in ears), f"the streams end ({reason})")
    for ear in ears:
        assert ear.ended_at is not None
        assert ear.farewell == reason
        assert ear.ended_at - since < IN_FORCE


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


def refresh_cookie(answer: httpx.Response) -> str:
    """Return the ``Set-Cookie`` of the refresh token as it was written."""
    found = [value for value in answer.headers.get_list("set-cookie") if re.match("sse_app_refresh=", value)]
    assert len(found) == 1, found
    return found[0]
