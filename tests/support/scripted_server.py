"""A server that answers as a test says: for what the real one cannot be made to say on demand."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

HOURS = 10_000.0


class Answer(NamedTuple):
    """One answer to a stream's request; status 0 is a connection closed without one."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
    type: str = "text/event-stream"
    pings: float = 0
    """Seconds between pings meanwhile."""

    end: str = ""
    """What follows before the connection is closed."""

    hold: float = 0
    """Seconds to keep the connection open after the body; also until the client goes or the test ends."""


class Asked(NamedTuple):
    """A request that came."""

    at: float
    method: str
    path: str
    query: dict[str, str]
    by: str
    """``eventsource`` for what asks for an event stream, as the browser client does too; else ``fetch``."""


def frame(event: str, data: dict[str, Any], id: str = "") -> str:
    """Return an event as it stands on the wire."""
    return (f"id: {id}\n" if id else "") + f"event: {event}\ndata: {json.dumps(data)}\n\n"


def connected(id: str = "e-1", channel: str = "news", **more: Any) -> str:
    """Return the first event of a stream."""
    data = {"client_id": "me", "channel": channel, "channels": [channel], "recovered": False, **more}
    return frame("connected", data, id)


class ScriptedServer:
    """Gives the answers in turn, the last one for ever.

    Args:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://localhost:{port}"
        self.answers: list[Answer] = [Answer(hold=HOURS)]
        self.asked: list[Asked] = []
        self.over = threading.Event()

    def streams(self) -> list[Asked]:
        """Return the requests for a stream."""
        return [request for request in self.asked if request.by == "eventsource"]


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run one on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            by = "eventsource" if "text/event-stream" in self.headers.get("Accept", "") else "fetch"
            server.asked.append(Asked(time.monotonic(), self.command, parts.path, query, by))
            if by == "eventsource":
                last[0] = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            answer = last[0]  # a fetch asks what the EventSource was answered
            if not answer.status:
                return
            self.send_response(answer.status)
            headers = {
                "Content-Type": answer.type,
                "Access-Control-Allow-Origin": self.headers["Origin"] or "*",
            }
            headers |= {"Access-Control-Expose-Headers": "Retry-After", **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(answer.body.encode())
                until = time.monotonic() + answer.hold
                next_ping = time.monotonic() + answer.pings if answer.pings else until
                while by == "eventsource" and time.monotonic() < until and not server.over.is_set():
                    if select.select([self.connection], [], [], 0.02)[0]:
                        return  # the client has gone: it has nothing more to say
                    if time.monotonic() >= next_ping:
                        self.wfile.write(b"event: ping\ndata: {}\n\n")
                        next_ping += answer.pings
                self.wfile.write(answer.end.encode())
            except OSError:
                pass

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = ScriptedServer(http.server_port)
        last = [server.answers[0]]
        threading.Thread(target=http.serve_forever, args=(0.02,)).start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
