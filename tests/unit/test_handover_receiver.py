"""Streams that are taken over: until the process before has gone they are its own."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from sse_app.app import SSEApp
from sse_app.auth.tokens.claims import Lease
from sse_app.core.framing import UNFRAMED
from sse_app.handover.message import STREAM, PassedDescriptor, State, StreamState
from sse_app.handover.receiver import HandoverReceiver
from sse_app.http.server import HTTPServer
from sse_app.node import Node
from sse_app.settings.model import Settings
from sse_app.streams import disconnects as module
from sse_app.streams.disconnects import Disconnects
from sse_app.streams.stream import Stream, Subscriber
from tests.support.waiting import until_async


@asynccontextmanager
async def taking_over(
    state_dir: Path, ours: socket.socket
) -> AsyncIterator[tuple[Node, HandoverReceiver, Stream]]:
    """Give a node that has not been started, and the stream on a socket that it takes over."""
    app = SSEApp(Settings(state_dir=state_dir, event_log="memory:"))
    node = app.node
    await node.prepare()
    server = HTTPServer(app.application())
    receiver = HandoverReceiver(node.hub, node.pump, node.keepalive, node.revocations, node.admission, server)
    subscriber = Subscriber("tab", Lease("ann", "session", "token", 0, 4e9), "127.0.0.1")
    state = StreamState(1, subscriber, 0, time.time(), 1000, None)
    passed = PassedDescriptor(STREAM, UNFRAMED.name, b"")
    (stream,) = receiver.build(State("", 0, [("alerts",)], [state], [passed]), [ours.detach()])
    try:
        yield node, receiver, stream
    finally:
        await app.stop()


@pytest.mark.parametrize("epoll", [True, False])
@pytest.mark.gen_test
async def test_nothing_is_read_from_a_stream_before_it_is_adopted_nor_during_a_fan_out(
    epoll: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before notices its end too, and may serve on."""
    if not epoll:
        monkeypatch.setattr(module, "_EPOLL", False)
    ours, client = socket.socketpair()
    theirs = ours.dup()
    async with taking_over(tmp_path / "state", ours) as (node, receiver, stream):
        with closing(theirs):
            client.send(b"x")
            client.close()
            await node.start()
            adopted = receiver.adopt(State(*node.hub.head, [], [], []), [], [stream])
            await asyncio.sleep(0.05)
            assert adopted == [stream]
            assert not stream.closed
            assert theirs.recv(9, socket.MSG_PEEK) == b"x"
        async with node.hub.between_fan_outs():  # as one holds it that is under way
            watching = asyncio.create_task(receiver.watch(adopted))
            await asyncio.sleep(0.05)
            assert not stream.closed
        await watching
        await until_async(lambda: stream.closed, "its end is noticed")
        assert not node.hub.streams


@pytest.mark.gen_test
async def test_a_stream_that_cannot_be_watched_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "more is watched than a user may")

    ours, client = socket.socketpair()
    with client:
        async with taking_over(tmp_path / "state", ours) as (node, receiver, stream):
            await node.start()
            adopted = receiver.adopt(State(*node.hub.head, [], [], []), [], [stream])
            monkeypatch.setattr(Disconnects, "watch", refuse)
            await receiver.watch(adopted)
            await until_async(lambda: not node.hub.streams, "it is forgotten")
            assert client.recv(99) == b""
