"""The Python client's streams against real servers that are killed, stopped, and short of tokens."""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sse_app.client import (
    Connected,
    Event,
    Forbidden,
    NotFound,
    Publisher,
    Refused,
    Stream,
    Unauthorized,
    Waiting,
)
from tests.support.python_client import CHANNEL, QUICK, logged_in, run, take, whats_in_the_log
from tests.support.server_process import ServerProcess
from tests.support.wire import Wire, answer

Start = Callable[..., ServerProcess]


@pytest.mark.slow
def test_kill_9_under_publishing_loses_nothing_and_doubles_nothing(start_server: Start) -> None:
    server = start_server(STREAM__RETRY=100)
    numbers = itertools.count()

    async def publish_on(publisher: Publisher, stop: asyncio.Event) -> dict[str, int]:
        acknowledged: dict[str, int] = {}
        while not stop.is_set():
            events = [
                {"channel": CHANNEL, "event": "e", "data": {"n": next(numbers)}}
                for _ in range(1 if len(acknowledged) % 3 else 3)
            ]
            ids = await publisher.publish_batch(events)
            assert not set(ids) & acknowledged.keys()
            acknowledged |= {id: event["data"]["n"] for id, event in zip(ids, events, strict=True)}  # type: ignore[index]
        return acknowledged

    async def test() -> None:
        async with (
            Publisher(server.url, server.access_token(), backoff=QUICK, timeout=5) as publisher,
            Stream(server.url, CHANNEL, server.stream_token(CHANNEL), backoff=QUICK) as stream,
        ):
            await stream.opened()
            start = str(stream.last_event_id)
            stop = asyncio.Event()
            tasks = [asyncio.create_task(publish_on(publisher, stop)) for _ in range(4)]
            seen: list[Event] = []
            for _ in range(5):
                seen += await take(stream, 40)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            stop.set()
            acknowledged: dict[str, int] = {}
            for task in tasks:
                acknowledged |= await task
            seen += await take(stream, len(acknowledged) - len(seen))
            log = await asyncio.to_thread(whats_in_the_log, server, start)
            assert [(event.id, event.data["n"]) for event in seen] == log
            assert dict(log) == acknowledged
            assert sorted(acknowledged.values()) == list(range(len(acknowledged)))

    run(test())


@pytest.mark.slow
def test_a_token_that_expires_every_few_seconds_is_renewed_on_one_connection(start_server: Start) -> None:
    server = start_server(AUTH__STREAM_LIFETIME=5, AUTH__ACCESS_LIFETIME=10)

    async def test() -> None:
        states: list[Connected | Waiting] = []
        async with (
            logged_in(server) as session,
            Publisher(server.url, session) as publisher,
            Stream(server.url, CHANNEL, session, on_state=states.append) as stream,
        ):
            await stream.opened()
            ids = []
            end = time.monotonic() + 12.5  # two and a half lifetimes of the stream token
            while time.monotonic() < end:
                ids.append(await publisher.publish(CHANNEL, "e", {}))
                assert [event.id for event in await take(stream, 1)] == ids[-1:]
                await asyncio.sleep(0.1)
            assert [type(state) for state in states] == [Connected], states

    run(test())


@pytest.mark.slow
def test_where_renewal_is_refused_it_reconnects_and_misses_nothing(start_server: Start) -> None:
    server = start_server(STREAM__RETRY=100)

    async def of_another_session() -> str:
        return await asyncio.to_thread(server.stream_token, CHANNEL, ttl=2)

    async def test() -> None:
        states: list[Connected | Waiting] = []
        async with (
            Publisher(server.url, server.access_token()) as publisher,
            Stream(server.url, CHANNEL, of_another_session, on_state=states.append, backoff=QUICK) as stream,
        ):
            await stream.opened()
            ids, seen = list[str](), list[Event]()
            while sum(isinstance(state, Connected) for state in states) < 4:
                ids.append(await publisher.publish(CHANNEL, "e", {}))
                seen += await take(stream, 1)
                await asyncio.sleep(0.02)
            assert [event.id for event in seen] == ids
            reasons = {state.reason for state in states if isinstance(state, Waiting)}
            assert "the stream could not be renewed" in reasons

    run(test())


@pytest.mark.ci
def test_a_server_that_stops_answering_is_found_out_within_two_and_a_half_pings(
    start_server: Start, tmp_path: Path
) -> None:
    def found_out(interval: float) -> float:
        """Return after how many intervals of so many seconds."""
        server = start_server(
            state_dir=tmp_path / str(interval), KEEPALIVE__PING_INTERVAL=interval, STREAM__RETRY=100
        )
        return found_out_after(server, interval)

    # A quarter of an interval is little time on a busy machine: there it may have to be a longer one.
    assert any(found_out(interval) < 2.5 for interval in (0.8, 2.0, 5.0))


def found_out_after(server: ServerProcess, interval: float) -> float:
    """Stop a server and have it go on, and return after how many ping intervals a client has found that out."""
    assert server.process is not None
    process = server.process
    found = math.inf

    async def test() -> None:
        nonlocal found
        lost, lost_often = asyncio.Event(), asyncio.Event()
        reasons: list[str] = []

        def note(state: Connected | Waiting) -> None:
            if isinstance(state, Waiting):
                reasons.append(state.reason)
                lost.set()
                if len(reasons) == 3:
                    lost_often.set()

        token = server.stream_token(CHANNEL)
        async with (
            Publisher(server.url, server.access_token(), timeout=1, backoff=QUICK) as publisher,
            Stream(server.url, CHANNEL, token, open_timeout=1, on_state=note, backoff=QUICK) as stream,
        ):
            await stream.opened()
            reasons.clear()  # on a busy machine a first try may take too long
            lost.clear()
            with pytest.raises(TimeoutError):  # it learns the pace from the pings
                await asyncio.wait_for(anext(stream), 3 * interval)
            if reasons:  # the machine was held up: an interval has to be longer here
                return
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await lost.wait()
            found = (time.monotonic() - stopped) / interval
            print(f"found out after {found:.2f} ping intervals of {interval:g} s")
            assert reasons[0] == "nothing was heard of the server for too long"
            # All that is sent meanwhile waits in the kernel, and is served when it goes on: once.
            publishing = asyncio.create_task(publisher.publish(CHANNEL, "e", {"n": 0}))
            await lost_often.wait()
            process.send_signal(signal.SIGCONT)
            ids = [await publishing, await publisher.publish(CHANNEL, "e", {"n": 1})]
            assert [event.id for event in await take(stream, 2)] == ids

    try:
        run(test())
    finally:
        process.send_signal(signal.SIGCONT)
    return found


def test_what_is_refused_for_good_is_told_with_its_status(start_server: Start) -> None:
    server = start_server()
    fetched = 0

    async def useless() -> str:
        nonlocal fetched
        fetched += 1
        return f"useless.{fetched}"

    async def test() -> None:
        good = server.stream_token("**")
        limited = server.stream_token("alerts")
        cases: list[tuple[str, Any, type[Refused]]] = [
            ("alerts", server.access_token(), Unauthorized),
            ("alerts", useless, Unauthorized),
            ("dashboard", limited, Forbidden),
            ("nowhere", good, NotFound),
            ("alerts," + ",".join(f"user.c{n}" for n in range(40)), good, Refused),
        ]
        for channels, token, error in cases:
            async with Stream(server.url, channels, token) as stream:
                for _ in range(2):  # it stays told
                    with pytest.raises(error) as told:
                        await anext(stream)
                with pytest.raises(error):
                    await stream.opened()
            assert type(told.value) is error
            assert told.value.status in (400, 401, 403, 404)
            assert told.value.code
        assert fetched == 2
        async with Stream(server.url, "alerts", server.stream_token("alerts", ttl=8)) as stream:
            with pytest.raises(Unauthorized, match="token_expired"):
                await anext(stream)

    run(test())


def test_429_503_and_204_are_obeyed(start_server: Start) -> None:
    server = start_server(LIMITS__STREAMS_PER_USER=1, STREAM__RETRY=100)

    async def test() -> None:
        token = server.stream_token(CHANNEL)
        states: list[Connected | Waiting] = []
        refused = asyncio.Event()

        def note(state: Connected | Waiting) -> None:
            states.append(state)
            refused.set()

        async with Stream(server.url, CHANNEL, token) as first:
            await first.opened()
            async with Stream(server.url, CHANNEL, token, on_state=note, backoff=QUICK) as second:
                await refused.wait()
                assert isinstance(states[0], Waiting)
                assert states[0].reason.startswith("429 too_many_streams")
                assert 5 <= states[0].delay <= 5.1
                await first.aclose()
                await second.opened()
        async with Wire(server.port) as wire:
            wire.instead = [answer("503 Service Unavailable", "Retry-After: 1"), answer("502 Bad Gateway")]
            states.clear()
            async with Stream(wire.url, CHANNEL, token, on_state=states.append, backoff=QUICK) as stream:
                begun = time.monotonic()
                await stream.opened()
                assert time.monotonic() - begun >= 1
            waits = [state for state in states if isinstance(state, Waiting)]
            assert [state.attempt for state in waits] == [1, 2]
            assert 1 <= waits[0].delay < 1.2
            assert [state.reason[:3] for state in waits] == ["503", "502"]
            wire.instead = [answer("204 No Content")]
            async with Stream(wire.url, CHANNEL, token) as stream:
                assert [item async for item in stream] == []

    run(test())
