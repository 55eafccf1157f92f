"""Tokens and revocations over several workers go by the numbers of the store, whatever the clock is set to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Site, bearer
from tests.support.waiting import until
from tests.support.wall_clock import HOUR, MINUTE, WallClock, clock_library, wall_clock
from tests.support.worker_processes import worker_processes

__all__ = ["clock_library", "wall_clock"]


@pytest.fixture
def sites(wall_clock: WallClock, tmp_path: Path) -> Iterator[list[Site]]:
    environment = wall_clock.environment
    with worker_processes(2, tmp_path / "state", environment=environment) as workers:
        sites = [Site(worker) for worker in workers]
        sites[0].add_user("ann")
        sites[0].add_user("boss", admin=True)
        yield sites
        for site in sites:
            site.leave_all()
            site.http.close()


def revoke(site: Site, what: str) -> None:
    """Revoke as an administrator whose token the server has issued by its own clock."""
    body = {what: "ann" if what == "subject" else True}
    headers = bearer(site.log_in("boss").access)
    site.http.post("/api/v1/admin/revocations", json=body, headers=headers).raise_for_status()


def accepted(sites: list[Site], access: str, stream: str) -> set[tuple[int, int]]:
    return {(site.me(access), site.stream_status(stream)) for site in sites}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["subject", "all"])
def test_a_token_of_one_worker_is_good_on_another_at_once_and_one_from_before_a_revocation_is_not(
    sites: list[Site], wall_clock: WallClock, what: str
) -> None:
    first, second = sites
    wall_clock.set(HOUR)
    early = first.log_in("ann")
    assert accepted(sites, early.access, early.stream) == {(200, 200)}
    wall_clock.set(0)  # from here on every clock shows an earlier time than the token was issued at
    revoke(second, what)
    late = second.log_in("ann")
    for _ in range(2):
        assert accepted(sites, late.access, late.stream) == {(200, 200)}
        assert accepted(sites, early.access, early.stream) == {(401, 401)}
        # A worker that begins anew has seen none of it.
        first.restart()
    wall_clock.set(2 * HOUR)
    again = first.log_in("ann")
    revoke(first, what)
    wall_clock.set(0)
    for site in sites:
        fresh = site.log_in("ann")
        assert accepted(sites, fresh.access, fresh.stream) == {(200, 200)}
    assert accepted(sites, again.access, again.stream) == {(401, 401)}


def test_a_revocation_reaches_a_token_dated_ahead_also_on_a_worker_that_has_not_seen_it(
    sites: list[Site], wall_clock: WallClock
) -> None:
    """Such a token says nothing but its issuing time, as those of a provider do."""
    first, second = sites
    token = first.mint(TokenKind.ACCESS, "ann")
    assert first.me(token) == 200
    wall_clock.set(-MINUTE)
    revoke(first, "subject")
    for offset in (-MINUTE, 0, MINUTE):
        wall_clock.set(offset)
        # A worker that is held up while it is told finds the revocation in the store a little later.
        until(lambda: [site.me(token) for site in (second, first)] == [401, 401], "both know of it")
    assert [site.me(token) for site in (second, first)] == [401, 401]
