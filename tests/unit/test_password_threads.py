"""Password hashing is bounded: more logins than can be served soon are refused instead of queued."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sse_app.auth.accounts import passwords as passwords_module
from sse_app.auth.accounts.passwords import (
    MAX_WAITING,
    PasswordThreads,
    TooManyLogins,
    check_password,
    hash_password,
)


def test_a_login_beyond_the_queue_is_refused_at_once_and_those_in_it_are_served() -> None:
    async def scenario() -> None:
        passwords = PasswordThreads()
        release = threading.Event()
        try:
            queued = [asyncio.create_task(passwords.run(release.wait)) for _ in range(MAX_WAITING)]
            await asyncio.sleep(0)  # each task has taken its place in the queue
            with pytest.raises(TooManyLogins):
                await passwords.run(release.wait)
            assert not any(task.done() for task in queued)
            release.set()
            assert await asyncio.gather(*queued) == [True] * MAX_WAITING
            assert await passwords.run(lambda: "served") == "served"
        finally:
            release.set()
            passwords.close()

    asyncio.run(scenario())


def test_networks_take_turns_and_one_that_fills_the_queue_gives_places_to_the_others() -> None:
    async def scenario() -> None:
        passwords = PasswordThreads()
        release = threading.Event()
        served: list[str] = []

        def work(network: str) -> None:
            release.wait()
            served.append(network)

        def ask(network: str) -> asyncio.Task[None]:
            return asyncio.create_task(passwords.run(lambda: work(network), network))

        try:
            greedy = [ask("greedy") for _ in range(MAX_WAITING)]
            await asyncio.sleep(0)
            others = [ask(f"other{number}") for number in range(5)]
            for _ in range(3):  # until those that lost their place have noticed
                await asyncio.sleep(0)
            assert [task.done() for task in greedy].count(True) == 5
            with pytest.raises(TooManyLogins):
                await passwords.run(lambda: work("greedy"), "greedy")
            release.set()
            outcomes = await asyncio.gather(*greedy, return_exceptions=True)
            assert sum(isinstance(outcome, TooManyLogins) for outcome in outcomes) == 5
            await asyncio.gather(*others)
            assert served.index("other4") < 10  # of 32: each other waits for one turn of the greedy one
        finally:
            release.set()
            passwords.close()

    asyncio.run(scenario())


def test_no_network_gets_a_place_from_one_that_has_no_more() -> None:
    async def scenario() -> None:
        passwords = PasswordThreads()
        release = threading.Event()
        try:
            tasks = [
                asyncio.create_task(passwords.run(release.wait, f"network{number}"))
                for number in range(MAX_WAITING)
            ]
            await asyncio.sleep(0)
            with pytest.raises(TooManyLogins):
                await passwords.run(release.wait, "one more")
            passwords.close()
            release.set()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(outcome is True or isinstance(outcome, TooManyLogins) for outcome in outcomes)
        finally:
            release.set()
            passwords.close()

    asyncio.run(scenario())


def test_a_login_of_no_account_takes_the_work_of_one_that_is_made_today() -> None:
    made_today = hash_password("s").rsplit("$", 2)
    assert passwords_module._UNMATCHED.rsplit("$", 2)[0] == made_today[0]
    assert len(passwords_module._UNMATCHED) == len("$".join(made_today))
    assert check_password("no account has this password", None, renew=True) == (False, None)
