"""The log of a real server under what clients send to spoil it, and of what libraries and threads log or print."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from tornado.ioloop import IOLoop

from sse_app import SSEApp
from tests.support.server_process import ROOT, ServerProcess
from tests.support.waiting import until

SECRET = "s3cr3t-Zq9-value"
Start = Callable[..., ServerProcess]

PROGRAM = """
import atexit, asyncio, gc, logging, sys, threading, warnings
from tornado.ioloop import PeriodicCallback
from sse_app.process import logs

class Finalised:
    def __del__(self):
        raise ValueError("eyJhbGciOi.SECRET\\x9b")

def fails(where):
    raise ValueError(where + " Bearer SECRET\\x9b\\x01 " + "x" * 50_000)

async def serve():
    loop = asyncio.get_running_loop()
    loop.call_soon(fails, "callback")
    thread = threading.Thread(target=fails, args=("thread",))
    thread.start()
    thread.join()
    Finalised()
    task = asyncio.create_task(asyncio.sleep(0))
    async def failing():
        fails("task")
    task = asyncio.create_task(failing())
    await asyncio.sleep(0.05)
    del task
    gc.collect()
    logging.getLogger("library").error("cookie: SECRET %s", "\\x9b" * 30_000)
    logging.getLogger("library").error("%d %d", 1)
    warnings.warn("token=SECRET\\x9b" + "x" * 30_000)
    print("printed password=SECRET\\x9b" + "x" * 30_000, file=sys.stderr)
    print("another line", file=sys.stderr)
    timer = PeriodicCallback(lambda: fails("timer"), 10)
    timer.start()
    await asyncio.sleep(0.1)
    timer.stop()

atexit.register(fails, "exit")
with logs.to_standard_error("info", FORMAT):
    asyncio.run(serve())
    fails("main")
""".replace("SECRET", SECRET)


@pytest.mark.parametrize("format", ["json", pytest.param("console", marks=pytest.mark.slow)])
def test_whatever_is_logged_printed_warned_of_or_not_caught_is_a_line_within_bounds(format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROGRAM.replace("FORMAT", repr(format))],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1
    text = done.stderr.decode()
    assert SECRET not in text
    for line in text.splitlines():
        assert line.isprintable()
        assert len(line) < 4096
    for where in ("callback", "thread", "task", "timer", "main", "exit"):
        assert f"ValueError: {where} Bearer [redacted]" in text, where
    for others in (
        "in a finaliser",
        "UserWarning",
        "another line",
        "log_line_failed",
        "cookie: [redacted]",
    ):
        assert others in text, others
    if format == "json":
        for line in text.splitlines():
            json.loads(line)


def send(server: ServerProcess, *requests: bytes) -> None:
    """Send each request on a connection of its own, and read the answer."""
    for request in requests:
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass


def test_what_a_client_sends_reaches_the_log_escaped_bounded_and_without_secrets(
    server: ServerProcess,
) -> None:
    send(
        server,
        b"GET /\x9b31m HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /%9b%1b[31m HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"%9b" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: a\r\nCookie: sse_app_refresh={SECRET}\x01{SECRET}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRET}\x01{SECRET}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {SECRET}\x7f\r\n\r\n".encode(),
        f"GET /api/v1/sse/a?token={SECRET}\x01 HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        f"{SECRET}\x01 / HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: {SECRET}\x01\r\n\r\n".encode(),
    )
    assert server.stop() == 0
    text = server.log_path.read_bytes()
    assert SECRET.encode() not in text
    for line in text.split(b"\n"):
        assert line.decode().isprintable()
        assert len(line) < 1000


@pytest.mark.gen_test
async def test_mounted_under_tornado_s_server_a_malformed_header_is_not_logged(
    http_server: object,
    http_port: int,
    sse: SSEApp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")

    def ask(header: str) -> bytes:
        with socket.create_connection(("127.0.0.1", http_port), 30) as connection:
            connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n".encode("latin-1"))
            return connection.recv(1000)

    for header in (
        f"Cookie: sse_app_refresh={SECRET}\x01{SECRET}",
        f"Authorization: Bearer {SECRET}\x01",
        f"Host: {SECRET}\x9b\"'",
        f"{SECRET} : x",
        "Transfer-Encoding: "
        + "," * 60_000
        + "a",  # whose text must not be searched from each place for its end
    ):
        await IOLoop.current().run_in_executor(None, ask, header)
    texts = [made.getMessage() for made in caplog.records if made.name == "tornado.general"]
    assert len(texts) >= 3
    assert not [text for text in texts if SECRET in text or not text.isprintable()]
    assert any("Invalid header value" in text for text in texts), texts
    assert any("Unsupported Transfer-Encoding" in text for text in texts), texts


@pytest.mark.long
def test_a_flood_of_malformed_heads_and_of_requests_for_nothing_leaves_the_log_small(
    start_server: Start,
) -> None:
    server = start_server(LOG__LEVEL="info")
    begun = time.monotonic()
    size = server.log_path.stat().st_size
    sent = 0
    with httpx.Client(base_url=server.url, timeout=30) as http:
        while time.monotonic() - begun < 4 or sent < 400:
            send(server, *[b"GET / HTTP/1.1\r\nbad header\r\n\r\n"] * 10)
            for _ in range(10):
                assert http.get("/nothing").status_code == 404
                assert http.get("/api/v1/auth/me").status_code == 401
            sent += 10
            time.sleep(0.05)

    def told() -> Counter[str]:
        """Count the malformed requests that have a line, and those of which a line says that they have none."""
        found: Counter[str] = Counter()
        for line in server.log_lines():
            if line["event"] == "malformed_request":
                found["written"] += 1
            elif line["event"] == "log_lines_left_out" and line["of"] == "malformed_request":
                found["left out"] += int(str(line["lines"]))
        return found

    until(lambda: told().total() == sent, "each of them is counted")
    seconds = time.monotonic() - begun
    assert (server.log_path.stat().st_size - size) / seconds < 10_000
    assert told()["left out"] > 0


def test_a_refused_request_is_one_line_that_says_why(server: ServerProcess) -> None:
    answer = httpx.get(
        f"{server.url}/api/v1/auth/me", headers={"Authorization": "Bearer nonsense"}, timeout=30
    )
    assert answer.status_code == 401
    until(lambda: any(line.get("path") == "/api/v1/auth/me" for line in server.log_lines()), "it is logged")
    (line,) = [line for line in server.log_lines() if line.get("path") == "/api/v1/auth/me"]
    assert (line["status"], line["detail"]) == (401, "no token of ours has this form")
    assert "token_refused" not in [line["event"] for line in server.log_lines()]
