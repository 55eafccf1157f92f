"""Sessions end by themselves: when they are idle, and at last; short lifetimes show it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.people import Site, claims_of, site
from tests.support.waiting import until


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("brief") / "state"
    settings: dict[str, Any] = {
        "AUTH__SESSION_IDLE": 5,
        "AUTH__SESSION_LIFETIME": 9,
        "AUTH__ACCESS_LIFETIME": 1,
        "AUTH__STREAM_LIFETIME": 30,
        "AUTH__LONGEST_LIFETIME": 60,
    }
    with site(state_dir, users=("ann",), **settings) as served:
        yield served


def test_a_session_that_is_refreshed_lives_until_its_absolute_end_and_no_longer(brief: Site) -> None:
    begun = time.monotonic()
    session = brief.log_in("ann")
    lifetimes = [session.answer["refresh_expires_in"]]
    while time.monotonic() < begun + 15:
        answer = brief.try_refresh(session.refresh)
        if answer.status_code != 200:
            break
        session.refresh = answer.json()["refresh_token"]
        lifetimes.append(answer.json()["refresh_expires_in"])
        time.sleep(0.25)
    assert 8.9 < time.monotonic() - begun < 14
    assert lifetimes[0] == 5
    assert lifetimes[-1] < 5  # it says how little is left
    assert brief.stream_status(session.stream) == 401


def test_a_session_that_is_idle_ends(brief: Site) -> None:
    begun = time.monotonic()
    session = brief.log_in("ann")
    time.sleep(5.2)  # the property is the time itself
    assert brief.try_refresh(session.refresh).status_code == 401
    assert time.monotonic() - begun < 9, "too slow to tell idle from absolute"


@pytest.mark.slow
def test_what_ended_with_its_session_stays_dead_as_long_as_any_of_its_tokens_could_live(brief: Site) -> None:
    session = brief.log_in("ann")
    body = {"refresh_token": session.refresh}  # the access token may expire on its way
    assert brief.http.post("/api/v1/auth/logout", json=body).status_code == 204
    assert brief.stream_status(session.stream) == 401
    # Its access token has expired by now, its stream token has not; others' logouts sweep the deny-list.
    until(lambda: claims_of(session.access)["exp"] < time.time(), "the access token expires")
    time.sleep(0.5)
    other = brief.log_in("ann")
    assert brief.http.post("/api/v1/auth/logout", json={"refresh_token": other.refresh}).status_code == 204
    assert brief.stream_status(session.stream) == 401
    brief.restart()
    assert brief.stream_status(session.stream) == 401
