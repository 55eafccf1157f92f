"""The server keeps to its own description, whatever it is asked: Schemathesis makes up the requests."""

from __future__ import annotations

import http.cookies
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from tornado import web
from tornado.routing import URLSpec

from sse_app import Settings, SSEApp
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.handlers.site.pages import STATIC
from sse_app.settings.model import plain
from sse_app.version import VERSION
from tests.support.minting import mint
from tests.support.people import bearer
from tests.support.server_process import ServerProcess
from tests.support.server_process import running as running_server
from tests.support.waiting import until

DESCRIPTION = json.loads((STATIC / "openapi.json").read_bytes())

METHODS = {"get", "put", "post", "delete", "patch"}
Operation = tuple[str, str]
OPERATIONS: list[Operation] = [
    (method, path)
    for path, methods in DESCRIPTION["paths"].items()
    for method in methods
    if method in METHODS
]
every_operation = pytest.mark.parametrize(
    "operation", OPERATIONS, ids=[f"{method.upper()} {path}" for method, path in OPERATIONS]
)
FEW, MANY = 3, 100
"""Requests made up for each operation, beside those at the borders of its description."""


class Server:
    """The server that is asked, and a fresh administrator's token for each request: some of them end their own."""

    process: ServerProcess

    @classmethod
    def access_token(cls) -> str:
        return cls.process.access_token(subject="admin", admin=True)


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(
        state_dir=tmp_path_factory.mktemp("openapi") / "state",
        expected=("login_refused", "refresh_reused"),
        TRUSTED_PROXIES=["127.0.0.1/32"],
        CHANNELS=[
            *plain(Settings())["channels"],
            {"pattern": "open", "public": True},
            {"pattern": "cursors", "stored": False},
        ],
    ) as server:
        server.add_user("ann", "correct horse", subscribe="**")
        Server.process = server
        yield server


def ask_all(operation: Operation, count: int, *, as_administrator: bool) -> None:
    """Ask for an operation at the borders of its description, and in so many other ways."""
    from tests.support.made_up_requests import ask_all  # see there for why it is imported so late

    ask_all(Server.process.url, *operation, count, Server.access_token if as_administrator else None)


@pytest.mark.long
@every_operation
def test_a_stranger_is_answered_as_described(operation: Operation) -> None:
    ask_all(operation, FEW, as_administrator=False)


@pytest.mark.slow
@every_operation
def test_an_administrator_is_answered_as_described(operation: Operation) -> None:
    ask_all(operation, FEW, as_administrator=True)


@pytest.mark.long
@every_operation
def test_a_stranger_who_insists_is_answered_as_described(operation: Operation) -> None:
    ask_all(operation, MANY, as_administrator=False)


@pytest.mark.long
@every_operation
def test_an_administrator_who_insists_is_answered_as_described(operation: Operation) -> None:
    ask_all(operation, MANY, as_administrator=True)


# -- what nobody makes up by chance: answers that take a session, a stream, or a limit that is reached -----------


class Asked:
    """Asks as any client does, checks each answer against the description, and notes which it has seen.

    Args:
        server: whom.
    """

    def __init__(self, server: ServerProcess) -> None:
        from tests.support.made_up_requests import SCHEMA  # see there for why it is imported so late

        self._schema = SCHEMA
        self._server = server
        self.seen: set[tuple[str, str, int]] = set()

    def __call__(
        self, method: str, path: str, expected: int, *, at: str = "", **options: Any
    ) -> httpx.Response:
        """Ask; ``at`` fills in what the path has in braces."""
        url = re.sub(r"{\w+}", at, path)
        answer = httpx.request(method, f"{self._server.url}{url}", timeout=30, **options)
        assert answer.status_code == expected, (method, url, answer.text)
        self._schema[path][method].validate_response(answer)
        self.seen.add((method, path, expected))
        return answer


@pytest.mark.slow
def test_every_good_answer_is_as_described(running: ServerProcess) -> None:
    ask, admin = Asked(running), bearer(Server.access_token())
    event = {"event": "e", "data": {"n": 1}}
    ask("POST", "/api/v1/sse/{channel}", 201, at="alerts", headers=admin, json=event)
    ask("POST", "/api/v1/sse", 201, headers=admin, json={"events": [{**event, "channel": "alerts"}] * 3})
    ask("POST", "/api/v1/sse/{channel}", 202, at="cursors", headers=admin, json=event)
    unstored = {**event, "channel": "cursors"}
    ask("POST", "/api/v1/sse", 202, headers=admin, json={"events": [unstored] * 2})
    both = [unstored, {**event, "channel": "alerts"}]
    ask("POST", "/api/v1/sse", 201, headers=admin, json={"events": both})
    ask("GET", "/api/v1/sse/{channel}/history", 200, at="open")
    ask("GET", "/api/v1/sse/{channel}/history", 401, at="alerts")
    patterns = running.stream_url("user.*.orders,**", running.stream_token("**"))
    with (
        httpx.stream("GET", f"{running.url}/api/v1/sse/open", timeout=30) as stream,
        httpx.stream("GET", patterns, timeout=30) as of_patterns,
    ):
        pieces = [stream.iter_bytes(), of_patterns.iter_bytes()]
        for each in pieces:
            next(each)
        found = ask("GET", "/api/v1/admin/connections", 200, headers=admin).json()["connections"]
        assert None in [connection["token_id"] for connection in found]
        assert ["user.*.orders", "**"] in [connection["channels"] for connection in found]
    history = ask("GET", "/api/v1/sse/{channel}/history", 200, at="alerts", headers=admin).json()
    assert len(history["events"]) >= 4
    ask("GET", "/api/v1/sse/status", 200)
    grants = Grants.of(presence=["alerts"])
    seeing = bearer(mint(running.state_dir, TokenKind.ACCESS, grants, subject="bob", ttl=60))
    assert ask("GET", "/api/v1/sse/{channel}/presence", 200, at="alerts", headers=seeing).json()["count"] == 0

    look = "/api/v1/admin/channels/{channel}/presence"
    assert ask("GET", look, 200, at="alerts", headers=admin).json()["count"] == 0
    users, user = "/api/v1/admin/users", "/api/v1/admin/users/{name}"
    dora = {"name": "dora", "password": "battery staple", "grants": {"subscribe": ["alerts", "nowhere"]}}
    assert ask("POST", users, 201, headers=admin, json=dora).json()["uncovered"] == ["nowhere"]
    ask("POST", users, 409, headers=admin, json=dora)
    assert ask("GET", users, 200, headers=admin, params={"search": "DORA"}).json()["total"] == 1
    ask("PATCH", user, 200, at="dora", headers=admin, json={"disabled": True, "grants": {"admin": True}})
    ask("GET", user, 200, at="dora", headers=admin)
    ask("GET", user, 404, at="erik", headers=admin)
    hers = bearer(running.access_token(subject="dora", admin=True))
    ask("PATCH", user, 409, at="dora", headers=hers, json={"grants": {}})

    credentials = {"username": "ann", "password": "correct horse"}
    with_cookie = ask("POST", "/api/v1/auth/login", 200, json=credentials)
    cookies = {"Cookie": with_cookie.headers["Set-Cookie"].partition(";")[0]}
    refreshed = ask("POST", "/api/v1/auth/refresh", 200, headers=cookies)
    then = {"Cookie": refreshed.headers["Set-Cookie"].partition(";")[0]}
    ask("POST", "/api/v1/auth/refresh", 200, headers=then)
    dropped = ask("POST", "/api/v1/auth/refresh", 401, headers=cookies)  # it works once
    assert http.cookies.SimpleCookie(dropped.headers["Set-Cookie"])["sse_app_refresh"]["expires"]
    tokens = ask("POST", "/api/v1/auth/login", 200, json={**credentials, "cookie": False}).json()
    tokens = ask("POST", "/api/v1/auth/refresh", 200, json={"refresh_token": tokens["refresh_token"]}).json()
    ann = bearer(tokens["access_token"])
    ask("GET", "/api/v1/auth/me", 200, headers=ann)
    narrow = {"channels": ["alerts", "user.ann.orders"]}
    token = ask("POST", "/api/v1/auth/stream-token", 200, headers=ann, json=narrow).json()["stream_token"]

    with httpx.stream("GET", running.stream_url("alerts", token, client_id="desk-1"), timeout=30) as stream:
        events = stream.iter_bytes()
        next(events)
        renew = "/api/v1/sse/connections/{client_id}/renew"
        ask("POST", renew, 200, at="desk-1", headers=bearer(tokens["stream_token"]))
        found = ask("GET", "/api/v1/admin/connections", 200, headers=admin).json()["connections"]
        kick = "/api/v1/admin/connections/{connection}/kick"
        at = found[0]["connection"]
        ask("GET", kick, 200, at=at, headers=admin)
        ask("POST", kick, 422, at=at, headers=admin, json={"for": -1})
        ask("POST", kick, 200, at=at, headers=admin, json={"for": 60})
    ask("POST", "/api/v1/auth/stream-token", 403, headers=ann, json=narrow)
    ask("POST", "/api/v1/auth/logout", 204, headers=ann)
    for revocation in ({"token_id": "a"}, {"session": "a"}, {"subject": "a"}, {"all": True}):
        ask("POST", "/api/v1/admin/revocations", 201, headers=bearer(Server.access_token()), json=revocation)
    admin = bearer(Server.access_token())
    assert ask("GET", "/api/v1/admin/audit", 200, headers=admin).json()["entries"]
    ask("GET", "/api/v1/admin/figures", 200, headers=admin)

    for algorithm in ("EdDSA", "ES256", "RS256"):
        running.command("keys", "rotate", "--algorithm", algorithm)
    until(
        lambda: len(ask("GET", "/.well-known/jwks.json", 200).json()["keys"]) >= 3,
        "the new keys are published",
    )
    assert ask("GET", "/openapi.json", 200).json() == DESCRIPTION
    for path in ("/healthz", "/readyz", "/metrics"):
        ask("GET", path, 200)

    good = {
        (method.upper(), path, int(status))
        for path, item in DESCRIPTION["paths"].items()
        for method in METHODS & item.keys()
        for status in item[method]["responses"]
        if status.startswith("2")
    }
    assert good <= ask.seen, good - ask.seen


@pytest.mark.ci
def test_limits_and_refusals_are_answered_as_described(
    running: ServerProcess, start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    ask, admin = Asked(running), bearer(Server.access_token())
    event = {"event": "e", "data": {}}
    publish, login = "/api/v1/sse/{channel}", "/api/v1/auth/login"
    for path, item in DESCRIPTION["paths"].items():
        for method in METHODS & item.keys():
            ask(method.upper(), path, 413, at="1", content=b"x" * 1_100_000)
    ask("POST", publish, 415, at="alerts", headers={**admin, "Content-Encoding": "gzip"}, json=event)
    ask("POST", publish, 404, at="nowhere", headers=admin, json=event)
    ask("POST", publish, 405, at="status", headers=admin, json=event)
    once = {**admin, "Idempotency-Key": "k"}
    ask("POST", publish, 201, at="alerts", headers=once, json=event)
    ask("POST", publish, 422, at="alerts", headers=once, json={**event, "data": {"other": 1}})
    ask("POST", login, 403, headers={"Origin": "https://evil.example"}, json={})
    wrong = {"username": "bob", "password": "wrong"}
    stranger = {"X-Forwarded-For": "192.0.2.1"}
    for _ in range(5):
        ask("POST", login, 401, headers=stranger, json=wrong)

    def wait() -> int:
        """Guess once more; where the wait was over, the next is twice as long."""
        answer = httpx.post(f"{running.url}{login}", headers=stranger, json=wrong)
        return int(answer.headers.get("retry-after", 0))

    until(lambda: wait() > 3, "it has to wait for some seconds")
    ask("POST", login, 429, headers=stranger, json=wrong)
    ask("GET", "/metrics", 403, headers=stranger)

    slow = start_server(
        state_dir=tmp_path / "slow",
        expected=("provider_unavailable",),
        LIMITS__PUBLISH_RATE=1,
        OIDC__ISSUER="https://login.example",
        OIDC__AUDIENCE="sse_app",
        OIDC__JWKS_URL="http://127.0.0.1:1/keys",
    )
    ask, admin = Asked(slow), bearer(slow.access_token())
    many = {
        "events": [{**event, "channel": "alerts"}] * 100
    }  # a full bucket lets them pass, and is empty for 100 s
    ask("POST", "/api/v1/sse", 201, headers=admin, json=many)
    ask("POST", publish, 429, at="alerts", headers=admin, json=event)
    theirs = jwt.encode({"iss": "https://login.example"}, "k" * 32, headers={"kid": "theirs"})
    ask("POST", "/api/v1/auth/stream-token", 503, headers=bearer(theirs))


# -- the description and the server have the same things in them ---------------------------------------------------


def test_every_route_is_described_and_nothing_else_is(sse: SSEApp) -> None:
    routed = {_asked_at(route): set(_methods(route)) for route in sse.routes()}
    described = {
        re.sub(r"{\w+}", "1", path): {method for method in METHODS & item.keys()}
        for path, item in DESCRIPTION["paths"].items()
    }
    for path, item in DESCRIPTION["paths"].items():
        if "x-stream" in item:
            described[re.sub(r"{\w+}", "1", path)].add(item["x-stream"]["method"].lower())
    assert described == routed


def _asked_at(route: URLSpec) -> str:
    """Return a path that the route is for: its groups are all such that 1 fits."""
    path = re.sub(r"\([^)]*\)", "1", route.regex.pattern.removesuffix("$")).replace("\\", "")
    assert route.regex.fullmatch(path), path
    return path


def _methods(route: URLSpec) -> Iterator[str]:
    for method in METHODS:
        if getattr(route.handler_class, method) is not web.RequestHandler._unimplemented_method:
            yield method


def test_the_description_is_of_this_version() -> None:
    assert DESCRIPTION["info"]["version"] == VERSION


def test_every_component_is_used() -> None:
    text = json.dumps(DESCRIPTION)
    for kind, components in DESCRIPTION["components"].items():
        if kind != "securitySchemes":
            for name in components:
                assert f'"#/components/{kind}/{name}"' in text, name


CODES = set(
    DESCRIPTION["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
)


def test_every_error_code_is_told_where_it_is_answered() -> None:
    answers = [answer["description"] for answer in DESCRIPTION["components"]["responses"].values()]
    streams = [
        item["x-stream"]["description"] for item in DESCRIPTION["paths"].values() if "x-stream" in item
    ]
    told = set(re.findall(r"\w+", " ".join([DESCRIPTION["info"]["description"], *answers, *streams])))
    assert told >= CODES, CODES - told


def test_every_error_code_in_the_code_is_described() -> None:
    sources = [path.read_text() for path in (STATIC.parent / "handlers").rglob("*.py")]
    found = {code for text in sources for code in re.findall(r'Refusal\(\s*\d{3}, "(\w+)"', text)}
    assert "kicked" in found
    assert found <= CODES, found - CODES
