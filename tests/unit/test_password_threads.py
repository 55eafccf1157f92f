"""Password hashing is bounded: more logins than can be served soon are refused instead of queued."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sse_app.auth.accounts.passwords import MAX_WAITING, PasswordThreads, TooManyLogins


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
