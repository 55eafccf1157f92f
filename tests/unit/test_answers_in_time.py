"""An answer that another node gave in time counts, also where this process stood still until its timer was due."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest

from sse_app.cluster.base import answer_in
from sse_app.process.tuning import loop_factory


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, loop_factory()])
def test_an_answer_that_came_while_this_process_stood_still_is_in_time(
    loop: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    async def test(answered: bool) -> object:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            future = asyncio.get_running_loop().create_future()

            async def listen() -> None:
                future.set_result(await asyncio.get_running_loop().sock_recv(ours, 1))

            listening = asyncio.create_task(listen())
            asyncio.get_running_loop().call_later(0.05, time.sleep, 0.5)  # while it stands still
            threading.Timer(0.2, lambda: answered and theirs.send(b"a")).start()
            try:
                return await answer_in(future, 0.3)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(test(True)) == b"a"
        with pytest.raises(TimeoutError):
            runner.run(test(False))
