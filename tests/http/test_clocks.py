"""The wall clock is set back, forward and to 1970 under open streams: nothing stands still, is lost or comes back."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from sse_app.storage.state_dir import StateDirectory
from tests.support.people import Ear, bearer
from tests.support.waiting import until
from tests.support.wall_clock import HOUR, MINUTE, YEAR, ClockedServer, Hear
from tests.support.wall_clock import clock_library as clock_library
from tests.support.wall_clock import hear as hear
from tests.support.wall_clock import start as start
from tests.support.wall_clock import wall_clock as wall_clock

STEPS = {
    "back by 20 s": -20.0,
    "back by an hour": -HOUR,
    "back by two years": -2 * YEAR,
    "forward by a minute": MINUTE,
    "forward by 2 years": 2 * YEAR,
}
Start = Callable[..., ClockedServer]


def pings(ear: Ear) -> int:
    return sum(type == "ping" for type, _ in ear.events)


def publish(server: ClockedServer, channel: str, number: int) -> str:
    token = server.minted(TokenKind.ACCESS)
    url = f"{server.url}/api/v1/sse/{channel}"
    answer = httpx.post(url, json={"event": "e", "data": {"number": number}}, headers=bearer(token))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


# -- streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(
            step,
            id=name,
            marks=[] if name in ("back by 20 s", "forward by a minute") else pytest.mark.slow,
        )
        for name, step in STEPS.items()
    ],
)
def test_pings_events_and_expiry_come_in_time_after_the_clock_was_set(
    start: Start, hear: Hear, step: float
) -> None:
    server = start(AUTH__LONGEST_LIFETIME=300 * 86_400)
    lasting = hear(server, "dashboard", server.minted(TokenKind.STREAM, ttl=200 * 86_400))
    begun = time.monotonic()
    brief = hear(server, "dashboard", server.minted(TokenKind.STREAM, ttl=4))
    until(lambda: pings(lasting) >= 1, "a ping")
    server.clock.set(step)
    set_at = time.monotonic()
    assert httpx.get(f"{server.url}/healthz", timeout=5).status_code == 200
    publish(server, "dashboard", 1)
    if step < YEAR:
        before = pings(lasting)
        until(lambda: pings(lasting) >= before + 3, "pings")
        assert [type for type, _ in lasting.events].count("e") == 1
    else:
        until(lambda: lasting.farewell == "token_expired", "a token of the past ends its stream", 5)
    until(lambda: brief.ended_at, "the token's life is over", 15)
    assert brief.farewell == "token_expired"
    assert brief.ended_at is not None
    if step < 0:
        assert begun + 2.5 < brief.ended_at < begun + 10
    else:
        assert brief.ended_at < set_at + 5
    fresh = hear(server, "dashboard", server.minted(TokenKind.STREAM))
    assert 590 <= fresh.expires_in <= 600
    until(lambda: pings(fresh) >= 3, "the fresh stream lives")
    assert fresh.farewell is None


def test_a_fresh_stream_stays_although_the_clock_was_set_back_by_more_than_its_life(
    start: Start, hear: Hear
) -> None:
    server = start()
    server.clock.set(2 * HOUR)
    old = hear(server, "dashboard", server.minted(TokenKind.STREAM, ttl=600))
    until(lambda: pings(old) >= 1, "a ping")
    server.clock.set(0)
    fresh = hear(server, "dashboard", server.minted(TokenKind.STREAM, ttl=8))
    assert fresh.expires_in <= 8
    until(lambda: pings(fresh) >= 2, "pings")
    assert fresh.farewell is None
    until(lambda: fresh.farewell == "token_expired", "its own life is over", 20)
    assert old.open


def test_a_token_lives_no_longer_on_a_stream_than_it_was_issued_for(start: Start, hear: Hear) -> None:
    """Its stream is opened after the clock was set back, when its ``exp`` is an hour further away."""
    server = start()
    token = server.minted(TokenKind.STREAM, ttl=4)
    first = hear(server, "dashboard", token)  # verified, and remembered
    server.clock.set(-HOUR)
    second = hear(server, "dashboard", token)
    assert second.status == 401 or second.expires_in <= 4
    until(lambda: not (first.open or second.open), "both end", 15)


@pytest.mark.slow
def test_many_streams_that_expire_at_once_do_not_hold_others_up(start: Start, hear: Hear) -> None:
    server = start(LIMITS__STREAMS_PER_USER=1000, LIMITS__STREAMS_PER_ADDRESS=1000)
    token = server.minted(TokenKind.STREAM)
    ears = [hear(server, "dashboard", token) for _ in range(200)]
    server.clock.set(2 * YEAR)
    until(lambda: all(ear.farewell == "token_expired" for ear in ears), "all end", 10)


@pytest.mark.ci
def test_the_next_process_ends_a_stream_when_this_one_would_have_although_the_clock_was_set_back(
    start: Start, hear: Hear
) -> None:
    server = start()
    lasting = hear(server, "dashboard", server.minted(TokenKind.STREAM))
    begun = time.monotonic()
    brief = hear(server, "dashboard", server.minted(TokenKind.STREAM, ttl=20))
    server.clock.set(-HOUR)
    first = server.process
    assert first is not None
    server.command("upgrade")
    try:
        assert first.wait(timeout=60) == 0
        assert lasting.open
        assert brief.open
        fresh = hear(server, "dashboard", server.minted(TokenKind.STREAM))
        until(lambda: brief.ended_at, "the life of its token is over", 40)
        assert brief.farewell == "token_expired"
        assert brief.ended_at is not None
        assert begun + 18.5 < brief.ended_at < begun + 35
        before = pings(lasting)
        until(lambda: pings(lasting) > before and pings(fresh), "the others are pinged")
    finally:
        successor = StateDirectory(server.state_dir).holder()
        assert successor is not None
        os.kill(successor, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{successor}").exists() or is_over(successor), "it has ended")


def is_over(pid: int) -> bool:
    """Return whether a process has ended that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# -- history ------------------------------------------------------------------------------------------------


def read_after(
    hear: Hear, server: ClockedServer, channel: str, position: str
) -> tuple[bool, list[int], list[str]]:
    """Return whether a stream says it has recovered, the numbers of its events, and the reasons of its resets."""
    token = server.minted(TokenKind.STREAM)
    while True:
        ear = hear(server, channel, f"{token}&last_event_id={position}")
        until(lambda ear=ear: pings(ear) >= 2 or ear.ended_at, "all that follows the position has come")  # type: ignore[misc]
        if not ear.ended_at:
            break
        assert ear.farewell == "unavailable"  # what it was being sent has become too old: it comes back
    (recovered,) = [data["recovered"] for type, data in ear.events if type == "connected"]
    numbers = [data["number"] for type, data in ear.events if type == "e"]
    return recovered, numbers, [data["reason"] for type, data in ear.events if type == "reset"]


def is_complete(server: ClockedServer, channel: str, position: str) -> bool:
    answer = httpx.get(
        f"{server.url}/api/v1/sse/{channel}/history",
        params={"after": position},
        headers=bearer(server.minted(TokenKind.ACCESS)),
    ).json()
    return bool(answer["complete"])


def restart(server: ClockedServer, *, with_the_machine: bool) -> None:
    """Stop the server and start it again, as if the machine had been restarted in between or not."""
    server.stop()
    if with_the_machine:
        with closing(sqlite3.connect(server.state_dir / "events.db")) as database, database:
            database.execute("UPDATE log SET boot = 'another'")
    server.start()


@pytest.mark.parametrize("rebooted", [False, True])
@pytest.mark.parametrize("ahead", [HOUR, pytest.param(2 * YEAR, marks=pytest.mark.slow)])
def test_an_event_published_while_the_clock_was_ahead_is_there_or_told_to_be_gone(
    start: Start, hear: Hear, ahead: float, rebooted: bool
) -> None:
    server = start(HISTORY__AGE=2, expected=("replay_failed",))
    server.clock.set(ahead)
    restart(server, with_the_machine=rebooted)
    first = publish(server, "alerts", 1)
    publish(server, "alerts", 2)
    server.clock.set(0)
    restart(server, with_the_machine=rebooted)
    publish(server, "dashboard", 3)

    def gone() -> bool:
        complete = is_complete(server, "alerts", first)
        recovered, numbers, resets = read_after(hear, server, "alerts", first)
        assert complete or not recovered
        assert (recovered, numbers, resets) in [(True, [2], []), (False, [], ["history_trimmed"])]
        return not recovered

    until(gone, "what is older than its age is gone, and that is told")


@pytest.mark.parametrize(
    "step",
    [2 * YEAR, pytest.param(-2 * YEAR, marks=pytest.mark.slow), pytest.param(-HOUR, marks=pytest.mark.slow)],
)
def test_history_keeps_its_age_when_the_clock_is_set_while_the_server_runs(
    start: Start, hear: Hear, step: float
) -> None:
    server = start(HISTORY__AGE=40)
    first = publish(server, "alerts", 1)
    publish(server, "alerts", 2)
    server.clock.set(step)
    publish(server, "alerts", 3)
    time.sleep(2.5)  # longer than the interval at which the log looks for what has expired
    assert read_after(hear, server, "alerts", first) == (True, [2, 3], [])
    server.clock.set(0)
    assert read_after(hear, server, "alerts", first) == (True, [2, 3], [])


@pytest.mark.slow
def test_events_of_1970_and_of_the_future_go_when_their_age_has_passed(start: Start, hear: Hear) -> None:
    server = start(HISTORY__AGE=2, expected=("replay_failed",))
    server.clock.set_to(1000)
    restart(server, with_the_machine=True)
    first = publish(server, "alerts", 1)
    server.clock.set(2 * YEAR)
    publish(server, "alerts", 2)
    server.clock.set_to(1000)
    restart(server, with_the_machine=True)
    publish(server, "alerts", 3)
    until(lambda: stored(server) == 0, "all are older than their age")
    recovered, numbers, resets = read_after(hear, server, "alerts", first)
    assert (recovered, numbers, resets) == (False, [], ["history_trimmed"])


def stored(server: ClockedServer) -> int:
    with closing(sqlite3.connect(server.state_dir / "events.db")) as database:
        (count,) = database.execute("SELECT count(*) FROM events").fetchone()
        return int(count)


@pytest.mark.parametrize(
    "step",
    [pytest.param(2 * YEAR, marks=pytest.mark.slow), pytest.param(-2 * YEAR, marks=pytest.mark.slow), -HOUR],
)
def test_history_keeps_its_age_when_the_clock_is_set_over_a_restart(
    start: Start, hear: Hear, step: float
) -> None:
    server = start(HISTORY__AGE=60)
    first = publish(server, "alerts", 1)
    publish(server, "alerts", 2)
    for offset in (step, 0):
        server.clock.set(offset)
        restart(server, with_the_machine=False)
        time.sleep(1)  # the log looks for what has expired
        assert read_after(hear, server, "alerts", first) == (True, [2], [])


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step", [pytest.param(-HOUR, marks=pytest.mark.slow), 2 * YEAR])
def test_an_idempotency_key_is_known_when_the_clock_was_set(
    start: Start, step: float, restarted: bool
) -> None:
    server = start()

    def post() -> httpx.Response:
        headers = {**bearer(server.minted(TokenKind.ACCESS)), "Idempotency-Key": "k"}
        body = {"event": "e", "data": {}}
        return httpx.post(f"{server.url}/api/v1/sse/alerts", json=body, headers=headers)

    first = post().json()["id"]
    server.clock.set(step)
    if restarted:
        restart(server, with_the_machine=False)
    time.sleep(1)
    assert post().json()["id"] == first
    server.clock.set(0)
    assert post().json()["id"] == first
