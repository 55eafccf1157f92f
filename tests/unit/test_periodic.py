"""What is called again and again: in time, one call after the other, whatever a call does."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sse_app.core.periodic import PeriodicCallback
from tests.support.waiting import until_async

pytestmark = pytest.mark.gen_test


async def test_it_is_called_again_and_again_until_it_is_stopped() -> None:
    calls: list[float] = []
    callback = PeriodicCallback(lambda: calls.append(time.monotonic()), 0.02)
    begun = time.monotonic()
    callback.start()
    callback.start()
    await until_async(lambda: len(calls) >= 10, "ten calls")
    callback.stop()
    assert calls[9] - begun >= 0.19
    count = len(calls)
    await asyncio.sleep(0.1)
    assert len(calls) == count


@pytest.mark.expects_logs("a periodic callback failed")
@pytest.mark.parametrize("awaited", [False, True])
async def test_it_is_called_again_although_a_call_failed(awaited: bool) -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise ValueError("a mistake")

    async def fail_later() -> None:
        await asyncio.sleep(0)
        fail()

    callback = PeriodicCallback(fail_later if awaited else fail, 0.01)
    callback.start()
    await until_async(lambda: calls >= 3, "three calls")
    callback.stop()
    await asyncio.sleep(0.02)


async def test_a_call_waits_for_the_one_before_also_when_it_was_stopped_and_started_meanwhile() -> None:
    running = most = calls = 0
    proceed = asyncio.Event()

    async def work() -> None:
        nonlocal running, most, calls
        calls += 1
        running += 1
        most = max(most, running)
        await proceed.wait()
        running -= 1

    callback = PeriodicCallback(work, 0.01)
    callback.start()
    await until_async(lambda: calls == 1, "a call")
    callback.stop()
    callback.start()
    await asyncio.sleep(0.05)
    proceed.set()
    await until_async(lambda: calls >= 4, "more calls")
    callback.stop()
    await until_async(lambda: running == 0, "the last has ended")
    assert most == 1


async def test_calls_that_were_missed_are_left_out() -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    callback = PeriodicCallback(count, 0.05)
    callback.start()
    time.sleep(0.5)  # noqa: ASYNC251 - the event loop is busy
    begun = time.monotonic()
    await until_async(lambda: calls, "a call")
    callback.stop()
    assert calls <= 2 + (time.monotonic() - begun) / 0.05


async def test_a_call_gets_a_task_only_where_it_has_to_wait() -> None:
    loop, calls = asyncio.get_running_loop(), 0
    tasks: list[asyncio.Task[Any]] = []
    twice = asyncio.Event()

    def make(loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.Task(work, loop=loop, **kwargs))
        return tasks[-1]

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            return
        if calls == 6:
            twice.set()
        if calls % 3 == 0:
            await asyncio.sleep(0)
            assert sum(await asyncio.gather(some_value(), some_value())) == 2
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()

    async def some_value() -> int:
        await asyncio.sleep(0.001)
        return 1

    callback = PeriodicCallback(work, 0.01)
    loop.set_task_factory(make)
    try:
        callback.start()
        await twice.wait()
        await asyncio.sleep(0.05)
    finally:
        callback.stop()
        loop.set_task_factory(None)
    assert len(tasks) == 3 * 2, "one for each call that waits, and those that it makes"
    await asyncio.gather(*tasks)


async def test_calls_fall_together_where_the_intervals_are_multiples() -> None:
    loop = asyncio.get_running_loop()
    moments: dict[float, list[float]] = {0.1: [], 0.2: []}
    callbacks = []
    for interval, called in moments.items():
        callbacks.append(PeriodicCallback(lambda called=called: called.append(loop.time()), interval))  # type: ignore[misc]
        callbacks[-1].start()
        await asyncio.sleep(0.05)
    await until_async(lambda: len(moments[0.2]) >= 3, "three calls of the one")
    for callback in callbacks:
        callback.stop()
    for moment in moments[0.2]:
        assert min(abs(moment - other) for other in moments[0.1]) < 0.04


async def test_a_function_that_leaves_its_next_call_out_is_called_every_second_time() -> None:
    calls: list[bool] = []
    callback = PeriodicCallback(lambda: calls.append(callback.leave_out_next()), 0.05)
    begun = time.monotonic()
    callback.start()
    await until_async(lambda: sum(calls) >= 6, "six calls that left one out")
    callback.stop()
    assert time.monotonic() - begun >= 4 * 0.1
