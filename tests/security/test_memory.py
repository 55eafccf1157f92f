"""Clients that send much or read nothing cost the server little memory."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess, running

MEBIBYTE = 2**20


def resident(server: ServerProcess) -> int:
    """Return the resident memory of the server, in bytes."""
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def connected(server: ServerProcess, stack: ExitStack) -> socket.socket:
    """Return a connection that reads little."""
    client = stack.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(("127.0.0.1", server.port))
    return client


@pytest.mark.long
def test_a_hundred_histories_that_are_not_read_take_little_memory(tmp_path: Path) -> None:
    with (
        running(state_dir=tmp_path / "state") as server,
        ExitStack() as stack,
        server.publisher() as publisher,
    ):
        for _ in range(5):
            events = [{"channel": "alerts", "event": "e", "data": {"text": "a" * 1000}}] * 200
            assert publisher.post("/api/v1/sse", json={"events": events}).status_code == 201
        before = resident(server)
        head = f"Host: {server.url[7:]}\r\nAuthorization: Bearer {server.access_token()}\r\n\r\n"
        for _ in range(100):
            client = connected(server, stack)
            client.sendall(f"GET /api/v1/sse/alerts/history?limit=1000 HTTP/1.1\r\n{head}".encode())
            assert client.recv(12) == b"HTTP/1.1 200"
        grown = resident(server) - before
        print(f"{grown / MEBIBYTE:.1f} MiB")
        assert grown < 40 * MEBIBYTE
        assert len(publisher.get("/api/v1/sse/alerts/history?limit=1000").json()["events"]) > 900


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/api/v1/auth/login", "/api/v1/auth/refresh", "/api/v1/sse/alerts", "/api/v1/sse"]
)
@pytest.mark.parametrize("framing", ["Content-Length", "chunks"])
def test_bodies_of_strangers_take_little_memory(tmp_path: Path, path: str, framing: str) -> None:
    size = 1_000_000
    if framing == "chunks":
        framed, content = "Transfer-Encoding: chunked", b"%x\r\n%b" % (size, b" " * (size - 1))
    else:
        framed, content = f"Content-Length: {size}", b" " * (size - 1)
    with running(state_dir=tmp_path / "state") as server, ExitStack() as stack:
        before = resident(server)
        for _ in range(100):
            client = connected(server, stack)
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: {server.url[7:]}\r\n{framed}\r\n\r\n".encode())
            try:
                client.sendall(content)
                answer = client.recv(4096)
            except ConnectionError:
                continue  # it was answered and closed while this was being sent
            assert int(answer.split()[1]) in (401, 413)
        grown = resident(server) - before
        print(f"{grown / MEBIBYTE:.1f} MiB")
        assert grown < 50 * MEBIBYTE


def test_a_publisher_with_a_token_sends_large_bodies(tmp_path: Path) -> None:
    with running(state_dir=tmp_path / "state") as server, server.publisher() as publisher:
        body = json.dumps({"event": "e", "data": {"text": "a" * 900_000}})
        assert publisher.post("/api/v1/sse/alerts", content=body).status_code == 201
        chunks = (body[start : start + 10_000].encode() for start in range(0, len(body), 10_000))
        assert publisher.post("/api/v1/sse/alerts", content=chunks).status_code == 201
        large = {"refresh_token": "a" * 100_000}
        assert publisher.post("/api/v1/auth/refresh", json=large).status_code == 413
