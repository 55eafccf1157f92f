"""The browser client in a real Chromium, its page on another origin than the server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.browser import CHANNEL, Chrome, Start, log_of, publish, serve_pages
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_kill_and_restart_recovers_with_no_event_missing_and_none_twice(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tab = chrome.open(server, options={"share": False})
    tab.opened()
    with server.publisher() as publisher:
        for round in range(3):
            publish(publisher, 5)
            server.kill()  # how much of the batch was sent by then is anybody's guess
            server.start()
            last = publish(publisher, 300)[-1]
            tab.opened(round + 2)
            tab.has(last)
        assert tab.ids() == log_of(publisher)
    assert len(tab.ids()) == 3 * 305
    assert all(open["recovered"] for open in tab.noted("open")[1:])
    assert tab.noted("reset") == tab.noted("close") == []


LIFETIME = 12
"""Seconds for which a token is good here: long enough to be renewed in time on a busy machine."""


def publish_until(condition: Callable[[], bool], what: str, publisher: httpx.Client) -> str:
    """Publish an event every now and then until a condition is true, and return the last id."""
    ids: list[str] = []

    def published() -> bool:
        ids.extend(publish(publisher))
        return condition()

    until(published, what, pause=0.15)
    return ids[-1]


@pytest.mark.slow
def test_a_token_that_expires_every_few_seconds_is_renewed_on_one_connection(
    chrome: Chrome, serve: Start
) -> None:
    server = serve(AUTH__STREAM_LIFETIME=LIFETIME)
    tab = chrome.open(server, options={"share": False})
    tab.opened()
    with server.publisher() as publisher:
        last = publish_until(lambda: tab.run("tokenCalls") >= 4, "four tokens were asked for", publisher)
        tab.has(last)
        assert tab.ids() == log_of(publisher)
    assert [len(tab.noted(kind)) for kind in ("open", "reconnect", "close")] == [1, 0, 0]


@pytest.mark.slow
def test_with_renewal_refused_it_reconnects_and_never_loses_an_event(chrome: Chrome, serve: Start) -> None:
    server = serve(AUTH__STREAM_LIFETIME=LIFETIME)
    # Each token is of another session than the one before, so the server knows no stream that it could renew.
    access = [server.access_token(), server.access_token()]
    tab = chrome.open(server, access=access, options={"share": False})
    tab.opened()
    with server.publisher() as publisher:
        last = publish_until(lambda: len(tab.noted("open")) >= 4, "four connections were opened", publisher)
        tab.has(last)
        assert tab.ids() == log_of(publisher)
    assert len(tab.noted("open")) >= 4
    assert {entry["reason"] for entry in tab.noted("reconnect")} == {"renewal"}


def test_a_server_that_stops_answering_is_noticed_within_2_5_ping_intervals(
    chrome: Chrome, serve: Start, tmp_path: Path
) -> None:
    def noticed(interval: float) -> float:
        """Return after how many intervals of so many seconds."""
        server = serve(state_dir=tmp_path / str(interval), KEEPALIVE__PING_INTERVAL=interval)
        return noticed_after(chrome, server, interval)

    # A quarter of an interval is little time on a busy machine: there it may have to be a longer one.
    assert any(0 < noticed(interval) < 2.5 for interval in (1.0, 2.0, 5.0, 10.0))


def noticed_after(chrome: Chrome, server: ServerProcess, interval: float) -> float:
    """Stop a server and have it go on, and return after how many ping intervals a tab has noticed that."""
    tab = chrome.open(server, options={"share": False})
    tab.opened()
    assert server.process is not None
    time.sleep(3 * interval)  # the client learns the pace from pings
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        stopped = tab.run("performance.now()")
        tab.wait("log.some((e) => e.kind === 'reconnect')", timeout=120_000)  # without a pace it takes 68 s
        (lost,) = tab.noted("reconnect")[:1]
        assert lost["reason"] == "stalled"
        noticed = float(lost["at"] - stopped) / 1000 / interval
        print(f"noticed after {noticed:.2f} ping intervals of {interval:g} s")
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    with server.publisher() as publisher:
        tab.has(publish(publisher)[0])
    tab.page.close()
    return noticed


@pytest.mark.long
def test_a_page_on_an_allowed_origin_works_and_on_a_third_origin_it_gets_nothing(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    friend = chrome.open(server, options={"share": False})
    friend.opened()
    with serve_pages() as third:
        token = server.stream_token(CHANNEL)
        stranger = Chrome(chrome.context, third).open(
            server, tokens=[token], options={"share": False, "reconnectDelay": 50}
        )
        stranger.wait("log.filter((e) => e.kind === 'reconnect').length >= 3")
        with server.publisher() as publisher:
            friend.has(publish(publisher)[0])
        stranger.wait("log.filter((e) => e.kind === 'reconnect').length >= 4")
        assert stranger.noted("open") == stranger.noted("event") == []
        assert {entry["reason"] for entry in stranger.noted("reconnect")} == {"unreachable"}
