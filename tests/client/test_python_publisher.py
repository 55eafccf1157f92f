"""The Python client's publisher and session, where answers are lost, late, or refuse."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import signal
import time
from collections.abc import Callable

import pytest

from sse_app.client import Backoff, Publisher, Refused, Session, Unauthorized, Unavailable
from sse_app.client.http import LONGEST_RETRY_AFTER, retry_after
from tests.support.python_client import CHANNEL, DEADLINE, QUICK, logged_in, run, whats_in_the_log
from tests.support.server_process import ServerProcess
from tests.support.stream_script import Script, answer_json, status
from tests.support.wire import Wire, answer

Start = Callable[..., ServerProcess]


@pytest.mark.slow
def test_a_lost_answer_never_publishes_twice(start_server: Start) -> None:
    server = start_server()

    async def test() -> None:
        async with (
            Wire(server.port) as wire,
            Publisher(wire.url, server.access_token(), backoff=Backoff(0.02, 0.1)) as publisher,
        ):
            start = await publisher.publish(CHANNEL, "e", {"n": -1})
            turns = 0

            def every_second_answer() -> bool:
                nonlocal turns
                turns += 1
                return turns % 2 == 1

            wire.swallow = every_second_answer
            ids: list[str] = []
            for n in range(0, 100, 2):
                ids.append(await publisher.publish(CHANNEL, "e", {"n": n}))
                ids += await publisher.publish_batch(
                    [{"channel": CHANNEL, "event": "e", "data": {"n": n + 1}}]
                )
            assert turns == 200
            log = await asyncio.to_thread(whats_in_the_log, server, start)
            assert log == list(zip(ids, range(100), strict=True))

    run(test())


@pytest.mark.slow
def test_kill_9_between_commit_and_answer_never_publishes_twice(start_server: Start) -> None:
    server = start_server()

    async def test() -> None:
        async with (
            Wire(server.port) as wire,
            Publisher(wire.url, server.access_token(), backoff=QUICK) as publisher,
        ):
            start = await publisher.publish(CHANNEL, "e", {"n": -1})
            rounds = 10
            ids = []
            for n in range(rounds):
                killed = asyncio.Event()

                def kill(killed: asyncio.Event = killed) -> bool:
                    if (
                        not killed.is_set()
                    ):  # the answer is here: it is committed, and the publisher does not know
                        server.kill()
                        killed.set()
                    return True

                wire.swallow = kill
                publishing = asyncio.create_task(publisher.publish(CHANNEL, "e", {"n": n}))
                await killed.wait()
                wire.swallow = lambda: False
                await asyncio.to_thread(server.start)
                ids.append(await publishing)
            log = await asyncio.to_thread(whats_in_the_log, server, start)
            assert log == list(zip(ids, range(rounds), strict=True))

    run(test())


def test_requests_that_a_stopped_server_answers_late_publish_once(start_server: Start) -> None:
    server = start_server()
    assert server.process is not None
    process = server.process

    async def test() -> None:
        troubled = asyncio.Event()
        async with Publisher(
            server.url,
            server.access_token(),
            timeout=0.3,
            backoff=QUICK,
            report=lambda sentence: troubled.set(),
        ) as publisher:
            start = await publisher.publish(CHANNEL, "e", {"n": -1})
            process.send_signal(signal.SIGSTOP)
            tasks = [asyncio.create_task(publisher.publish(CHANNEL, "e", {"n": n})) for n in range(5)]
            await troubled.wait()
            await asyncio.sleep(1.5)  # several requests of each lie in the kernel by now, all under one key
            process.send_signal(signal.SIGCONT)
            ids = await asyncio.gather(*tasks)
            log = await asyncio.to_thread(whats_in_the_log, server, start)
            assert sorted(log) == sorted(zip(ids, range(5), strict=True))

    try:
        run(test())
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_publisher_waits_as_long_as_429_and_503_ask(start_server: Start) -> None:
    server = start_server(LIMITS__PUBLISH_RATE=10)

    async def test() -> None:
        reports: list[str] = []
        async with Wire(server.port) as wire:
            token = server.access_token()
            async with Publisher(wire.url, token, backoff=QUICK, report=reports.append) as publisher:
                wire.instead = [answer("503 Service Unavailable", "Retry-After: 1")]
                clock = asyncio.get_running_loop().time
                begun = clock()
                start = await publisher.publish(CHANNEL, "e", {"n": -1})
                assert clock() - begun >= 1
                for n in range(0, 27, 9):  # not one by one: a busy machine may take as long as the rate wants
                    await publisher.publish_batch(
                        [{"channel": CHANNEL, "event": "e", "data": {"n": n + more}} for more in range(9)]
                    )
                assert clock() - begun >= 2
            assert {report[:3] for report in reports} == {"503", "429", "the"}
            log = await asyncio.to_thread(whats_in_the_log, server, start)
            assert [n for _, n in log] == list(range(27))

    run(test())


def test_a_refresh_token_is_never_used_twice_whatever_happens_to_the_answer(start_server: Start) -> None:
    server = start_server(AUTH__ACCESS_LIFETIME=2, expected=("refresh", "login"))

    async def test() -> None:
        async with (
            logged_in(server) as first,
            Wire(server.port) as wire,
            Session(wire.url, first.user, first._password) as session,
        ):
            tokens = {*await asyncio.gather(*(session.access_token() for _ in range(20)))}
            assert len(tokens) == 1
            await asyncio.sleep(
                1.6
            )  # three quarters of the token's life, after which it is renewed, and some
            tokens |= {*await asyncio.gather(*(session.access_token() for _ in range(20)))}
            assert len(tokens) == 2
            assert [line.split()[1].rpartition("/")[2] for line in wire.requests].count("login") == 1
            await asyncio.sleep(
                1.6
            )  # three quarters of the token's life, after which it is renewed, and some
            wire.swallow = lambda: True
            with pytest.raises(Exception, match=f"cannot reach the server {wire.url}: "):
                await session.access_token()
            wire.swallow = lambda: False
            assert await session.access_token() not in tokens  # by the password
            await session.stream_token([CHANNEL])
            await session.logout()
        audit = [line for line in server.command("audit").splitlines() if "reuse" in line]
        assert audit == []

    run(test())


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 2026 00:00:00 +999999999999999",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "9" * 5000,
        "-1",
        "²",
    ],
    ids=lambda value: value[:40],
)
def test_a_time_that_makes_no_sense_is_no_error_of_the_client(value: str) -> None:
    assert 0.0 <= retry_after({"Retry-After": value, "Date": value}) <= LONGEST_RETRY_AFTER
    assert (
        0.0
        <= retry_after({"Retry-After": "Mon, 01 Jan 2026 00:00:00 GMT", "Date": value})
        <= LONGEST_RETRY_AFTER
    )


def tokens(number: int) -> list[bytes | float | None]:
    """Return the answer to a login or a refresh, with an access token that is to be renewed at once."""
    return answer_json(200, {"access_token": f"a{number}", "refresh_token": f"r{number}", "expires_in": 0})


@pytest.mark.parametrize(
    ("refreshed", "under_way", "ended"),
    [([status(503)], False, "r1"), ([[0.3, *tokens(2)]], True, "r2")],
    ids=["after a renewal that failed", "during a renewal"],
)
def test_a_logout_ends_the_login_whatever_its_renewal_does(
    refreshed: list[list[bytes | float | None]], under_way: bool, ended: str
) -> None:
    async def test() -> None:
        answers = {"/login": [tokens(1)], "/refresh": refreshed, "/logout": [status(204)]}
        async with Script(answers) as script, Session(script.url, "ann", "secret") as session:
            assert await session.access_token() == "a1"
            renewing = asyncio.create_task(session.access_token())
            if under_way:
                await script.came("/refresh")
            else:
                with pytest.raises(Unavailable):
                    await renewing
            await session.logout()
            assert [json.loads(asked.body) for asked in script.to("/logout")] == [{"refresh_token": ended}]
            await session.logout()
            assert len(script.to("/logout")) == 1
            if under_way:
                await renewing

    run(test())


@pytest.mark.parametrize("answers", [[[None]], [status(503)], [[]], [status(429, b"", "Retry-After: 3600")]])
def test_a_publisher_gives_up_when_its_patience_is_at_an_end(
    answers: list[list[bytes | float | None]],
) -> None:
    async def test() -> None:
        async with (
            Script({"/sse/news": answers}) as script,
            Publisher(script.url, "token", patience=3, backoff=QUICK) as publisher,
        ):
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                await publisher.publish("news", "e", {})
            assert time.monotonic() - begun < 12
            assert len({request.headers["idempotency-key"] for request in script.asked}) == 1
            assert (len(script.asked) > 1) == (answers in ([status(503)], [[]]))

    run(test())


def test_a_token_function_that_fails_is_called_again_where_that_may_help() -> None:
    class Told(Exception):
        def __init__(self, status: int) -> None:
            self.status = status  # as aiohttp's exceptions have it

    failures: list[Exception] = [Told(503), TimeoutError(), OSError(), Told(401), ZeroDivisionError()]

    async def token() -> str:
        if failures:
            raise failures.pop(0)
        return "token"

    async def hang() -> str:
        await asyncio.sleep(DEADLINE)
        return ""

    async def test() -> None:
        async with Script({"/sse/news": [answer_json(201, {"id": "e-1", "channel": "news"})]}) as script:
            async with Publisher(script.url, token, backoff=QUICK) as publisher:
                for error in (Unauthorized, ZeroDivisionError):
                    with pytest.raises(error):
                        await publisher.publish("news", "e", {})
                assert await publisher.publish("news", "e", {}) == "e-1"
            async with Publisher(script.url, hang, patience=0.2) as publisher:
                with pytest.raises(Unavailable, match=r"not answered within 0\.2 s"):
                    await publisher.publish("news", "e", {})

    run(test())


def test_the_patience_of_a_publisher_is_a_minute_unless_it_is_told_another() -> None:
    assert inspect.signature(Publisher).parameters["patience"].default == 60
    for wrong in (0, -1, math.nan):
        with pytest.raises(ValueError, match="patience"):
            Publisher("http://localhost", "token", patience=wrong)


def test_a_redirect_of_what_is_sent_is_not_followed_and_names_the_address() -> None:
    async def test() -> None:
        moved = [status(301, b"", "Location: https://events.example/?token=secret")]
        async with Script({"/sse/news": moved, "/auth/login": moved}) as script:
            async with Publisher(script.url, "token") as publisher:
                with pytest.raises(
                    Refused, match=r"301 Status: it names another address, https://events\.example/"
                ):
                    await publisher.publish("news", "e", {})
            async with Session(script.url, "ann", "password") as session:
                with pytest.raises(Refused, match="another address") as told:
                    await session.access_token()
                assert "secret" not in str(told.value)
            assert len(script.asked) == 2

    run(test())
