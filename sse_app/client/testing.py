"""A server for the unit tests of applications that use the clients: real HTTP on loopback, in the test's own process.

>>> with FakeServer() as server, Publisher(server.url, "any token") as publisher:
...     warn_of_losses(publisher)
...     assert [event.data["severity"] for event in server.published] == ["high"]

It answers as the server does to logins, publishing, streams, renewals and questions for presence, and does on demand
what is rare there: connections drop, tokens expire, requests are refused. It keeps nothing on disk. It takes any name
and password unless it is told which, any token that has not expired, and any channel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar

from sse_app.client.fake_http import Answer
from sse_app.client.fake_state import FakeState, OpenStream, Planned, Published, Where, checked_event, refusal
from sse_app.client.loop_thread import LoopThread
from sse_app.core.channels import ChannelPatterns
from sse_app.core.sse import encode_closing

__all__ = ["FakeServer", "OpenStream", "Published", "Where"]

Result = TypeVar("Result")


class FakeServer:
    """A server for tests, from ``with`` to its end. Its methods may be called from any thread, also with an event loop.

    Args:
        users: passwords by name; None takes any.
        unstored: patterns of channels whose events are not stored, so that they have no id.
        lifetime: seconds that tokens are said to be valid; they are valid until `expire` is called.
        retry: milliseconds after which clients are told to come back; their own backoff comes on top of it.

    Attributes:
        url: its address, such as ``http://127.0.0.1:41234``.
    """

    def __init__(
        self,
        users: Mapping[str, str] | None = None,
        *,
        unstored: Iterable[str] = (),
        lifetime: float = 600.0,
        retry: int = 10,
    ) -> None:
        self.url = ""
        self._state = FakeState(users, ChannelPatterns(unstored), lifetime, retry)
        self._thread: LoopThread | None = None

    def __enter__(self) -> Self:
        self._thread = LoopThread("sse_app.client.testing")
        self.url = f"http://127.0.0.1:{self._thread.call(self._state.http.start())}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and listen no more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.call(self._state.http.aclose())
            thread.stop()

    @property
    def published(self) -> list[Published]:
        """What was published over HTTP so far, in order; what came twice under one key is there once."""
        return [*self._state.published]

    @property
    def streams(self) -> list[OpenStream]:
        """The streams that are open."""
        return [stream.info for stream in [*self._state.streams]]

    @property
    def asked(self) -> dict[Where, int]:
        """How many requests of each kind have come, also those that were refused."""
        return {**self._state.asked}

    def emit(
        self, channel: str, type: str, data: Any, *, final: bool = False, retry: int | None = None
    ) -> str:
        """Publish an event from the test, without HTTP, and return its id; it is not in `published`.

        Args:
            channel: where to.
            type: the event type.
            data: any JSON value; an object gets ``channel`` and ``timestamp``, as the server adds them.
            final: whether it ends the channel.
            retry: a new reconnection time for clients, in milliseconds.

        Raises:
            InvalidInput: the server would refuse it.
        """
        event = checked_event(channel, {"event": type, "data": data, "final": final, "retry": retry})
        return self._run(lambda: self._state.store(event))

    def reset(self, channel: str, reason: str = "history_trimmed") -> None:
        """Tell the open streams on a channel that there is a gap in it."""
        self._run(lambda: self._state.reset(channel, reason))

    def drop(self) -> None:
        """Cut the connections of all streams, without a word; clients come back."""
        self._run(self._state.drop)

    def end(self, reason: str, retry: int | None = None) -> None:
        """End all streams with ``closing``, as ``end("kicked")`` and ``end("shutdown", 1000)`` do.

        Args:
            reason: for the client.
            retry: when to come back, in milliseconds; None leaves that to the client.
        """
        self._run(lambda: self._state.end(encode_closing(reason, retry)))

    def expire(self) -> None:
        """Let all access and stream tokens that were issued or used so far expire, and end the streams with one."""
        self._run(self._state.expire)

    def refuse(
        self,
        where: Where,
        status: int,
        code: str = "refused",
        *,
        times: int = 1,
        retry_after: float | None = None,
    ) -> None:
        """Refuse the next requests of a kind.

        Args:
            where: which kind.
            status: what they are answered; 0 closes the connection without an answer.
            code: for programs, such as ``kicked``.
            times: how many.
            retry_after: seconds to come back after.
        """
        headers = [] if retry_after is None else [("Retry-After", f"{retry_after:g}")]
        answer = refusal(status, code, "the test has it refused", *headers)
        self._plan(times, Planned(where, answer if status not in (0, 204) else Answer(status)))

    def lose_answers(self, where: Where, times: int = 1) -> None:
        """Do what the next requests of a kind ask for, and close the connection in place of the answer."""
        self._plan(times, Planned(where, None))

    def wait_for(self, condition: Callable[[Self], bool], within: float = 10.0) -> None:
        """Wait until a condition holds, such as ``lambda server: len(server.published) == 3``.

        In a test with an event loop, `until` does not hold that up.

        Raises:
            TimeoutError: it does not in that many seconds.
        """
        deadline = time.monotonic() + within
        while not condition(self):
            self._check_time(deadline)
            time.sleep(0.005)

    async def until(self, condition: Callable[[Self], bool], within: float = 10.0) -> None:
        """Wait until a condition holds, as `wait_for`, in an event loop.

        Raises:
            TimeoutError: it does not in that many seconds.
        """
        deadline = time.monotonic() + within
        while not condition(self):
            self._check_time(deadline)
            await asyncio.sleep(0.005)

    def __repr__(self) -> str:
        return f"FakeServer(published={self.published!r}, streams={self.streams!r}, asked={self.asked!r})"

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition does not hold: {self!r}")

    def _plan(self, times: int, planned: Planned) -> None:
        self._run(lambda: self._state.planned.extend([planned] * times))

    def _run(self, act: Callable[[], Result]) -> Result:
        """Do something in the thread of the server.

        Raises:
            RuntimeError: it does not run.
        """

        async def run() -> Result:
            return act()

        if self._thread is None:
            raise RuntimeError("a FakeServer is to be used in a 'with'")
        return self._thread.call(run())
