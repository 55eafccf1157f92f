"""Clients that come and go all the time cost a server nothing that stays."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.support.server_process import ServerProcess
from tests.support.usage import MEBIBYTE, Usage
from tests.support.waiting import until_async

Start = Callable[..., ServerProcess]

PASSWORD = "correct horse battery"
RATE = 50.0
"""What the clients do together, in actions a second."""
MOST_STREAMS = 100


class Stream:
    """An open stream, read in the background.

    Args:
        session: the answer to the login that it belongs to.
    """

    def __init__(self, session: dict[str, Any]) -> None:
        self.session = session
        self.client_id = f"churn-{random.getrandbits(48):x}"
        self.position = ""
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, server: ServerProcess) -> None:
        """Connect, after the last event where there was one."""
        reader, self._writer = await asyncio.open_connection("127.0.0.1", server.port)
        url = f"/api/v1/sse/dashboard,user.ann.{random.randrange(1000)}?token={self.session['stream_token']}"
        url += f"&client_id={self.client_id}&last_event_id={self.position}"
        self._writer.write(f"GET {url} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        status = await reader.readline()
        assert status.split()[1] in (b"200", b"401", b"403"), status
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            async for line in reader:
                if line.startswith(b"id: "):
                    self.position = line[4:].decode().strip()

    async def drop(self) -> None:
        """Disconnect without a word; some do it with a reset."""
        if self._writer is not None:
            if random.random() < 0.5:
                self._writer.transport.abort()
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])


class Churn:
    """Clients of one server that log in, connect, drop, resume, renew, publish and are revoked, at random."""

    http: httpx.AsyncClient

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.sessions: list[dict[str, Any]] = []
        self.streams: list[Stream] = []
        self.done: Counter[str] = Counter()
        self.admin = {"Authorization": f"Bearer {server.access_token(admin=True, ttl=3600)}"}

    async def run(self, seconds: float) -> None:
        """Do it for so long, and leave no connection open."""
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=self.server.url, limits=limits, timeout=60) as self.http:
            await self._act(seconds)
        for stream in self.streams:
            await stream.drop()
        self.streams.clear()

    async def _act(self, seconds: float) -> None:
        actions: dict[Callable[[], Awaitable[object]], float] = {
            self.connect: 14,
            self.drop: 12,
            self.resume: 8,
            self.renew: 5,
            self.publish: 6,
            self.log_in: 2,
            self.log_out: 1,
            self.revoke: 1,
            self.kick: 1,
        }
        begun, before = time.monotonic(), self.done.total()
        running: set[asyncio.Task[object]] = set()
        while (passed := time.monotonic() - begun) < seconds:
            (action,) = random.choices(list(actions), list(actions.values()))
            self.done[action.__name__] += 1
            running.add(task := asyncio.ensure_future(action()))
            task.add_done_callback(running.discard)
            await asyncio.sleep(max(0.0, (self.done.total() - before) / RATE - passed))
            if len(running) > 200:
                await asyncio.wait(running)
        if running:
            await asyncio.wait(running)

    async def connect(self) -> None:
        if not self.sessions:
            return await self.log_in()
        if len(self.streams) >= MOST_STREAMS:
            return await self.drop()
        stream = Stream(random.choice(self.sessions))
        await stream.open(self.server)
        self.streams.append(stream)

    async def drop(self) -> None:
        if self.streams:
            await self.streams.pop(random.randrange(len(self.streams))).drop()

    async def resume(self) -> None:
        if self.streams:
            stream = self.streams.pop(random.randrange(len(self.streams)))
            await stream.drop()
            await stream.open(self.server)
            self.streams.append(stream)

    async def renew(self) -> None:
        if not self.streams:
            return
        stream = random.choice(self.streams)
        answer = await self._post(
            "auth/stream-token", {"channels": ["dashboard", "user.ann.**"]}, stream.session
        )
        if answer.status_code == 200:
            headers = {"Authorization": f"Bearer {answer.json()['stream_token']}"}
            await self.http.post(f"/api/v1/sse/connections/{stream.client_id}/renew", headers=headers)

    async def publish(self) -> None:
        channel = random.choice(["dashboard", f"user.ann.{random.randrange(1000)}"])
        data = {"event": "e", "data": {"text": "a" * random.randrange(2000)}}
        answer = await self.http.post(f"/api/v1/sse/{channel}", json=data, headers=self.admin)
        assert answer.status_code == 201, answer.text

    async def log_in(self) -> None:
        body = {"username": "ann", "password": PASSWORD, "cookie": False}
        answer = await self.http.post("/api/v1/auth/login", json=body)
        if answer.status_code == 200:
            self.sessions.append(answer.json())
            del self.sessions[:-50]

    async def log_out(self) -> None:
        if self.sessions:
            await self._post("auth/logout", {}, self.sessions.pop(0))

    async def revoke(self) -> None:
        body = {"token_id": f"made-up-{random.getrandbits(64):x}"}
        answer = await self.http.post("/api/v1/admin/revocations", json=body, headers=self.admin)
        assert answer.status_code == 201, answer.text

    async def kick(self) -> None:
        answer = await self.http.get("/api/v1/admin/connections?limit=1", headers=self.admin)
        for connection in answer.json()["connections"]:
            url = f"/api/v1/admin/connections/{connection['connection']}/kick"
            await self.http.post(url, json={"for": 1}, headers=self.admin)

    async def _post(self, path: str, body: dict[str, Any], session: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {session['access_token']}"}
        return await self.http.post(f"/api/v1/{path}", json=body, headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warm_up", "seconds"),
    [
        pytest.param(6, 6, id="twelve seconds", marks=pytest.mark.long),
        pytest.param(120, 720, id="fourteen minutes", marks=pytest.mark.long),
    ],
)
@pytest.mark.gen_test(timeout=1000)
async def test_clients_that_come_and_go_leave_nothing_behind(
    start_server: Start, warm_up: float, seconds: float
) -> None:
    server = start_server(KEEPALIVE__PING_INTERVAL=1)
    server.add_user("ann", PASSWORD, subscribe="dashboard,user.**", publish="**")
    with (
        server.publisher() as publisher
    ):  # the ring of recent events is full from here on, as on a busy server
        for _ in range(10):
            events = [{"channel": "dashboard", "event": "e", "data": {"text": "a" * 1000}}] * 900
            publisher.post("/api/v1/sse", json={"events": events}).raise_for_status()
    churn = Churn(server)
    usages = []
    for span in (warm_up, seconds):
        await churn.run(span)
        await until_async(lambda: streams(server) == 0, "no stream is open")
        await asyncio.sleep(1)
        assert server.process is not None
        usages.append(Usage(server.process.pid))
        print(usages[-1], dict(churn.done))
    before, after = usages
    assert after.resident < before.resident + 10 * MEBIBYTE
    assert (after.descriptors, after.threads) == (before.descriptors, before.threads)


def streams(server: ServerProcess) -> int:
    """Return how many streams are open."""
    return int(httpx.get(f"{server.url}/api/v1/sse/status").json()["total_connections"])
