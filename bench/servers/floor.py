"""The floor: `floor.c`, a bare send() loop over all streams."""

from __future__ import annotations

from collections.abc import Sequence

from bench.load import Publish
from bench.native import program
from bench.payload import EVENT_BYTES, EVENT_ITEM
from bench.processes import free_port
from bench.servers.interface import Server

_EXTRA = ',"channel":"bench.0","timestamp":"2000-01-01T00:00:00.000000Z"}'
"""What sse_app adds to the data, so that the floor sends as many bytes."""


class Floor(Server):
    """No HTTP parsing, no tokens, no log: what the kernel takes for the same bytes to the same sockets."""

    name = "floor"
    title = "bare C send() loop (the floor)"
    batches = True

    @classmethod
    def version(cls) -> str:
        return "bench/floor.c"

    def launch(self) -> None:
        self._publish_port = free_port()
        self.processes.start([program("floor"), str(self.port), str(self._publish_port)])

    def publish(self, channels: Sequence[str], batch: int = 1) -> Publish:
        del channels
        frame_head, frame_tail = "id: 1a2b3c4d-1000000\nevent: tick\ndata: ", "\n\n"
        size = len(frame_head) + EVENT_BYTES - 1 + len(_EXTRA) + len(frame_tail)
        item = frame_head + EVENT_ITEM[:-1] + _EXTRA + frame_tail
        chunk = f"{size * batch:x}\r\n"
        return Publish(self._publish_port, "/", item, prefix=chunk, suffix="\r\n", batch=batch)
