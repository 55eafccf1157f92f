"""``sse-app check-token``: what it says of each kind of token, and that it never prints one."""

from __future__ import annotations

import json
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.ops.test_commands import at_a_terminal
from tests.support.minting import mint
from tests.support.openid import Issuer, served
from tests.support.server_process import ServerProcess, clean_environment, run_program, running

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a user."""
    with running(state_dir=tmp_path_factory.mktemp("server") / "state") as server:
        server.add_user("ann", PASSWORD, subscribe="dashboard,alerts", publish="alerts")
        yield server


def check(server: ServerProcess, token: str, **more: str) -> tuple[int, list[str]]:
    """Return the status of the command and the lines that it prints of a token on standard input."""
    done = run_program("check-token", environment=server.environment | more, input=token)
    assert done.stderr == ""
    assert_not_in(token, done)
    return done.returncode, done.stdout.splitlines()


def assert_not_in(token: str, done: subprocess.CompletedProcess[str]) -> None:
    """Fail where a part of a token was printed that could be used."""
    for part in token.strip().split("."):
        assert len(part) < 8 or part not in done.stdout + done.stderr


def login(server: ServerProcess) -> dict[str, str]:
    """Return what a login answers, with the refresh token in the body."""
    request = {"username": "ann", "password": PASSWORD, "cookie": False}
    answer = httpx.post(f"{server.url}/api/v1/auth/login", json=request)
    assert answer.status_code == 200
    return dict(answer.json())


def part(value: object) -> str:
    """Return a part of a token that says something."""
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_of_a_token_in_force_it_says_what_it_is_and_allows(server: ServerProcess) -> None:
    answer = login(server)
    status, lines = check(server, answer["access_token"] + "\n")
    assert (status, lines[0]) == (0, "valid: this server takes it")
    assert lines[1].startswith("kind: access token")
    assert "subject: ann" in lines
    assert "subscribe: dashboard, alerts, user.ann.**" in lines
    assert "publish: alerts" in lines
    assert any(line.startswith("expires: ") and "(in 3" in line for line in lines)
    status, lines = check(server, f"  Bearer {answer['stream_token']}  ")
    assert (status, lines[0]) == (0, "valid: this server takes it")
    assert lines[1].startswith("kind: stream token")


def test_a_token_on_the_command_line_is_checked_with_a_warning(server: ServerProcess) -> None:
    token = server.stream_token("alerts")
    done = run_program("check-token", token, environment=server.environment)
    assert done.returncode == 0
    assert done.stderr.startswith("sse-app: warning: other users")
    assert_not_in(token, done)


@pytest.mark.slow
def test_at_a_terminal_it_asks_and_does_not_show_what_is_typed(tmp_path: Path) -> None:
    run_program(
        *("user", "add", "ann", "--init", "--password-stdin"),
        environment=clean_environment(),
        cwd=tmp_path,
        input=PASSWORD,
    )
    token = run_program("token", environment=clean_environment(), cwd=tmp_path).stdout
    status, said = at_a_terminal(tmp_path, ["check-token"], [("token: ", token)])
    assert status == 0
    assert "valid: this server takes it" in said
    assert token.strip() not in said


def test_of_a_refresh_token_it_says_whose_and_does_not_spend_it(server: ServerProcess) -> None:
    refresh = login(server)["refresh_token"]
    status, lines = check(server, refresh)
    assert (status, lines[0]) == (0, "known: a refresh token of a session that has not ended")
    assert "subject: ann" in lines
    spent = httpx.post(f"{server.url}/api/v1/auth/refresh", json={"refresh_token": refresh})
    assert spent.status_code == 200
    assert check(server, "A" * 44)[0] == 1


def test_a_revoked_token_and_one_of_a_session_that_has_ended_are_named_as_such(server: ServerProcess) -> None:
    answer = login(server)
    ended = httpx.post(f"{server.url}/api/v1/auth/logout", json={"refresh_token": answer["refresh_token"]})
    assert ended.status_code == 204
    for name in ("access_token", "stream_token"):
        status, lines = check(server, answer[name])
        assert (status, lines[0][:25]) == (1, "not valid: it was revoked")
    assert check(server, answer["refresh_token"])[0] == 1


def test_a_kicked_session_is_named_as_such(server: ServerProcess) -> None:
    token = server.stream_token("alerts", session="kicked")
    admin = {"Authorization": f"Bearer {server.access_token(admin=True)}"}
    fresh = server.stream_token("alerts", session="kicked")
    with httpx.stream("GET", server.stream_url("alerts", token, client_id="kicked")) as stream:
        parts = stream.iter_bytes()
        assert b"connected" in next(parts)
        table = httpx.get(
            f"{server.url}/api/v1/admin/connections",
            params={"field": "client_id", "search": "kicked"},
            headers=admin,
        )
        (row,) = table.json()["connections"]
        kicked = httpx.post(
            f"{server.url}/api/v1/admin/connections/{row['connection']}/kick", headers=admin, json={"for": 60}
        )
        assert kicked.status_code == 200, kicked.text
    status, lines = check(server, fresh)
    assert status == 1
    assert lines[0].startswith("not valid: an administrator has ended this session's streams")


def headed(**header: str) -> Callable[[str], str]:
    """Return what gives a token another header."""
    return lambda token: ".".join(
        [part({"alg": "HS256", "typ": "at+jwt", "kid": "first"} | header), *token.split(".")[1:]]
    )


def as_it_is(token: str) -> str:
    return token


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (lambda token: token[:-4] + "AAAA", {}, "the signature is wrong"),
        (as_it_is, {"ISSUER": "other"}, "its issuer (iss) is not auth.issuer"),
        (as_it_is, {"AUDIENCE": "other"}, "its audience (aud) is not auth.audience"),
        (as_it_is, {"LONGEST_LIFETIME": "60"}, "longer than auth.longest_lifetime"),
        (headed(kid="another"), {}, "no key of that id"),
        (headed(typ="JWT"), {}, "of no kind of this server's: typ is JWT"),
        (headed(alg="none"), {}, "the token is not valid (InvalidAlgorithmError)"),
        (headed(jku="https://keys.example"), {}, "a header parameter that is not honoured"),
        (lambda token: f"{token}.{token}", {}, "it is no token: three parts"),
        (lambda token: token.replace(".", ". "), {}, "it is no token: three parts"),
    ],
    ids=["signature", "issuer", "audience", "lifetime", "key", "kind", "algorithm", "jku", "twice", "blanks"],
)
def test_why_a_token_is_refused_is_said(
    server: ServerProcess, change: Callable[[str], str], settings: dict[str, str], said: str
) -> None:
    variables = {f"SSE_APP_AUTH__{name}": value for name, value in settings.items()}
    status, lines = check(server, change(server.access_token(ttl=600)), **variables)
    assert status == 1
    assert lines[0].startswith("not valid: ")
    assert said in lines[0]


def test_an_expired_token_is_named_as_such(server: ServerProcess) -> None:
    status, lines = check(server, mint(server.state_dir, TokenKind.STREAM, Grants.of(["alerts"]), ttl=-5))
    assert (status, lines[0][:26]) == (1, "not valid: it has expired:")
    assert any(line.startswith("expires: ") and line.endswith(" s ago)") for line in lines)


def test_a_providers_token_is_checked_with_the_keys_that_it_publishes(tmp_path: Path) -> None:
    issuer = Issuer()
    issuer.add("desk-1")
    try:
        with served(tmp_path / "state", issuer.url) as desk:
            status, lines = check(desk.server, issuer.token("desk-1"))
            assert (status, lines[0][:27]) == (0, "valid: this server takes it")
            assert "kind: access token of the OpenID provider" in lines
            assert "subject: kim" in lines
            assert "subscribe: dashboard, alerts, training" in lines
            status, lines = check(desk.server, issuer.token("desk-1", aud="another"))
            assert status == 1
            assert "not valid:" in lines[0]
            issuer.status = 500
            status, lines = check(desk.server, issuer.token("desk-1"))
            assert (status, lines[0][:34]) == (1, "not known whether it is valid: the")
    finally:
        issuer.server.shutdown()
        issuer.server.server_close()


def test_another_servers_token_is_shown_and_not_taken(server: ServerProcess, tmp_path: Path) -> None:
    with running(state_dir=tmp_path / "state") as other:
        other.command("keys", "rotate")
        token = other.stream_token("alerts", subject="bob")
        status, lines = check(server, token)
    assert status == 1
    assert "another server's" in lines[0]
    assert lines[1] == "what it says of itself, which was not verified:"
    assert "subject: bob" in lines


def test_without_state_it_says_that_it_does_not_know_and_makes_none(
    server: ServerProcess, tmp_path: Path
) -> None:
    token = server.stream_token("alerts")
    done = run_program("check-token", environment=clean_environment(), cwd=tmp_path, input=token)
    assert done.returncode == 1
    assert done.stdout.startswith("not known whether it is valid: there is no state in ")
    assert "subject: tester" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "payload",
    [
        {"sub": "\x1b]0;owned\x07\x1b[2J", "sse": {"subscribe": ["\x9b31m", "\u202e"]}, "exp": 2**39},
        {"sub": ["x"] * 5000, "sse": {"subscribe": "x" * 5000, "publish": 3}, "iat": -1, "exp": float("inf")},
        {"sub": {"a": None}, "sse": [], "jti": "\ud800", "exp": "soon"},
        {},
    ],
    ids=["controls", "long", "types", "empty"],
)
def test_what_a_forged_token_says_does_no_harm_to_a_terminal(
    server: ServerProcess, payload: dict[str, object]
) -> None:
    token = ".".join([part({"typ": "at+jwt", "alg": "HS256", "kid": "first\x1b"}), part(payload), "AAAA"])
    status, lines = check(server, token)
    assert status == 1
    assert all(line.isprintable() and len(line) < 300 for line in lines)


def test_nothing_is_one_line(server: ServerProcess) -> None:
    done = run_program("check-token", environment=server.environment, input=" \n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sse-app: there is no token on standard input\n"
