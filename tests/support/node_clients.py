"""Browser clients that run in Node.js, each on a script of its own, and what they tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.npm import CLIENT
from tests.support.programs import require

Note = dict[str, Any]

_PROGRAM = """
import { SSEClient } from "@sse-app/client";

JSON.parse(process.argv[1]).forEach(({ url, text, ...options }, place) => {
  const note = (kind) => (detail) => console.log(JSON.stringify({ place, kind, ...detail }));
  // As an application writes it.
  const token = async () => {
    const answer = await fetch(`${url}/token`);
    if (answer.status === 418) throw new TypeError("a mistake in the function");
    if (answer.ok) return answer.text();
    const { error } = await answer.json().catch(() => ({}));
    const retryAfter = Number(answer.headers.get("Retry-After"));
    throw Object.assign(new Error("no token"), { status: answer.status, code: error?.code, retryAfter });
  };
  new SSEClient(`${url}/sse/news`, {
    token: text ? "text" : token,
    reconnectDelay: 20,
    maxReconnectDelay: 100,
    onOpen: note("open"),
    onEvent: note("event"),
    onReset: note("reset"),
    onReconnect: note("reconnect"),
    onClose: note("close"),
    ...options,
  });
});
"""


class NodeClients:
    """The notes of clients, by their places in the list of what they were given."""

    def __init__(self, count: int) -> None:
        self.notes: list[list[Note]] = [[] for _ in range(count)]
        self._came = asyncio.Condition()

    def of(self, place: int, kind: str) -> list[Note]:
        """Return what a client has noted of a kind."""
        return [note for note in self.notes[place] if note["kind"] == kind]

    async def noted(self, place: int, kind: str) -> Note:
        """Wait until a client has noted something of a kind, and return the first of it."""
        async with self._came:
            await self._came.wait_for(lambda: self.of(place, kind))
        return self.of(place, kind)[0]

    async def _read(self, printed: asyncio.StreamReader) -> None:
        async for line in printed:
            note = json.loads(line)
            async with self._came:
                self.notes[note.pop("place")].append(note)
                self._came.notify_all()


@asynccontextmanager
async def node_clients(given: list[dict[str, Any]]) -> AsyncIterator[NodeClients]:
    """Run clients in one process, on the package as it is built.

    Args:
        given: of each its ``url``, whether its token is a ``text``, and more options.
    """
    clients = NodeClients(len(given))
    process = await asyncio.create_subprocess_exec(
        require("node"),
        *("--input-type=module", "--eval", _PROGRAM, json.dumps(given)),
        cwd=CLIENT,
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    assert process.stdout is not None
    reading = asyncio.create_task(clients._read(process.stdout))
    try:
        yield clients
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading
