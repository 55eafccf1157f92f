"""What a server does while accounts and sessions cannot be written: 503 for what needs them, and all else goes on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from tornado.ioloop import IOLoop

from sse_app import Settings, SSEApp
from sse_app.auth.records import Revocation
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.core.errors import AuthStoreUnavailable
from sse_app.handlers.site.pages import STATIC
from sse_app.storage import sqlite as storage
from tests.support.databases import disk_full, locked
from tests.support.waiting import until_async

DESCRIBED = json.loads((STATIC / "openapi.json").read_bytes())["paths"]
PASSWORD = "correct horse battery"
GRANTS = Grants.of(subscribe=["alerts"], publish=["alerts"])


@pytest.fixture
def sse(io_loop: IOLoop, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SSEApp]:
    """A server in the process that does not wait for locks, with the account ``ann``."""
    monkeypatch.setattr(storage, "BUSY_TIMEOUT", 0.02)
    app = SSEApp(settings)
    io_loop.run_sync(app.start)
    io_loop.run_sync(lambda: app.node.accounts.add("ann", PASSWORD, GRANTS))
    yield app
    io_loop.run_sync(app.stop)


@pytest.mark.gen_test
@pytest.mark.usefixtures("http_server")
@pytest.mark.parametrize("unwritable", [locked, pytest.param(disk_full, marks=pytest.mark.slow)])
@pytest.mark.expects_logs("accounts_unavailable", "login_refused")
async def test_what_needs_accounts_is_503_and_is_done_when_they_are_back(
    base_url: str, sse: SSEApp, unwritable: Callable[[Path], AbstractContextManager[None]]
) -> None:
    grants = Grants.of(subscribe=["alerts"], publish=["alerts"], admin=True)
    token = sse.node.tokens.issue(TokenKind.ACCESS, "root", "minted", grants, 600)
    headers = {"Authorization": f"Bearer {token}"}
    login = {"username": "ann", "password": PASSWORD, "cookie": False}
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as http:
        session = (await http.post("/api/v1/auth/login", json=login)).json()
        refresh = {"refresh_token": session["refresh_token"]}
        requests: list[tuple[str, object]] = [
            ("/api/v1/auth/login", login),
            ("/api/v1/auth/refresh", refresh),
            ("/api/v1/auth/logout", refresh),
            ("/api/v1/admin/revocations", {"session": "other"}),
            ("/api/v1/admin/users", {"name": "bob", "password": PASSWORD}),
        ]
        ann = "/api/v1/admin/users/ann"
        change = {"password": "battery staple", "grants": {"admin": True}, "disabled": True}
        with unwritable(sse.node.state.accounts):
            for path, body in requests:
                is_admin = path.startswith("/api/v1/admin")
                answer = await http.post(path, json=body, headers=headers if is_admin else {})
                assert answer.status_code == 503, path
                assert answer.json()["error"]["code"] == "unavailable"
                assert "503" in DESCRIBED[path]["post"]["responses"], path
                assert "locked" not in answer.text
                assert "disk" not in answer.text
                assert int(answer.headers["retry-after"]) > 0
            assert (await http.patch(ann, json=change, headers=headers)).status_code == 503
            as_before = (await http.get(ann, headers=headers)).json()
            assert (as_before["disabled"], as_before["grants"]["admin"]) == (False, False)
            wrong = await http.post("/api/v1/auth/login", json=login | {"password": "wrong horse"})
            assert wrong.status_code == 401
            assert (await http.get("/api/v1/auth/me", headers=headers)).status_code == 200
            published = {"event": "e", "data": {}}
            assert (await http.post("/api/v1/sse/alerts", json=published, headers=headers)).status_code == 201
        for path, body in requests:
            answer = await http.post(
                path, json=body, headers=headers if path.startswith("/api/v1/admin") else {}
            )
            if path == "/api/v1/auth/refresh":
                refresh["refresh_token"] = answer.json()["refresh_token"]
            assert answer.status_code in (200, 201, 204), (path, answer.text)
        changed = (await http.patch(ann, json=change, headers=headers)).json()
        assert (changed["disabled"], changed["grants"]["admin"]) == (True, True)


@pytest.mark.gen_test
@pytest.mark.expects_logs("accounts_unavailable")
async def test_that_the_audit_trail_cannot_be_written_is_logged_once_and_nothing_of_it_is_lost(
    sse: SSEApp, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return [record.getMessage() for record in caplog.records].count("accounts_unavailable")

    async def written() -> list[str]:
        entries = await sse.node.auth_store.audit_entries(10)
        return [entry.detail for _, entry in entries if entry.action == "tried"]

    for times in (1, 2):

        async def logged(times: int = times) -> bool:
            return told() == times

        async def caught_up(times: int = times) -> bool:
            return len(await written()) == times

        with locked(sse.node.state.accounts), caplog.at_level(logging.ERROR):
            sse.node.audit.record("tried", detail=str(times))
            await until_async(logged, "it is logged")
            await asyncio.sleep(1.0)  # it is tried four times meanwhile
            assert told() == times
        await until_async(caught_up, "the entry is written")
    assert await written() == ["2", "1"]
    assert told() == 2


@pytest.mark.gen_test
async def test_a_revocation_that_cannot_be_written_revokes_nothing(sse: SSEApp) -> None:
    token = sse.token("ann", subscribe=["alerts"])
    with locked(sse.node.state.accounts), pytest.raises(AuthStoreUnavailable):
        await sse.node.enforcement.revoke(Revocation.of_subject("ann"))
    assert sse.node.tokens.verify(token, TokenKind.STREAM).subject == "ann"
    await sse.node.enforcement.revoke(Revocation.of_subject("ann"))
    assert len(sse.node.revocations) == 1
