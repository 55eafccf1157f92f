"""A server with accounts: tokens signed with its own key, and what is asked of it in their name."""

from __future__ import annotations

import hmac
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support.forging import TYPES as TYPES
from tests.support.forging import encoded as encoded
from tests.support.people import Site, serving
from tests.support.people import bearer as bearer
from tests.support.people import claims_of as claims_of
from tests.support.server_process import ServerProcess, run_program

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


def sign(key: bytes, header: object, payload: object, algorithm: str = "sha256") -> str:
    """Sign anything whatever as if it were a JWT: a JWT library would refuse most of it."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{encoded(hmac.new(key, signed.encode(), algorithm).digest())}"


class House(Site):
    """A site whose clients send no token of their own, and whose key forgers may use."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(server)
        (key,) = (server.state_dir / "keys").iterdir()
        self.key = key.read_bytes()

    def login(self, username: str, password: str | None = None, address: str = "127.0.0.1") -> httpx.Response:
        """Log in; wrong passwords from one address are soon made to wait, so tests with many change it."""
        password = PASSWORDS.get(username, "") if password is None else password
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=60) as http:
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


@contextmanager
def start(tmp_path_factory: pytest.TempPathFactory, **settings: Any) -> Iterator[House]:
    """Run a server with accounts."""
    with serving(House, tmp_path_factory.mktemp("tokens") / "state", CHANNELS=CHANNELS, **settings) as house:
        yield house


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server with the accounts ann and bob."""
    with start(tmp_path_factory) as house:
        house.server.add_user("ann", PASSWORDS["ann"], subscribe="dashboard,desk.*", publish="alerts")
        house.server.add_user("bob", PASSWORDS["bob"], subscribe="alerts")
        yield house


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server that allows two streams to a user and four to an address."""
    with start(
        tmp_path_factory,
        expected=("proxy_not_trusted",),
        LIMITS__STREAMS_PER_USER=2,
        LIMITS__STREAMS_PER_ADDRESS=4,
    ) as limited:
        yield limited


@pytest.fixture
def the_log_stays_quiet(house: House) -> Iterator[None]:
    """Fail a test that has brought a traceback or an unexpected warning into the log."""
    with house.server.log_stays_quiet():
        yield


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


def assert_login_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}


def command(house: House, *arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
    return run_program(*arguments, environment=house.server.environment, input=input)
