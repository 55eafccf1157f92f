"""Streams that are taken over: until the process before has gone they are its own."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from sse_app.app import SSEApp
from sse_app.auth.tokens.claims import Lease
from sse_app.core.framing import UNFRAMED
from sse_app.handover.message import STREAM, PassedDescriptor, State, StreamState
from sse_app.handover.receiver import HandoverReceiver
from sse_app.http.server import HTTPServer
from sse_app.settings.model import Settings
from sse_app.streams import disconnects as module
from sse_app.streams.stream import Subscriber
from tests.support.waiting import until_async


@pytest.mark.parametrize("epoll", [True, False])
@pytest.mark.gen_test
async def test_nothing_is_read_from_a_stream_before_it_is_adopted_nor_during_a_fan_out(
    epoll: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before notices its end too, and may serve on."""
    if not epoll:
        monkeypatch.setattr(module, "_EPOLL", False)
    app = SSEApp(Settings(state_dir=tmp_path / "state", event_log="memory:"))
    node = app.node
    await node.prepare()
    server = HTTPServer(app.application())
    receiver = HandoverReceiver(node.hub, node.pump, node.keepalive, node.revocations, node.admission, server)
    ours, client = socket.socketpair()
    theirs = ours.dup()
    subscriber = Subscriber("tab", Lease("ann", "session", "token", 0, 4e9), "127.0.0.1")
    state = StreamState(1, subscriber, 0, time.time(), 1000, None)
    passed = PassedDescriptor(STREAM, UNFRAMED.name, b"")
    with closing(theirs):
        built = receiver.build(State("", 0, [("alerts",)], [state], [passed]), [ours.detach()])
        client.send(b"x")
        client.close()
        await node.start()
        adopted = receiver.adopt(State(*node.hub.head, [], [], []), [], built)
        await asyncio.sleep(0.05)
        assert adopted == built
        assert not built[0].closed
        assert theirs.recv(9, socket.MSG_PEEK) == b"x"
    async with node.hub.between_fan_outs():  # as one holds it that is under way
        watching = asyncio.create_task(receiver.watch(adopted))
        await asyncio.sleep(0.05)
        assert not built[0].closed
    await watching
    await until_async(lambda: built[0].closed, "its end is noticed")
    assert not node.hub.streams
    await app.stop()
