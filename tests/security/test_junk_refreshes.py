"""Refresh tokens that the server has not issued cost little: no write, no line of the audit trail each, then a wait."""

from __future__ import annotations

import secrets
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.people import Site, bearer, site
from tests.support.waiting import until

JUNK = 1200


def trail(desk: Site) -> list[dict[str, str]]:
    answer = desk.http.get("/api/v1/admin/audit?limit=1000", headers=desk.admin)
    entries: list[dict[str, str]] = answer.json()["entries"]
    return entries


def flood(desk: Site, count: int, address: str = "127.0.9.1") -> Counter[int]:
    """Try that many made-up refresh tokens, some as the cookie, and return how often each status came."""

    def some(number: int) -> list[int]:
        with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=30) as http:
            statuses = []
            for _ in range(count // 4):
                token = secrets.token_urlsafe(32)
                answer = http.post(f"{desk.server.url}/api/v1/auth/refresh", json={"refresh_token": token})
                statuses.append(answer.status_code)
                if answer.status_code == 429:
                    assert answer.json()["error"]["code"] == "too_many_attempts"
                    assert int(answer.headers["retry-after"]) >= 1
            return statuses

    with ThreadPoolExecutor(4) as threads:
        return Counter(status for statuses in threads.map(some, range(4)) for status in statuses)


@pytest.mark.slow
def test_unknown_refresh_tokens_are_counted_and_throttled_and_a_real_one_beside_them_is_not(
    tmp_path: Path,
) -> None:
    with site(tmp_path / "state", users=("ann",)) as desk:
        session = desk.log_in("ann", address="127.0.9.1")
        statuses = flood(desk, JUNK)
        assert set(statuses) == {401, 429}
        assert statuses[429] > 0
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.9.1"), timeout=30) as http:
            answer = http.post(
                f"{desk.server.url}/api/v1/auth/refresh", json={"refresh_token": session.refresh}
            )
        assert answer.status_code == 200
        elsewhere = desk.try_refresh(secrets.token_urlsafe(32))
        assert elsewhere.status_code == 401  # another address has its own
        refused = [entry for entry in trail(desk) if entry["action"] == "refresh_refused"]
        assert len(refused) <= 2
        desk.restart(hard=False)
        refused = [entry for entry in trail(desk) if entry["action"] == "refresh_refused"]
        assert sum(int(entry["detail"].rpartition(" ")[2]) for entry in refused) == JUNK + 1
        assert len(refused) <= 3


@pytest.mark.long
def test_what_strangers_do_does_not_wash_out_what_administrators_did(tmp_path: Path) -> None:
    with site(tmp_path / "state", users=("ann",)) as desk:
        desk.revoke(subject="mallory")
        session = desk.log_in("ann")
        flood(desk, JUNK)
        for _ in range(8):
            session = desk.refresh(session.refresh)
        desk.http.post("/api/v1/auth/logout", headers=bearer(session.access))
        until(lambda: trail(desk)[0]["action"] == "logout", "the logout is in the trail")
        actions = Counter(entry["action"] for entry in trail(desk))
        assert actions["revocation"] == actions["login"] == actions["logout"] == 1
        assert actions["refresh"] == 8
